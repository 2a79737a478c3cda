"""The IO manager for small tables: one Parquet file a project, replaced as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import dagster as dg
import pyarrow as pa

from neptune_assets.failures import clear_failures
from neptune_assets.lake import layout
from neptune_assets.lake.storage import Storage
from neptune_assets.settings import LakeSettings
from neptune_assets.summary.tables import write_table


class ParquetTables(dg.IOManager):
    """Stream a ``pa.RecordBatchReader`` into ``<lake>/<stage>/<table>/<project>.parquet``, atomically.

    The data version is a hash of the rows, so that what is downstream runs only when they changed.
    """

    def __init__(self, settings: LakeSettings) -> None:
        self._settings = settings

    def path(self, key: dg.AssetKey, project_id: str) -> str:
        """Return where the table of one project lies."""
        *_, stage, name = key.path
        return f"{self._settings.root.rstrip('/')}/{stage}/{name}/{layout.safe_name(project_id)}.parquet"

    def handle_output(self, context: dg.OutputContext, obj: pa.RecordBatchReader) -> None:
        """Write the rows as they come; nothing is held whole."""
        path = self.path(context.asset_key, context.partition_key)
        hashed = _HashedRows(obj)
        with clear_failures():
            write_table(hashed.reader(), path, self._settings)
        context.step_context.set_data_version(context.asset_key, dg.DataVersion(hashed.hexdigest()))
        context.add_output_metadata({"dagster/uri": path, "dagster/partition_row_count": hashed.rows})

    def load_input(self, context: dg.InputContext) -> pa.RecordBatchReader:
        """Open the table of the partition's project as a stream of batches."""
        import pyarrow.parquet as pq

        path = self.path(context.asset_key, context.partition_key)
        file = pq.ParquetFile(Storage(self._settings.root, self._settings.storage).open(path))
        return pa.RecordBatchReader.from_batches(file.schema_arrow, file.iter_batches())


class _HashedRows:
    """Pass batches through and hash their content on the way."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        self._reader = reader
        self._hash = hashlib.blake2b(digest_size=16)
        self.rows = 0

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self._reader.schema, self._batches())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for batch in self._reader:
            # Rows, not buffers: equal tables hash equally however they were cut into batches.
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                self._hash.update(repr(row).encode())
            self.rows += batch.num_rows
            yield batch
