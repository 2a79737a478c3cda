"""The IO manager for small tables: one Parquet file a project, replaced as a whole."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from neptune_assets.failures import clear_failures
from neptune_assets.lake.layout import Layout, safe_name
from neptune_assets.lake.storage import Storage
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.summary.database import check_table, write_table


@dataclass(frozen=True)
class TableStream:
    """What an asset of a small table hands to its IO manager: rows as a stream, and the version of their content."""

    rows: pa.RecordBatchReader
    data_version: str


def with_kind(columns: pa.Schema, scopes: Collection[Scope]) -> pa.Schema:
    """Return the columns of a table on things of these kinds: which kind comes first, where there are several."""
    return columns if len(scopes) == 1 else pa.schema([("kind", pa.string()), *columns])


def kinds_reader(readers: Mapping[Scope, pa.RecordBatchReader], columns: pa.Schema) -> pa.RecordBatchReader:
    """Return tables on several kinds of things as one, in the columns of :func:`with_kind`."""

    def batches() -> Iterator[pa.RecordBatch]:
        for scope, reader in readers.items():
            for batch in reader:
                kinds = [pa.repeat(scope.value, batch.num_rows)] * (len(columns) - batch.num_columns)
                yield pa.RecordBatch.from_arrays([*kinds, *batch.columns], schema=columns)

    return pa.RecordBatchReader.from_batches(columns, batches())


def report_path(settings: LakeSettings, target: str, project_id: str) -> str:
    """Return the path of the table with the outcome of every row of a load."""
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
        """Return the path of the table of one project."""
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
