"""Assets that compare a target with the lake, any time after a load. They read only, and run when they are asked to."""

# No postponed annotations here: Dagster reads the real types of context, config and inputs.
from collections.abc import Iterator
from typing import Any

import dagster as dg

from neptune_assets.assets.context import Migration
from neptune_assets.assets.metadata import arrow_column_schema, table
from neptune_assets.assets.tables import TableStream, kinds_reader, with_kind
from neptune_assets.checks import check_reconciled
from neptune_assets.failures import RETRY_POLICY, clear_failures
from neptune_assets.lake.reader import LakeProject
from neptune_assets.progress import ProgressLog
from neptune_assets.schema import Scope
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.reconcile import COMPARED, Comparison, reconcile
from neptune_assets.targets.registry import Load
from neptune_assets.targets.rules import read_rules


def reconciliation_asset(migration: Migration, load: Load) -> dg.AssetsDefinition:
    """Build the comparison of what one asset loads with the lake."""
    name, things = load.name, load.things
    key = migration.key("targets", f"{name}_reconciled")
    rules = read_rules(migration.settings.targets.names)
    columns = with_kind(COMPARED, load.openers)

    @dg.asset(
        key=key,
        ins={
            scope.value: dg.AssetIn(migration.key("lake", scope.value), input_manager_key=migration.lake_io)
            for scope in load.openers
        },
        deps=[migration.key("targets", name)],
        group_name="targets",
        description=f"All {things} in {name} read back and compared with the lake, whenever somebody asks. Reads only.",
        partitions_def=migration.partitions,
        io_manager_key=migration.table_io,
        kinds={load.spec.name},
        code_version="1",
        retry_policy=RETRY_POLICY,
        pool=migration.pool(load.spec.name),
        metadata={"dagster/column_schema": arrow_column_schema(columns)},
        check_specs=[migration.check(key, "reconciled", "Nothing is gone, changed, doubled or unknown to the lake.")],
    )
    def reconciled(context: dg.AssetExecutionContext, **projects: LakeProject) -> Iterator[Any]:
        found: dict[Scope, Comparison] = {}
        for scope, open_target in load.openers.items():
            project = projects[scope.value]
            log = ProgressLog(context.log.info, f"{project.project_id} in {name}")
            with clear_failures():
                found[scope] = reconcile(
                    project,
                    open_target,
                    Ledger(migration.settings.lake, load.ledger_name(scope), project.project_id),
                    partial_runs=migration.settings.targets.partial_runs,
                    rules=rules,
                    progress=log.update,
                )
        metadata: dict[str, Any] = {
            f"{scope.value}_{verdict}": count
            for scope, comparison in found.items()
            for verdict, count in comparison.counts.items()
        }
        metadata["seconds"] = round(sum(comparison.seconds for comparison in found.values()), 3)
        wrong = [item for comparison in found.values() for item in comparison.wrong]
        if wrong:
            rows = [(item.run_id, item.word, "; ".join(item.differences[:5])) for item in wrong]
            metadata["wrong"] = dg.MetadataValue.md(table(["run", "verdict", "differences"], rows))
        # The table is kept either way: it is what says where to look.
        readers = {scope: comparison.reader() for scope, comparison in found.items()}
        digest = "-".join(projects[scope.value].digest for scope in load.openers)
        yield dg.Output(TableStream(kinds_reader(readers, columns), digest), metadata=metadata)
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
