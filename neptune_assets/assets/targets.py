"""Assets of the targets: one load each, its receipts as a table, and the check that what was loaded reads back."""

# No postponed annotations here: Dagster reads the real types of context, config and inputs.
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg

from neptune_assets.assets.context import Migration, RefreshConfig
from neptune_assets.assets.metadata import arrow_column_schema, table
from neptune_assets.assets.tables import TableStream
from neptune_assets.automation import on_changed_data
from neptune_assets.checks import check_load
from neptune_assets.failures import RETRY_POLICY, clear_failures
from neptune_assets.lake.reader import LakeProject
from neptune_assets.progress import ProgressLog
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.protocol import Target
from neptune_assets.targets.registry import target_openers
from neptune_assets.targets.report import RECEIPTS, LoadReport, receipts_reader

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
            dg.AssetCheckSpec(
                "load_verified",
                asset=key,
                partitions_def=migration.partitions,
                description="Every run that had to be loaded reads back over a fresh connection as it is in the lake.",
            )
        ],
    )
    def load(context: dg.AssetExecutionContext, config: RefreshConfig, runs: LakeProject) -> Iterator[Any]:
        log = ProgressLog(context.log.info, f"{runs.project_id} into {name}")
        with clear_failures():
            report = load_project(
                runs,
                open_target,
                Ledger(migration.settings.lake, name, runs.project_id),
                partial_runs=migration.settings.targets.partial_runs,
                full_refresh=config.full_refresh,
                progress=log.update,
            )
        if report.withheld:
            names = ", ".join(sorted(report.withheld)[:20])
            context.log.warning(
                f"{len(report.withheld):,} partial runs withheld from {name}: {names}. "
                "Repair their source, or set targets.partial_runs to load."
            )
        verdict = check_load(report, key)
        if report.failed:
            # The check is recorded first, so that the UI names every run; then the asset fails.
            yield verdict
            run_id, message = next(iter(sorted(report.failed.items())))
            raise dg.Failure(
                f"{len(report.failed):,} of {report.total:,} runs were not loaded and verified; "
                f"the first is {run_id!r}: {message}",
                metadata=load_metadata(report),
                allow_retries=report.transient,
            )
        yield dg.Output(TableStream(receipts_reader(report), runs.digest), metadata=load_metadata(report))
        yield verdict

    return load


def load_metadata(report: LoadReport) -> dict[str, Any]:
    """Describe a load: runs by outcome, rows by fate, everything that was dropped with its reason."""
    rows = {"rows_in": 0, "rows_written": 0, "rows_mapped": 0, "rows_dropped": 0}
    dropped: dict[tuple[str, str], int] = {}
    notes: list[tuple[str, str]] = []
    for receipt in report.receipts:
        rows["rows_in"] += sum(receipt.rows_in.values())
        rows["rows_written"] += sum(receipt.written.values())
        rows["rows_mapped"] += sum(receipt.mapped.values())
        for item in receipt.dropped:
            rows["rows_dropped"] += item.rows
            reason = (item.attribute_type, item.reason)
            dropped[reason] = dropped.get(reason, 0) + item.rows
        notes += [(receipt.run_id, note) for note in receipt.notes]
    metadata: dict[str, Any] = {
        "runs_loaded": len(report.loaded),
        "runs_skipped": len(report.skipped),
        "runs_withheld": len(report.withheld),
        "runs_failed": len(report.failed),
        **rows,
        "seconds": round(report.seconds, 3),
        "rows_per_second": round(rows["rows_in"] / report.seconds) if report.seconds else 0,
    }
    if dropped:
        lines = [(kind, reason, count) for (kind, reason), count in sorted(dropped.items())]
        metadata["dropped"] = dg.MetadataValue.md(table(["type", "reason", "rows"], lines))
    if notes:
        metadata["notes"] = dg.MetadataValue.md(table(["run", "note"], notes))
    if report.failed:
        metadata["failed"] = dg.MetadataValue.md(table(["run", "reason"], sorted(report.failed.items())))
    if report.withheld:
        metadata["withheld"] = dg.MetadataValue.md(table(["run"], [(run_id,) for run_id in sorted(report.withheld)]))
    return metadata
