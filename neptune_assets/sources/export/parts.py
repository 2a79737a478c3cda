"""One Parquet part, opened once: which row groups can hold what is looked for, and their rows in bounded batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from neptune_assets.errors import FileGoneError, NeptuneAssetsError
from neptune_assets.schema import SCHEMA
from neptune_assets.sources.export.conform import KEYS, ColumnError, check_columns, conform_batch
from neptune_assets.sources.export.pages import ChunkSize, chunk_size
from neptune_assets.sources.export.roots import Entry, Root

BATCH_ROWS: Final = 131_072
BATCH_BYTES: Final = 32 << 20
"""Rows and, about, bytes that one batch may have."""
MEMORY_BYTES: Final = 256 << 20
"""What the pages of a row group may take at once; a row group of more is not read."""
FOOTER_BYTES: Final = 64 << 20
_MOST_REFUSED: Final = 1_000
"""Rows of a part that are left out one by one; with more, what is wrong is the part."""
_A_MILLISECOND: Final = {"milliseconds": 1, "microseconds": 1_000, "nanoseconds": 1_000_000}

_READ_ERRORS: Final = (pa.ArrowException, OSError, ValueError, EOFError, ColumnError, NeptuneAssetsError)
"""What reading a damaged part raises, depending on where the damage is."""


class PartError(Exception):
    """A part, or some row groups of it, cannot be read; the message names the part."""


class Part:
    """An open part. Use :func:`open_part`."""

    def __init__(self, name: str, stream: Any, *, memory_bytes: int = MEMORY_BYTES, **options: Any) -> None:
        """Check footer and columns; raises ColumnError for columns that cannot be the format's.

        ``memory_bytes`` is what the pages of a row group may take at once. ``options`` are ParquetFile's.
        """
        self.name = name
        self._stream = stream
        self._memory = memory_bytes
        self._options = {**options, "metadata": _footer(stream)}
        self._metadata = self._options["metadata"]
        schema = self._metadata.schema
        self._leaf = {schema.column(index).path: index for index in range(len(schema))}
        # The four names repeat: without their dictionaries they would be most of what is read.
        names = [name for name in KEYS if name in self._leaf]
        self._reader = pq.ParquetFile(stream, read_dictionary=names, **self._options)
        check_columns(self._reader.schema_arrow)
        self._encoded: pq.ParquetFile | None = None
        self._sizes: dict[tuple[int, int], ChunkSize] = {}

    @property
    def row_groups(self) -> range:
        """Numbers of the row groups."""
        return range(self._metadata.num_row_groups)

    def rows(self, group: int) -> int:
        """Rows of one row group, as the footer says."""
        return int(self._metadata.row_group(group).num_rows)

    @property
    def disagreement(self) -> str | None:
        """What is wrong if the footer's rows in all are not those of its row groups; None if they are."""
        claimed, rows = int(self._metadata.num_rows), sum(self.rows(group) for group in self.row_groups)
        return None if claimed == rows else f"its footer says {claimed:,} rows, its row groups hold {rows:,}"

    def bounds(self, group: int, column: str) -> tuple[Any, Any] | None:
        """Smallest and largest value of a column in a row group as the footer says; None if it does not."""
        statistics = self._statistics(group, column)
        if statistics is None:
            return None
        try:
            return statistics.min, statistics.max
        except (ValueError, OverflowError):
            # Bytes that are no text, or times that Python does not have.
            return None

    def first_time(self, group: int) -> int | None:
        """Earliest ``timestamp`` of a row group in epoch milliseconds, if the footer says it."""
        statistics = self._statistics(group, "timestamp")
        if statistics is None or not isinstance(statistics.min_raw, int):
            return None
        unit = json.loads(statistics.logical_type.to_json()).get("timeUnit")
        divisor = _A_MILLISECOND.get(unit)
        return None if divisor is None else int(statistics.min_raw) // divisor

    def may_hold(self, group: int, column: str, values: Collection[str]) -> bool:
        """Return False only if the row group surely holds none of the values."""
        bounds = self.bounds(group, column)
        return bounds is None or any(bounds[0] <= value <= bounds[1] for value in values)

    def batches(
        self,
        groups: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
        *,
        refused: Callable[[str, int], None] | None = None,
        failed: Callable[[PartError], None] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of row groups in the lake's schema (or some columns of it), in bounded batches.

        Small row groups are read together. Rows with values that the schema cannot hold are left out, and
        ``refused(reason, rows)`` is told. A row group that cannot be read, that would take too much memory, or that has
        another number of rows than the footer says is a PartError: ``failed`` is told of it and the other row groups
        are read, or it is raised.
        """
        wanted = SCHEMA if columns is None else pa.schema([SCHEMA.field(name) for name in columns])
        present = [name for name in wanted.names if name in self._reader.schema_arrow.names]
        read = _Progress(refused)
        for together, batch_rows, reader in self._gather(
            self.row_groups if groups is None else groups, present, failed
        ):
            try:
                yield from self._read(together, batch_rows, reader, present, wanted, read)
                continue
            except PartError as error:
                if failed is None:
                    raise
                if len(together) == 1:
                    failed(error)
                    continue
            # Each by itself, without the rows that came already.
            done = read.rows
            for group in together:
                if done >= self.rows(group):
                    done -= self.rows(group)
                    continue
                try:
                    yield from self._read([group], batch_rows, reader, present, wanted, read, skip=done)
                except PartError as error:
                    failed(error)
                done = 0

    def _read(
        self,
        groups: Sequence[int],
        batch_rows: int,
        reader: pq.ParquetFile,
        present: Sequence[str],
        wanted: pa.Schema,
        read: _Progress,
        skip: int = 0,
    ) -> Iterator[pa.RecordBatch]:
        where = f"row group {groups[0]}" if len(groups) == 1 else f"row groups {groups[0]}-{groups[-1]}"
        read.rows = 0
        with _naming(f"{self.name}, {where}"):
            for batch in reader.iter_batches(batch_rows, row_groups=groups, columns=present):
                fresh = batch.slice(min(max(skip - read.rows, 0), batch.num_rows))
                for piece in _pieces(fresh, BATCH_BYTES):
                    yield from _conformed(piece, wanted, read)
                read.rows += batch.num_rows
            claimed = sum(self.rows(group) for group in groups)
            if present and read.rows != claimed:
                raise ValueError(f"it holds {read.rows:,} rows, its footer says {claimed:,}")

    def _statistics(self, group: int, column: str) -> Any:
        index = self._leaf.get(column)
        if index is None:
            return None
        statistics = self._metadata.row_group(group).column(index).statistics
        return statistics if statistics is not None and statistics.has_min_max else None

    def _gather(
        self, groups: Sequence[int], names: Sequence[str], failed: Callable[[PartError], None] | None
    ) -> Iterator[tuple[list[int], int, pq.ParquetFile]]:
        """Yield row groups to read together, how many rows at a time, and with which reader."""
        leaves = [index for path, index in self._leaf.items() if path.split(".", 1)[0] in names]
        together: list[int] = []
        rows = size = 0
        for group in groups:
            try:
                with _naming(f"{self.name}, row group {group}"):
                    count, (needed, most, encode) = self.rows(group), self._needs(group, leaves)
            except PartError as error:
                if failed is None:
                    raise
                failed(error)
                continue
            alone = needed > BATCH_BYTES or count > BATCH_ROWS or encode or most < BATCH_ROWS
            if together and (alone or rows + count > BATCH_ROWS or size + needed > BATCH_BYTES):
                yield together, BATCH_ROWS, self._reader
                together, rows, size = [], 0, 0
            if alone:
                yield [group], most, self._encoded_reader() if encode else self._reader
                continue
            together.append(group)
            rows += count
            size += needed
        if together:
            yield together, BATCH_ROWS, self._reader

    def _needs(self, group: int, leaves: Sequence[int]) -> tuple[int, int, bool]:
        """Bytes of some columns of a row group, the rows to read at once, and whether to keep texts encoded.

        Raises ValueError if reading would take more memory than allowed.
        """
        metadata = self._metadata.row_group(group)
        rows, claimed = max(1, int(metadata.num_rows)), int(metadata.total_byte_size)
        pages = total = 0
        most, encode = BATCH_ROWS, False
        for leaf in leaves:
            chunk = metadata.column(leaf)
            path = chunk.path_in_schema
            listed = ".list." in path or path.count(".") > 1
            shared = "DELTA_BYTE_ARRAY" in chunk.encodings
            size = self._size(group, leaf, exactly=listed or shared)
            texts = chunk.physical_type == "BYTE_ARRAY" and path not in KEYS
            if texts and chunk.has_dictionary_page and size.dictionary * min(rows, BATCH_ROWS) > self._memory:
                size = self._size(group, leaf, exactly=True)
                encode = encode or size.dictionary * min(rows, BATCH_ROWS) > self._memory
            if size.values is not None:
                pages += size.dictionary + size.page
                total += size.total
            if shared:
                # Each text may begin with all of the one before.
                most = min(most, max(1, BATCH_BYTES // max(1, size.page)))
            if listed:
                values = max(size.values or 0, int(chunk.num_values))
                if 8 * values > self._memory:
                    raise ValueError(f"{path} claims {values:,} values, more than {self._memory >> 20} MiB hold")
                most = min(most, max(1, BATCH_BYTES * rows // (8 * max(values, 1))))
                if texts and size.dictionary * min(rows, BATCH_ROWS) > self._memory:
                    # Arrow decodes texts in lists: as many rows at once as fit if each value is the whole dictionary.
                    most = min(most, max(1, BATCH_BYTES * rows // (size.dictionary * max(values, 1))))
        if pages > self._memory:
            raise ValueError(f"its pages take {pages >> 20:,} MiB at once, more than {self._memory >> 20} MiB")
        needed = max(total, claimed)
        if needed > BATCH_BYTES:
            most = min(most, max(1, BATCH_BYTES // max(1, needed // rows)))
        return needed, most, encode

    def _size(self, group: int, leaf: int, *, exactly: bool) -> ChunkSize:
        size = self._sizes.get((group, leaf))
        if size is None or (exactly and size.values is None):
            size = chunk_size(self._stream, self._metadata.row_group(group).column(leaf), exactly=exactly)
            self._sizes[group, leaf] = size
        return size

    def _encoded_reader(self) -> pq.ParquetFile:
        """A reader that keeps the dictionaries of all texts: one value may be repeated until it fills the memory."""
        if self._encoded is None:
            schema = self._metadata.schema
            texts = [path for path, leaf in self._leaf.items() if schema.column(leaf).physical_type == "BYTE_ARRAY"]
            self._encoded = pq.ParquetFile(self._stream, read_dictionary=texts, **self._options)
        return self._encoded


def _pieces(batch: pa.RecordBatch, most: int) -> Iterator[pa.RecordBatch]:
    """Cut a batch so that its texts take at most so many bytes when they are decoded, or it has one row."""
    if batch.num_rows > 1 and sum(_decoded(column, most) for column in batch.columns) > most:
        half = batch.num_rows // 2
        yield from _pieces(batch.slice(0, half), most)
        yield from _pieces(batch.slice(half), most)
    else:
        yield batch


def _decoded(column: pa.Array, enough: int) -> int:
    """Bytes that the texts of a dictionary-encoded column take when they are decoded, or a lower bound above them."""
    if pt.is_struct(column.type):
        return sum(_decoded(child, enough) for child in column.flatten())
    if pt.is_list(column.type) or pt.is_large_list(column.type):
        return _decoded(column.flatten(), enough)
    if not pt.is_dictionary(column.type) or not len(column.dictionary):
        return 0
    lengths = pc.binary_length(column.dictionary)
    if (pc.max(lengths).as_py() or 0) * len(column) * 8 <= enough:
        return 0
    return int(pc.sum(lengths.take(column.indices)).as_py() or 0)


class _Progress:
    """Rows of row groups read so far, and what is told of rows that are left out."""

    def __init__(self, refused: Callable[[str, int], None] | None) -> None:
        self.rows = 0
        self._told = refused
        self._refused = 0

    def refuse(self, error: ColumnError) -> None:
        """Leave a row out; raises the error if so many are wrong that it is not their values."""
        self._refused += 1
        if self._refused > _MOST_REFUSED:
            raise error
        if self._told is not None:
            self._told(str(error), 1)


def _conformed(batch: pa.RecordBatch, wanted: pa.Schema, read: _Progress) -> Iterator[pa.RecordBatch]:
    """Yield a batch in a schema; if a value of it cannot be held, halves, until its row is left out alone."""
    try:
        yield conform_batch(batch, wanted)
    except ColumnError as error:
        if batch.num_rows == 1:
            read.refuse(error)
            return
        half = batch.num_rows // 2
        yield from _conformed(batch.slice(0, half), wanted, read)
        yield from _conformed(batch.slice(half), wanted, read)


def _footer(stream: Any) -> pq.FileMetaData:
    """Read the footer. Raises ValueError if it claims more than a footer may."""
    end = stream.seek(0, 2)
    end = stream.tell() if end is None else end
    if end >= 8:
        stream.seek(end - 8)
        length = int.from_bytes(stream.read(8)[:4], "little")
        if length > FOOTER_BYTES:
            raise ValueError(f"its footer takes {length >> 20:,} MiB, more than {FOOTER_BYTES >> 20} MiB")
    stream.seek(0)
    return pq.read_metadata(stream)


@contextmanager
def open_part(root: Root, entry: Entry) -> Iterator[Part]:
    """Open one part for reading. Raises PartError if it is gone, damaged, or no part of this format."""
    with _naming(entry.name):
        if entry.special is not None:
            raise OSError(f"it is {entry.special}, not a regular file")
        if entry.size == 0:
            raise EOFError("it is empty")
        stream = _stream(root, entry)
    with stream:
        with _naming(entry.name):
            part = Part(entry.name, stream, pre_buffer=not root.local, buffer_size=1 << 20 if root.local else 0)
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
