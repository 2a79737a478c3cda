"""Asset of the source: the inventory of one project's runs, before anything of them is read."""

# No postponed annotations here: Dagster reads the real types of context, config and inputs.
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pyarrow as pa

from neptune_assets.assets.context import Migration
from neptune_assets.assets.metadata import arrow_column_schema, problem_table
from neptune_assets.assets.tables import TableStream
from neptune_assets.errors import UnknownProjectError
from neptune_assets.failures import RETRY_POLICY, clear_failures
from neptune_assets.lake.manifest import RunRecord
from neptune_assets.lake.reader import Lake
from neptune_assets.schema import TIME_TYPE, Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import RunInfo, Source

INVENTORY = pa.schema(
    [
        ("project_id", pa.string()),
        ("run_id", pa.string()),
        ("fingerprint", pa.string()),
        ("created_at", TIME_TYPE),
        ("modified_at", TIME_TYPE),
        ("archived", pa.bool_()),
        ("trashed", pa.bool_()),
        ("size", pa.int64()),
        ("change", pa.string()),
    ]
)


def source_assets(migration: Migration) -> list[dg.AssetsDefinition]:
    """Build the source's asset: ``inventory``, one row a run, with what the lake will do about it."""

    @dg.asset(
        key=migration.key("source", "inventory"),
        group_name="source",
        description="Runs of one project as the source lists them: new, changed, partial or unchanged in the lake.",
        partitions_def=migration.partitions,
        io_manager_key=migration.table_io,
        required_resource_keys={migration.source},
        kinds={"neptune"},
        code_version="1",
        retry_policy=RETRY_POLICY,
        metadata={"dagster/column_schema": arrow_column_schema(INVENTORY)},
    )
    def inventory(context: dg.AssetExecutionContext) -> Iterator[Any]:
        source: Source = getattr(context.resources, migration.source)
        with clear_failures():
            infos = source.runs(context.partition_key, Scope.RUNS)
            problems = source.problems(context.partition_key)
            records = _records(migration.settings.lake, context.partition_key)
        changes = [_change(info, records) for info in infos]
        counts = Counter(changes)
        metadata: dict[str, Any] = {
            **{f"runs_{change}": counts[change] for change in ("new", "changed", "partial", "unchanged")},
            "size": sum(info.size_hint for info in infos),
        }
        if problems:
            metadata["problems"] = dg.MetadataValue.md(problem_table(problems))
            unread = [issue.message for issue in problems if not issue.notice]
            if unread:
                context.log.warning(
                    "%d problems of the source, each named by lake/runs; first: %s", len(unread), unread[0]
                )
        # What the source holds, not what the lake still lacks: only the former makes downstream data old.
        mark = hashlib.blake2b(repr(sorted((i.run_id, i.fingerprint) for i in infos)).encode(), digest_size=16)
        rows = _reader(context.partition_key, infos, changes)
        yield dg.Output(TableStream(rows, mark.hexdigest()), metadata=metadata)

    return [inventory]


def _records(settings: LakeSettings, project_id: str) -> dict[str, RunRecord]:
    try:
        return Lake(settings).project(project_id).records()
    except UnknownProjectError:
        return {}


def _change(info: RunInfo, records: dict[str, RunRecord]) -> str:
    record = records.get(info.run_id)
    if record is None:
        return "new"
    if record.fingerprint != info.fingerprint:
        return "changed"
    return "unchanged" if record.complete and record.stale is None else "partial"


def _reader(project_id: str, infos: list[RunInfo], changes: list[str]) -> pa.RecordBatchReader:
    columns = {
        "project_id": [project_id] * len(infos),
        "run_id": [info.run_id for info in infos],
        "fingerprint": [info.fingerprint for info in infos],
        "created_at": [info.created_at for info in infos],
        "modified_at": [info.modified_at for info in infos],
        "archived": [info.archived for info in infos],
        "trashed": [info.trashed for info in infos],
        "size": [info.size_hint for info in infos],
        "change": changes,
    }
    batch = pa.RecordBatch.from_pydict(columns, schema=INVENTORY)
    return pa.RecordBatchReader.from_batches(INVENTORY, [batch])
