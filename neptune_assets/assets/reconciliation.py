"""Assets that compare a target with the lake, any time after a load. They read only, and run when they are asked to."""

# No postponed annotations here: Dagster reads the real types of context, config and inputs.
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg

from neptune_assets.assets.context import Migration
from neptune_assets.assets.metadata import arrow_column_schema, table
from neptune_assets.assets.tables import TableStream
from neptune_assets.checks import check_reconciled
from neptune_assets.failures import RETRY_POLICY, clear_failures
from neptune_assets.lake.reader import LakeProject
from neptune_assets.progress import ProgressLog
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.protocol import Target
from neptune_assets.targets.reconcile import COMPARED, reconcile
from neptune_assets.targets.registry import target_openers
from neptune_assets.targets.rules import read_rules


def reconciliation_assets(migration: Migration) -> list[dg.AssetsDefinition]:
    """Build one comparison for each configured target."""
    return [_asset(migration, name, opener) for name, opener in target_openers(migration.settings).items()]


def _asset(migration: Migration, name: str, open_target: Callable[[], Target]) -> dg.AssetsDefinition:
    key = migration.key("targets", f"{name}_reconciled")
    rules = read_rules(migration.settings.targets.names)

    @dg.asset(
        key=key,
        ins={"runs": dg.AssetIn(migration.key("lake", "runs"), input_manager_key=migration.lake_io)},
        deps=[migration.key("targets", name)],
        group_name="targets",
        description=f"Every run in {name} read back and compared with the lake, whenever somebody asks. Reads only.",
        partitions_def=migration.partitions,
        io_manager_key=migration.table_io,
        kinds={name},
        code_version="1",
        retry_policy=RETRY_POLICY,
        pool=migration.pool(name),
        metadata={"dagster/column_schema": arrow_column_schema(COMPARED)},
        check_specs=[
            migration.check(key, "reconciled", "No run or point is gone, changed, doubled or unknown to the lake.")
        ],
    )
    def reconciled(context: dg.AssetExecutionContext, runs: LakeProject) -> Iterator[Any]:
        log = ProgressLog(context.log.info, f"{runs.project_id} in {name}")
        with clear_failures():
            found = reconcile(
                runs,
                open_target,
                Ledger(migration.settings.lake, name, runs.project_id),
                partial_runs=migration.settings.targets.partial_runs,
                rules=rules,
                progress=log.update,
            )
        metadata: dict[str, Any] = {
            **{f"runs_{word}": count for word, count in found.counts.items()},
            "seconds": round(found.seconds, 3),
        }
        if found.wrong:
            rows = [(item.run_id, item.word, "; ".join(item.differences[:5])) for item in found.wrong]
            metadata["wrong"] = dg.MetadataValue.md(table(["run", "verdict", "differences"], rows))
        # The table is kept either way: it is what says where to look.
        yield dg.Output(TableStream(found.reader(), runs.digest), metadata=metadata)
        yield check_reconciled(found, key)
        if found.wrong:
            first = found.wrong[0]
            raise dg.Failure(
                f"{len(found.wrong):,} runs in {name} are not as in the lake; the first is {first.run_id!r}, "
                f"{first.word}: {'; '.join(first.differences[:3]) or 'see the check reconciled'}.",
                metadata=metadata,
                allow_retries=False,
            )

    return reconciled
