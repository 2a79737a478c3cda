"""Sorting more than memory should hold: rows are kept while they are few, else spilled to disk and sorted by DuckDB."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


class SortedSpool:
    """Takes batches in any order and gives them back sorted by ``keys``, with bounded memory.

    ``limit_rows`` and ``limit_bytes`` bound what is held before it goes to a temporary file below ``scratch``;
    ``memory_mb`` bounds the sort. Ties keep no particular order, so ``keys`` should name a row.
    """

    def __init__(
        self,
        schema: pa.Schema,
        keys: Sequence[str],
        *,
        limit_rows: int,
        limit_bytes: int,
        memory_mb: int,
        scratch: str | None,
    ) -> None:
        self._schema, self._keys = schema, list(keys)
        self._limit_rows, self._limit_bytes, self._memory_mb, self._scratch = (
            limit_rows,
            limit_bytes,
            memory_mb,
            scratch,
        )
        self._held: list[Any] = []
        self._bytes = 0
        self._rows_held = 0
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._writer: Any = None
        self.rows = 0

    @property
    def spilled(self) -> bool:
        """True once rows went to disk."""
        return self._directory is not None

    def add(self, batch: pa.RecordBatch) -> None:
        """Take a batch of the schema."""
        self._held.append(batch)
        self.rows += batch.num_rows
        self._rows_held += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows_held > self._limit_rows or self._bytes > self._limit_bytes:
            self._spill()

    def _spill(self) -> None:
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="neptune_assets-", dir=self._scratch)
            self._writer = pq.ParquetWriter(
                Path(self._directory.name) / "rows.parquet", self._schema, compression="lz4", use_dictionary=False
            )
        self._writer.write_table(pa.Table.from_batches(self._held, self._schema))
        self._held, self._bytes, self._rows_held = [], 0, 0

    def sorted(self, batch_rows: int = 65_536) -> Iterator[pa.RecordBatch]:
        """Yield everything in order; call once."""
        if self._directory is None:
            table = pa.Table.from_batches(self._held, self._schema)
            self._held = []
            yield from table.sort_by([(key, "ascending") for key in self._keys]).to_batches(max_chunksize=batch_rows)
            return
        self._spill()
        self._writer.close()
        import duckdb

        config: dict[str, Any] = {
            "memory_limit": f"{self._memory_mb}MiB",
            "temp_directory": str(Path(self._directory.name) / "sort"),
            "threads": 1,
            "preserve_insertion_order": False,
        }
        with duckdb.connect(config=config) as connection:
            connection.execute("SET enable_progress_bar = false")
            rows = connection.sql(
                f"SELECT * FROM read_parquet(?) ORDER BY {', '.join(self._keys)}",  # noqa: S608 (column names of ours)
                params=[str(Path(self._directory.name) / "rows.parquet")],
            )
            reader: Any = rows.to_arrow_reader(batch_rows)
            for batch in reader:
                yield batch.cast(self._schema)

    def close(self) -> None:
        """Remove the temporary files."""
        if self._writer is not None:
            self._writer.close()
        if self._directory is not None:
            self._directory.cleanup()
