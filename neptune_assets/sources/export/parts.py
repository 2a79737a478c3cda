"""One Parquet part of an export: its row groups in bounded batches, cast exactly to the lake's schema.

A page is decompressed whole, so its size is known before it is read only from its header: a Thrift struct in front of
it, as parquet-format's ``parquet.thrift`` (PageHeader) and Thrift's compact protocol describe them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from neptune_assets.errors import FileGoneError, NeptuneAssetsError
from neptune_assets.parquet_footer import read_footer
from neptune_assets.schema import SCHEMA
from neptune_assets.sources.export.roots import Entry, Root

HEADER_BYTES: Final = 1 << 16
"""No header is longer: what makes it long are two bounds of a page, which writers leave out if they are long."""
_RATIOS: Final = {"UNCOMPRESSED": 1, "SNAPPY": 32, "LZ4": 256, "LZ4_RAW": 256, "GZIP": 1_100, "ZSTD": 33_000}
"""How often as large as its compressed bytes a page can be at the most; unknown (BROTLI) is without bound."""
_HARMLESS: Final = 16 << 20
"""A chunk whose pages cannot hold as many bytes is not looked at."""


class PageError(ValueError):
    """The pages of a column cannot be followed."""


@dataclass(frozen=True, slots=True)
class ChunkSize:
    """Bytes of a column chunk, decompressed: its dictionary, its largest page, all of it; and its number of values.

    They are what can be at the most if only that was looked at; ``values`` is None then.
    """

    dictionary: int
    page: int
    total: int
    values: int | None


def chunk_size(stream: Any, chunk: Any, *, exactly: bool) -> ChunkSize:
    """Return how large a chunk (pyarrow's ColumnChunkMetaData) is; unless ``exactly``, small ones are not looked at.

    Raises PageError if its pages are not where the footer says.
    """
    compressed = int(chunk.total_compressed_size)
    most = compressed * _RATIOS.get(chunk.compression, 1 << 40)
    if most <= _HARMLESS and not exactly:
        return ChunkSize(most, most, most, None)
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset is not None:
        start = min(start, chunk.dictionary_page_offset)
    dictionary = page = total = values = 0
    for kind, size, count in _headers(stream, start, start + compressed):
        total += size
        if kind == _DICTIONARY:
            dictionary = max(dictionary, size)
        else:
            page, values = max(page, size), values + count
    return ChunkSize(dictionary, page, total, values)


def _headers(stream: Any, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield type, uncompressed size and number of values of every page between two bytes of a file."""
    while place < end:
        stream.seek(place)
        header = _Thrift(stream.read(min(HEADER_BYTES, end - place)))
        fields = header.struct()
        kind, size, compressed = fields.get(1), fields.get(2), fields.get(3)
        if not (isinstance(kind, int) and isinstance(size, int) and isinstance(compressed, int)):
            raise PageError("a page has no sizes")
        if size < 0 or compressed < 0:
            raise PageError("a page has a negative size")
        inner = fields.get(8) if kind == _DATA_V2 else fields.get(5)
        count = inner.get(1, 0) if isinstance(inner, dict) else 0
        yield kind, size, count if isinstance(count, int) else 0
        place += header.place + compressed
    if place != end:
        raise PageError("its pages end elsewhere than the footer says")


_DICTIONARY: Final = 2
_DATA_V2: Final = 3
_DEPTH: Final = 8


class _Thrift:
    """Reads one struct of Thrift's compact protocol: whole numbers and structs are kept, all else is passed over."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.place = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        if depth > _DEPTH:
            raise PageError("the header of a page is nested too deep")
        while True:
            head = self._byte()
            if head == 0:
                return fields
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = self._value(head & 15, depth)

    def _value(self, kind: int, depth: int) -> Any:
        if kind in {1, 2}:
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in {4, 5, 6}:
            return self._zigzag()
        if kind == 7:
            return self._skip(8)
        if kind == 8:
            return self._skip(self._varint())
        if kind == 12:
            return self.struct(depth + 1)
        raise PageError("the header of a page cannot be understood")

    def _byte(self) -> int:
        if self.place >= len(self._content):
            raise PageError("the header of a page is cut off")
        self.place += 1
        return self._content[self.place - 1]

    def _varint(self) -> int:
        number = shift = 0
        while shift < 70:
            byte = self._byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
        raise PageError("the header of a page cannot be understood")

    def _zigzag(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)

    def _skip(self, count: int) -> None:
        if count > len(self._content) - self.place:
            raise PageError("the header of a page is cut off")
        self.place += count


KEYS: Final = ("project_id", "run_id", "attribute_path", "attribute_type")
"""Columns that a part cannot do without; any other may be missing."""


class ColumnError(Exception):
    """A column of a part holds something other than the format says."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(f"column {column} {reason}")
        self.column = column


def check_columns(found: pa.Schema) -> None:
    """Raise ColumnError for the first column that is missing and needed, doubled, or of a type that cannot be cast."""
    for field in SCHEMA:
        indices = found.get_all_field_indices(field.name)
        if len(indices) > 1:
            raise ColumnError(field.name, "is there more than once")
        if not indices:
            if field.name in KEYS:
                raise ColumnError(field.name, "is missing")
        elif not _castable(found.field(indices[0]).type, field.type):
            raise ColumnError(field.name, f"is {found.field(indices[0]).type}, where {field.type} belongs")


def conform_batch(batch: pa.RecordBatch, schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    """Return the batch in ``schema``: extra columns left out, missing ones null, others cast exactly.

    Raises ColumnError if a cast would change a value.
    """
    columns = []
    for field in schema:
        index = batch.schema.get_field_index(field.name)
        column = pa.nulls(batch.num_rows, field.type) if index < 0 else batch.column(index)
        column = column if column.type.equals(field.type) else _cast(column, field)
        _check_text(column, field)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cast(column: pa.Array, field: pa.Field) -> pa.Array:
    try:
        if pt.is_dictionary(column.type):
            column = column.dictionary_decode()
        return column.cast(field.type, safe=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise ColumnError(field.name, f"cannot be cast from {column.type} exactly: {error}") from error


def _check_text(column: pa.Array, field: pa.Field) -> None:
    """Raise ColumnError for bytes that are not text: one of them would end every query over the project."""
    if pt.is_string(field.type) or pt.is_nested(field.type):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise ColumnError(field.name, f"is damaged: {error}") from error


def _castable(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Tell whether all or some values of a type can be cast exactly; those that cannot are found when casting."""
    if pt.is_dictionary(found):
        found = found.value_type
    if found.equals(wanted) or pt.is_null(found):
        return True
    if pt.is_string(wanted):
        return bool(pt.is_large_string(found) or pt.is_string_view(found))
    if pt.is_timestamp(wanted):
        return bool(pt.is_timestamp(found))
    if pt.is_decimal(wanted):
        return bool(pt.is_decimal(found) or pt.is_integer(found))
    if pt.is_int64(wanted):
        return bool(pt.is_integer(found))
    if pt.is_float64(wanted):
        return bool(pt.is_floating(found) or pt.is_integer(found))
    if pt.is_list(wanted):
        return (pt.is_list(found) or pt.is_large_list(found)) and _castable(found.value_type, wanted.value_type)
    if pt.is_struct(wanted):
        if not pt.is_struct(found):
            return False
        have = {found.field(index).name: found.field(index).type for index in range(found.num_fields)}
        return set(have) == {wanted.field(index).name for index in range(wanted.num_fields)} and all(
            _castable(have[wanted.field(index).name], wanted.field(index).type) for index in range(wanted.num_fields)
        )
    return False


BATCH_ROWS: Final = 131_072
BATCH_BYTES: Final = 32 << 20
"""Rows and, about, bytes that one batch may have."""
MEMORY_BYTES: Final = 256 << 20
"""What the pages of a row group may take at once; a row group of more is not read."""
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
        self._options = {**options, "metadata": read_footer(stream)}
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
            # Bytes that are not text, or times that Python does not have.
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
