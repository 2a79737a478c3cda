"""Assets of the targets: one load each, with its plan, its receipts as tables, and its checks."""

# No postponed annotations here: Dagster reads the real types of context, config and inputs.
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg

from neptune_assets.assets.context import Migration, RefreshConfig
from neptune_assets.assets.metadata import arrow_column_schema, table
from neptune_assets.assets.tables import TableStream, report_path, write_report
from neptune_assets.automation import on_changed_data
from neptune_assets.checks import check_balance, check_load, check_plan
from neptune_assets.failures import RETRY_POLICY, clear_failures
from neptune_assets.lake.reader import LakeProject
from neptune_assets.progress import ProgressLog
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.pages import balance_page, plan_page
from neptune_assets.targets.plan import ProjectPlan, plan_project
from neptune_assets.targets.protocol import Target
from neptune_assets.targets.registry import target_openers
from neptune_assets.targets.report import RECEIPTS, Balance, LoadReport, balance, fates_reader, receipts_reader
from neptune_assets.targets.rules import read_rules

_DESCRIPTIONS = {
    "mlflow": "Runs of one project in MLflow, replaced as a whole, read back and compared with the lake.",
    "wandb": "Runs of one project in Weights & Biases: staged as offline runs, decoded and compared with the lake, "
    "then synced when a key is configured.",
}


def target_assets(migration: Migration) -> list[dg.AssetsDefinition]:
    """Build one load asset for each configured target."""
    return [_load_asset(migration, name, opener) for name, opener in target_openers(migration.settings).items()]


def _load_asset(migration: Migration, name: str, open_target: Callable[[], Target]) -> dg.AssetsDefinition:
    key = migration.key("targets", name)
    rules = read_rules(migration.settings.targets.names)

    @dg.asset(
        key=key,
        ins={"runs": dg.AssetIn(migration.key("lake", "runs"), input_manager_key=migration.lake_io)},
        group_name="targets",
        description=_DESCRIPTIONS[name],
        partitions_def=migration.partitions,
        io_manager_key=migration.table_io,
        kinds={name},
        code_version="1",
        retry_policy=RETRY_POLICY,
        pool=migration.pool(name),
        automation_condition=on_changed_data(),
        metadata={"dagster/column_schema": arrow_column_schema(RECEIPTS)},
        check_specs=[
            migration.check(key, "plan", "Found out before anything is written: no run has to be refused."),
            migration.check(
                key,
                "load_verified",
                "Every run that had to be loaded reads back over a fresh connection as it is in the lake.",
            ),
            migration.check(
                key, "rows_accounted_for", "Rows in the lake = written + mapped + dropped + not loaded, for each run."
            ),
        ],
    )
    def load(context: dg.AssetExecutionContext, config: RefreshConfig, runs: LakeProject) -> Iterator[Any]:
        log = ProgressLog(context.log.info, f"{runs.project_id} into {name}")
        ledger = Ledger(migration.settings.lake, name, runs.project_id)
        choices: dict[str, Any] = {
            "partial_runs": migration.settings.targets.partial_runs,
            "rules": rules,
            "full_refresh": config.full_refresh,
        }
        with clear_failures():
            plan = plan_project(runs, open_target, ledger, **choices)
        context.log.info(plan_line(plan))
        yield check_plan([plan], key)
        with clear_failures():
            at_once = migration.settings.targets.parallel_runs
            report = load_project(runs, open_target, ledger, parallel_runs=at_once, progress=log.update, **choices)
            rows = balance(report)
            path = report_path(migration.settings.lake, name, runs.project_id)
            write_report(migration.settings.lake, path, fates_reader(report))
        if report.withheld:
            names = ", ".join(sorted(report.withheld)[:20])
            context.log.warning(
                f"{len(report.withheld):,} partial runs withheld from {name}: {names}. "
                "Repair their source, or set targets.partial_runs to load."
            )
        verdicts = [check_load(report, key), check_balance(rows, key)]
        metadata = {**load_metadata(report, rows, plan), "report_table": dg.MetadataValue.path(path)}
        if report.failed or rows.wrong:
            # The checks are recorded first, so that the UI names every run; then the asset fails.
            yield from verdicts
            raise dg.Failure(_why(report, rows), metadata=metadata, allow_retries=report.transient)
        yield dg.Output(TableStream(receipts_reader(report), runs.digest), metadata=metadata)
        yield from verdicts

    return load


def load_metadata(report: LoadReport, rows: Balance, plan: ProjectPlan) -> dict[str, Any]:
    """Describe a load: runs by outcome, rows by fate, the plan, everything that was dropped with its reason."""
    notes = [(receipt.run_id, note) for receipt in report.receipts for note in receipt.notes]
    rows_in = sum(report.rows_in.values())
    metadata: dict[str, Any] = {
        "runs_loaded": len(report.loaded),
        "runs_skipped": len(report.skipped),
        "runs_withheld": len(report.withheld),
        "runs_failed": len(report.failed),
        "rows_in": rows_in,
        "rows_written": sum(report.written.values()),
        "rows_mapped": sum(report.mapped.values()),
        "rows_dropped": sum(report.dropped.values()),
        "seconds": round(report.seconds, 3),
        "rows_per_second": round(rows_in / report.seconds) if report.seconds else 0,
        "plan": dg.MetadataValue.md(plan_page(plan)),
        "report": dg.MetadataValue.md(balance_page(rows)),
    }
    if report.dropped:
        lines = [(kind, reason, count) for (kind, reason), count in sorted(report.dropped.items())]
        metadata["dropped"] = dg.MetadataValue.md(table(["type", "reason", "rows"], lines))
    if notes:
        metadata["notes"] = dg.MetadataValue.md(table(["run", "note"], notes))
    if report.failed:
        metadata["failed"] = dg.MetadataValue.md(table(["run", "reason"], sorted(report.failed.items())))
    if report.withheld:
        metadata["withheld"] = dg.MetadataValue.md(table(["run", "reason"], sorted(report.withheld.items())))
    return metadata


def plan_line(plan: ProjectPlan, things: str = "runs") -> str:
    """Return a plan in one line of the log; its page is in the metadata of the check ``plan``."""
    counts = (
        f"{len(plan.create):,} {things} to create, {len(plan.replace):,} to replace, {len(plan.skip):,} already there, "
        f"{len(plan.withhold):,} to withhold, {len(plan.refuse):,} to refuse; {plan.total_rows:,} rows"
    )
    return f"Plan for {plan.project_id} into {plan.target}: {'; '.join([counts, *plan.warnings])}."


def _why(report: LoadReport, rows: Balance) -> str:
    if report.failed:
        run_id, message = next(iter(sorted(report.failed.items())))
        return (
            f"{len(report.failed):,} of {report.total:,} runs were not loaded and verified; "
            f"the first is {run_id!r}: {message}"
        )
    run_id, kind, count = rows.wrong[0]
    return f"Rows of {len(rows.wrong):,} runs are not accounted for; the first is {run_id!r}: {count:,} of {kind}."
