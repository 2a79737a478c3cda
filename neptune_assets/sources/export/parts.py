"""One Parquet part, opened once: which row groups can hold what is looked for, and their rows in bounded batches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from neptune_assets.errors import FileGoneError, NeptuneAssetsError
from neptune_assets.schema import SCHEMA
from neptune_assets.sources.export.conform import ColumnError, check_columns, conform_batch
from neptune_assets.sources.export.roots import Entry, Root

BATCH_ROWS: Final = 131_072
BATCH_BYTES: Final = 32 << 20
"""Rows and, about, bytes that one batch may have."""

_READ_ERRORS: Final = (pa.ArrowException, OSError, ValueError, EOFError, ColumnError, NeptuneAssetsError)
"""What reading a damaged part raises, depending on where the damage is."""


class PartError(Exception):
    """A part, or some row groups of it, cannot be read; the message names the part."""


class Part:
    """An open part. Use :func:`open_part`."""

    def __init__(self, name: str, reader: pq.ParquetFile) -> None:
        """Check the columns; raises ColumnError for those that cannot be the format's."""
        check_columns(reader.schema_arrow)
        self.name = name
        self._reader = reader
        self._metadata = reader.metadata
        flat = [reader.schema.column(index).path for index in range(len(reader.schema))]
        self._leaf = {path: index for index, path in enumerate(flat)}

    @property
    def row_groups(self) -> range:
        """Numbers of the row groups."""
        return range(self._metadata.num_row_groups)

    def rows(self, group: int) -> int:
        """Rows of one row group."""
        return int(self._metadata.row_group(group).num_rows)

    def bounds(self, group: int, column: str) -> tuple[Any, Any] | None:
        """Smallest and largest value of a column in a row group as the footer says; None if it does not."""
        index = self._leaf.get(column)
        if index is None:
            return None
        statistics = self._metadata.row_group(group).column(index).statistics
        if statistics is None or not statistics.has_min_max:
            return None
        return statistics.min, statistics.max

    def may_hold(self, group: int, column: str, values: Collection[str]) -> bool:
        """Return False only if the row group surely holds none of the values."""
        bounds = self.bounds(group, column)
        return bounds is None or any(bounds[0] <= value <= bounds[1] for value in values)

    def batches(
        self, groups: Sequence[int] | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of row groups in the lake's schema (or some columns of it), in bounded batches.

        Small row groups are read together. Raises PartError at the first row group that cannot be read.
        """
        wanted = SCHEMA if columns is None else pa.schema([SCHEMA.field(name) for name in columns])
        present = [name for name in wanted.names if name in self._reader.schema_arrow.names]
        for together, batch_rows in self._gather(self.row_groups if groups is None else groups):
            where = f"row group {together[0]}" if len(together) == 1 else f"row groups {together[0]}-{together[-1]}"
            with _naming(f"{self.name}, {where}"):
                for batch in self._reader.iter_batches(batch_rows, row_groups=together, columns=present):
                    yield conform_batch(batch, wanted)

    def _gather(self, groups: Sequence[int]) -> Iterator[tuple[list[int], int]]:
        together: list[int] = []
        rows = size = 0
        for group in groups:
            metadata = self._metadata.row_group(group)
            if together and (rows + metadata.num_rows > BATCH_ROWS or size + metadata.total_byte_size > BATCH_BYTES):
                yield together, BATCH_ROWS
                together, rows, size = [], 0, 0
            together.append(group)
            rows += metadata.num_rows
            size += metadata.total_byte_size
            if size > BATCH_BYTES or rows > BATCH_ROWS:
                row_bytes = max(1, size // max(1, rows))
                yield together, max(1, min(BATCH_ROWS, BATCH_BYTES // row_bytes))
                together, rows, size = [], 0, 0
        if together:
            yield together, BATCH_ROWS


@contextmanager
def open_part(root: Root, entry: Entry) -> Iterator[Part]:
    """Open one part for reading. Raises PartError if it is gone, damaged, or no part of this format."""
    with _naming(entry.name):
        if entry.size == 0:
            raise EOFError("it is empty")
        stream = _stream(root, entry)
    with stream:
        with _naming(entry.name):
            reader = pq.ParquetFile(stream, pre_buffer=not root.local, buffer_size=1 << 20 if root.local else 0)
            part = Part(entry.name, reader)
        yield part


def _stream(root: Root, entry: Entry) -> Any:
    if not root.local or not root.below(entry.path):
        return root.open(entry.path)
    try:
        return pa.OSFile(entry.path)
    except FileNotFoundError as error:
        raise FileGoneError(f"{entry.path} is gone.", hint="Restore it.") from error


@contextmanager
def _naming(what: str) -> Iterator[None]:
    try:
        yield
    except _READ_ERRORS as error:
        reason = str(error).strip().split("\n", 1)[0].rstrip(".")
        raise PartError(f"{what} cannot be read: {reason}.") from error
