"""The IO manager for small tables: one Parquet file a project, replaced as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from neptune_assets.failures import clear_failures
from neptune_assets.lake.layout import Layout, safe_name
from neptune_assets.lake.storage import Storage
from neptune_assets.settings import LakeSettings
from neptune_assets.summary.writing import check_table, write_table


@dataclass(frozen=True)
class TableStream:
    """What an asset of a small table hands to its IO manager: rows as a stream, and the version of their content."""

    rows: pa.RecordBatchReader
    data_version: str


def report_path(settings: LakeSettings, target: str, project_id: str) -> str:
    """Return where the table lies that says where every row of a load went."""
    return Layout(settings.root.rstrip("/")).ledger(target, project_id, "report.parquet")


def write_report(settings: LakeSettings, path: str, rows: pa.RecordBatchReader) -> int:
    """Write a table beside those of the IO manager, atomically; return its rows."""
    storage = Storage(settings.root, settings.storage)
    return write_table(rows, path, storage.filesystem, settings.scratch)


class ParquetTables(dg.IOManager):
    """Stream a table into ``<lake>/<stage>/<table>/<project>.parquet``, atomically."""

    def __init__(self, settings: LakeSettings) -> None:
        self._settings = settings

    def path(self, key: dg.AssetKey, project_id: str) -> str:
        """Return where the table of one project lies."""
        *_, stage, name = key.path
        return f"{self._settings.root.rstrip('/')}/{stage}/{name}/{safe_name(project_id)}.parquet"

    def handle_output(self, context: dg.OutputContext, obj: TableStream) -> None:
        """Write the rows as they come; nothing is held whole."""
        path = self.path(context.asset_key, context.partition_key)
        with clear_failures():
            storage = Storage(self._settings.root, self._settings.storage)
            rows = write_table(obj.rows, path, storage.filesystem, self._settings.scratch)
        context.step_context.set_data_version(context.asset_key, dg.DataVersion(obj.data_version))
        context.add_output_metadata({"dagster/uri": path, "dagster/partition_row_count": rows})

    def load_input(self, context: dg.InputContext) -> pa.RecordBatchReader:
        """Open the table of the partition's project as a stream of batches."""
        path = self.path(context.asset_key, context.partition_key)
        with clear_failures():
            storage = Storage(self._settings.root, self._settings.storage)
            check_table(storage, path)
            file = pq.ParquetFile(storage.open(path))
        return pa.RecordBatchReader.from_batches(file.schema_arrow, file.iter_batches())
