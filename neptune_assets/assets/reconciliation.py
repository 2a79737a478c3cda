"""Assets that compare a target with the lake, any time after a load. They read only, and run when they are asked to."""

# No postponed annotations here: Dagster reads the real types of context, config and inputs.
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dagster as dg
import pyarrow as pa

from neptune_assets.assets.context import Migration
from neptune_assets.assets.lake import has_model_registry
from neptune_assets.assets.metadata import arrow_column_schema, table
from neptune_assets.assets.tables import TableStream
from neptune_assets.checks import check_reconciled
from neptune_assets.failures import RETRY_POLICY, clear_failures
from neptune_assets.lake.reader import LakeProject
from neptune_assets.progress import ProgressLog
from neptune_assets.schema import Scope
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.protocol import Target
from neptune_assets.targets.reconcile import COMPARED, Comparison, reconcile
from neptune_assets.targets.registry import ledger_name, model_openers, target_openers
from neptune_assets.targets.rules import read_rules


def reconciliation_assets(migration: Migration) -> list[dg.AssetsDefinition]:
    """Build one comparison for each configured target, and one for each model registry where it is loaded."""
    openers = target_openers(migration.settings)
    found = [_asset(migration, name, "runs", {Scope.RUNS: opener}) for name, opener in openers.items()]
    if has_model_registry(migration.settings):
        models = model_openers(migration.settings)
        found += [_asset(migration, name, "models and versions", scopes) for name, scopes in models.items()]
    return found


def _asset(
    migration: Migration, name: str, things: str, openers: Mapping[Scope, Callable[[], Target]]
) -> dg.AssetsDefinition:
    """Build the comparison of one target; ``openers`` open it for each kind of thing that it holds."""
    key = migration.key("targets", f"{name}_reconciled")
    rules = read_rules(migration.settings.targets.names)
    product = name.partition("_")[0]
    columns = COMPARED if len(openers) == 1 else pa.schema([("kind", pa.string()), *COMPARED])

    @dg.asset(
        key=key,
        ins={
            scope.value: dg.AssetIn(migration.key("lake", scope.value), input_manager_key=migration.lake_io)
            for scope in openers
        },
        deps=[migration.key("targets", name)],
        group_name="targets",
        description=f"All {things} in {name} read back and compared with the lake, whenever somebody asks. Reads only.",
        partitions_def=migration.partitions,
        io_manager_key=migration.table_io,
        kinds={product},
        code_version="1",
        retry_policy=RETRY_POLICY,
        pool=migration.pool(product),
        metadata={"dagster/column_schema": arrow_column_schema(columns)},
        check_specs=[migration.check(key, "reconciled", "Nothing is gone, changed, doubled or unknown to the lake.")],
    )
    def reconciled(context: dg.AssetExecutionContext, **projects: LakeProject) -> Iterator[Any]:
        found: dict[Scope, Comparison] = {}
        for scope, open_target in openers.items():
            project = projects[scope.value]
            log = ProgressLog(context.log.info, f"{project.project_id} in {name}")
            with clear_failures():
                found[scope] = reconcile(
                    project,
                    open_target,
                    Ledger(migration.settings.lake, ledger_name(name, scope), project.project_id),
                    partial_runs=migration.settings.targets.partial_runs,
                    rules=rules,
                    progress=log.update,
                )
        metadata: dict[str, Any] = {
            f"{scope.value}_{word}": count
            for scope, comparison in found.items()
            for word, count in comparison.counts.items()
        }
        metadata["seconds"] = round(sum(comparison.seconds for comparison in found.values()), 3)
        wrong = [item for comparison in found.values() for item in comparison.wrong]
        if wrong:
            rows = [(item.run_id, item.word, "; ".join(item.differences[:5])) for item in wrong]
            metadata["wrong"] = dg.MetadataValue.md(table(["run", "verdict", "differences"], rows))
        # The table is kept either way: it is what says where to look.
        digest = "-".join(projects[scope.value].digest for scope in openers)
        yield dg.Output(TableStream(_rows(found, columns), digest), metadata=metadata)
        yield check_reconciled([*found.values()], key, things)
        if wrong:
            first = wrong[0]
            raise dg.Failure(
                f"{len(wrong):,} {things} in {name} are not as in the lake; the first is {first.run_id!r}, "
                f"{first.word}: {'; '.join(first.differences[:3]) or 'see the check reconciled'}.",
                metadata=metadata,
                allow_retries=False,
            )

    return reconciled


def _rows(found: Mapping[Scope, Comparison], columns: pa.Schema) -> pa.RecordBatchReader:
    """Return comparisons as one table, with the kind of thing before each row if there are several."""

    def batches() -> Iterator[pa.RecordBatch]:
        for scope, comparison in found.items():
            for batch in comparison.reader():
                kinds = [pa.array([scope.value] * batch.num_rows, pa.string())] * (len(columns) - len(COMPARED))
                yield pa.RecordBatch.from_arrays([*kinds, *batch.columns], schema=columns)

    return pa.RecordBatchReader.from_batches(columns, batches())
