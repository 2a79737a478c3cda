"""Assets of model registries: models, then their versions in order, from the lake; with receipts and checks."""

# No postponed annotations here: Dagster reads the real types of context, config and inputs.
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dagster as dg
import pyarrow as pa

from neptune_assets.assets.context import Migration, RefreshConfig
from neptune_assets.assets.lake import has_model_registry
from neptune_assets.assets.metadata import arrow_column_schema, table
from neptune_assets.assets.tables import TableStream
from neptune_assets.assets.targets import plan_line
from neptune_assets.automation import on_changed_data
from neptune_assets.checks import check_models, check_models_balance, check_plan
from neptune_assets.failures import RETRY_POLICY, clear_failures
from neptune_assets.lake.reader import LakeProject
from neptune_assets.progress import ProgressLog
from neptune_assets.schema import Scope
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.pages import plan_page
from neptune_assets.targets.plan import ProjectPlan, plan_project
from neptune_assets.targets.protocol import Target
from neptune_assets.targets.registry import ledger_name, model_openers
from neptune_assets.targets.report import RECEIPTS, LoadReport, balance, receipts_reader
from neptune_assets.targets.rules import read_rules

_KIND = "kind"
_DESCRIPTIONS = {
    "mlflow_models": "Models and model versions of one project in MLflow's Model Registry: versions in order, stages "
    "as aliases, each with a run that holds all it has; read back and compared with the lake.",
    "wandb_models": "Models and model versions of one project in Weights & Biases: each a run that holds all it has, "
    "versions in order in collections of models, stages as aliases; read back and compared with the lake.",
}
_COLUMNS = pa.schema([(_KIND, pa.string()), *RECEIPTS])


def model_assets(migration: Migration) -> list[dg.AssetsDefinition]:
    """Build one load for each configured target with a model registry, where the source can hold one."""
    if not has_model_registry(migration.settings):
        return []
    return [_models_asset(migration, name, openers) for name, openers in model_openers(migration.settings).items()]


def _models_asset(
    migration: Migration, name: str, openers: Mapping[Scope, Callable[[], Target]]
) -> dg.AssetsDefinition:
    key = migration.key("targets", name)
    product = name.partition("_")[0]
    rules = read_rules(migration.settings.targets.names)

    @dg.asset(
        key=key,
        ins={
            scope.value: dg.AssetIn(migration.key("lake", scope.value), input_manager_key=migration.lake_io)
            for scope in openers
        },
        # Versions link to runs, so runs are loaded first.
        deps=[migration.key("targets", product)],
        group_name="targets",
        description=_DESCRIPTIONS[name],
        partitions_def=migration.partitions,
        io_manager_key=migration.table_io,
        kinds={product},
        code_version="1",
        retry_policy=RETRY_POLICY,
        pool=migration.pool(product),
        automation_condition=on_changed_data(),
        metadata={"dagster/column_schema": arrow_column_schema(_COLUMNS)},
        check_specs=[
            migration.check(
                key, "plan", "Found out before anything is written: no model or version has to be refused."
            ),
            migration.check(
                key, "load_verified", "Every model and version reads back from the registry as it is in the lake."
            ),
            migration.check(
                key, "rows_accounted_for", "Rows in the lake = written + mapped + dropped + not loaded, each by itself."
            ),
        ],
    )
    def load(
        context: dg.AssetExecutionContext, config: RefreshConfig, models: LakeProject, model_versions: LakeProject
    ) -> Iterator[Any]:
        projects = {Scope.MODELS: models, Scope.MODEL_VERSIONS: model_versions}
        ledgers = {
            scope: Ledger(migration.settings.lake, ledger_name(name, scope), project.project_id)
            for scope, project in projects.items()
        }
        choices: dict[str, Any] = {
            "partial_runs": migration.settings.targets.partial_runs,
            "rules": rules,
            "full_refresh": config.full_refresh,
        }
        plans: dict[Scope, ProjectPlan] = {}
        for scope, project in projects.items():
            with clear_failures():
                plans[scope] = plan_project(project, openers[scope], ledgers[scope], **choices)
            context.log.info(plan_line(plans[scope], scope.value.replace("_", " ")))
        yield check_plan([*plans.values()], key, "models and versions")
        reports: dict[Scope, LoadReport] = {}
        for scope, project in projects.items():
            log = ProgressLog(context.log.info, f"{project.project_id} into {plans[scope].target}")
            with clear_failures():
                reports[scope] = load_project(
                    project,
                    openers[scope],
                    ledgers[scope],
                    parallel_runs=migration.settings.targets.parallel_runs,
                    progress=log.update,
                    **choices,
                )
        balances = {scope.value: balance(report) for scope, report in reports.items()}
        verdicts = [check_models(reports.values(), key), check_models_balance(balances, key)]
        metadata = models_metadata(reports, plans)
        failed = {item: message for report in reports.values() for item, message in report.failed.items()}
        if not all(verdict.passed for verdict in verdicts):
            # The checks are recorded first, so that the UI names every one; then the asset fails.
            yield from verdicts
            raise dg.Failure(
                str(verdicts[0].description if failed else verdicts[1].description),
                metadata=metadata,
                allow_retries=all(report.transient for report in reports.values() if report.failed) and bool(failed),
            )
        digest = f"{models.digest}-{model_versions.digest}"
        yield dg.Output(TableStream(_receipts(reports), digest), metadata=metadata)
        yield from verdicts

    return load


def models_metadata(reports: dict[Scope, LoadReport], plans: dict[Scope, ProjectPlan]) -> dict[str, Any]:
    """Describe a load of models and versions: each kind by outcome, the plans, and what the registry calls them."""
    metadata: dict[str, Any] = {
        "plan": dg.MetadataValue.md("\n\n".join(plan_page(plan) for plan in plans.values())),
    }
    notes: list[tuple[str, str]] = []
    for scope, report in reports.items():
        metadata |= {
            f"{scope.value}_loaded": len(report.loaded),
            f"{scope.value}_skipped": len(report.skipped),
            f"{scope.value}_withheld": len(report.withheld),
            f"{scope.value}_failed": len(report.failed),
        }
        notes += [(receipt.run_id, note) for receipt in report.receipts for note in receipt.notes]
    if notes:
        metadata["notes"] = dg.MetadataValue.md(table(["model or version", "note"], notes))
    withheld = [item for report in reports.values() for item in sorted(report.withheld.items())]
    if withheld:
        metadata["withheld"] = dg.MetadataValue.md(table(["model or version", "reason"], withheld))
    return metadata


def _receipts(reports: dict[Scope, LoadReport]) -> pa.RecordBatchReader:
    """Return the receipts of both kinds as one table."""

    def batches() -> Iterator[pa.RecordBatch]:
        for scope, report in reports.items():
            for batch in receipts_reader(report):
                kinds = pa.array([scope.value] * batch.num_rows, pa.string())
                yield pa.RecordBatch.from_arrays([kinds, *batch.columns], schema=_COLUMNS)

    return pa.RecordBatchReader.from_batches(_COLUMNS, batches())
