"""A run's content digest: the same for the same rows and file contents, whatever the batches, parts or storage.

Rows come sorted by (attribute_path, attribute_type, step, timestamp), in any batches. Every attribute is hashed by
itself, as columns: steps, times, which values are null, and the values' bytes. Floats count by their bits, with one
NaN for all and -0.0 apart from 0.0; string sets count sorted; files count by size and sha256 of their contents (and
member names), not by where they are stored. The run's digest covers all attribute digests.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.lake.manifest import FileRecord, RunRecord
from neptune_assets.lake.rows import NONE, raw, validity
from neptune_assets.schema import FILE_TYPES, VALUE_COLUMN

VERSION: Final = "neptune_assets-digest-1"
_SIZE: Final = 16
_NAN: Final = np.uint64(0x7FF8000000000000)
_FILE_TYPES: Final = frozenset(str(kind) for kind in FILE_TYPES)
_COLUMN: Final[Mapping[str, str]] = {str(kind): column for kind, column in VALUE_COLUMN.items()}

FileContent = Callable[[str, int | None, str], Sequence[FileRecord]]
"""From (attribute path, micro-step or None, lake path) to the records of the files there."""


class RunDigest:
    """Takes compact rows of one run in sorted order and returns the digest of all."""

    def __init__(self, names: Sequence[tuple[str, str]], files: FileContent | None = None) -> None:
        self._names = names
        self._files = files
        self._run = blake2b(digest_size=_SIZE, person=VERSION.encode()[:16])
        self._current: _AttributeDigest | None = None
        self._current_id = -1

    def update(self, rows: pa.RecordBatch) -> None:
        """Take the next compact rows."""
        if rows.num_rows:
            self.take(HashedColumns(rows), 0, rows.num_rows)

    def take(self, columns: HashedColumns, first: int, last: int) -> None:
        """Take the rows from ``first`` to before ``last``, where attributes begin and end."""
        steps, times = columns.steps, columns.times
        for start, end, current in columns.segments(first, last):
            path, kind = self._names[current]
            if current != self._current_id:
                self._finish()
                self._current = _AttributeDigest(path, kind)
                self._current_id = current
            column = _COLUMN.get(kind)
            if column is None:
                raise ValueError(f"attribute type {kind!r} of {path!r} is unknown")
            if kind in _FILE_TYPES:
                values = self._file_streams(path, columns.rows, steps, start, end)
            else:
                feed = columns.feed(column)
                values = _null_streams(end - start, column) if feed is None else feed(start, end)
            assert self._current is not None  # noqa: S101 - for the type checker
            self._current.update(end - start, steps[start:end], times[start:end], values)

    def hexdigest(self) -> str:
        """Return the digest of all rows taken; nothing may be added afterwards."""
        self._finish()
        return self._run.hexdigest()

    def _finish(self) -> None:
        if self._current is not None:
            self._run.update(self._current.digest())
        self._current = None

    def _file_streams(
        self, path: str, rows: pa.RecordBatch, steps: npt.NDArray[np.int64], start: int, end: int
    ) -> list[bytes]:
        place = rows.schema.get_field_index("file_value")
        paths: list[str | None] = [None] * (end - start)
        if place >= 0:
            paths = pc.struct_field(rows.column(place).slice(start, end - start), "path").to_pylist()
        valid, content = bytearray(), bytearray()
        for number, lake_path in enumerate(paths):
            valid.append(lake_path is not None)
            if lake_path is None:
                continue
            step = None if steps[start + number] == NONE else int(steps[start + number])
            records = [] if self._files is None else self._files(path, step, lake_path)
            content += struct.pack("<q", len(records))
            for record in sorted(records, key=lambda item: item.member or ""):
                member = (record.member or "").encode("utf-8", "surrogatepass")
                content += struct.pack("<qq", len(member), record.size) + member + bytes.fromhex(record.sha256)
        return [bytes(valid), bytes(content)]


class HashedColumns:
    """Compact rows as the digests of runs want them: where attributes begin and end, and the bytes of columns."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        self.rows = rows
        self.steps, self.times = rows["step"].to_numpy(), rows["time"].to_numpy()
        ids = rows["attribute"].to_numpy()
        edges = np.flatnonzero(np.diff(ids)) + 1
        self._edges = [0, *edges.tolist(), len(ids)]
        self._ids = ids[self._edges[:-1]].tolist()
        self._feeds: dict[str, _Feed | None] = {}

    def segments(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Where each attribute of these rows begins and ends, and its number."""
        place = bisect_left(self._edges, first)
        while self._edges[place] < last:
            yield self._edges[place], self._edges[place + 1], self._ids[place]
            place += 1

    def feed(self, column: str) -> _Feed | None:
        """The bytes of a value column; None if no row has any."""
        if column not in self._feeds:
            self._feeds[column] = _feed(self.rows, column)
        return self._feeds[column]


def digest_of_project(records: Iterable[RunRecord]) -> str:
    """Return the content digest of a project: run ids, their digests and states, in any order."""
    total = blake2b(digest_size=_SIZE, person=b"neptune-project1")
    for record in sorted(records, key=lambda item: item.run_id):
        for text in (record.run_id, record.digest, record.state):
            total.update(_framed(text))
    return total.hexdigest()


class _AttributeDigest:
    """Hashes of one attribute's columns, fed piece by piece."""

    def __init__(self, path: str, kind: str) -> None:
        self._head = _framed(path) + _framed(kind)
        self._count = 0
        self._streams: list[Any] = []

    def update(
        self, count: int, steps: npt.NDArray[np.int64], times: npt.NDArray[np.int64], values: Sequence[Any]
    ) -> None:
        pieces = (steps.tobytes(), times.tobytes(), *values)
        if not self._streams:
            self._streams = [blake2b(piece, digest_size=_SIZE) for piece in pieces]
        else:
            for stream, piece in zip(self._streams, pieces, strict=True):
                stream.update(piece)
        self._count += count

    def digest(self) -> bytes:
        body = b"".join(stream.digest() for stream in self._streams)
        return blake2b(self._head + struct.pack("<q", self._count) + body, digest_size=_SIZE).digest()


_Feed = Callable[[int, int], list[Any]]
"""From a range of rows to the bytes of each stream of a value column, the first being one byte a row: not null."""

_STREAMS: Final[Mapping[str, int]] = {
    "int_value": 2,
    "float_value": 2,
    "string_value": 3,
    "bool_value": 2,
    "datetime_value": 2,
    "string_set_value": 2,
    "histogram_value": 8,
}


def _null_streams(count: int, column: str) -> list[Any]:
    """What a feed returns for rows that are all null."""
    empty = [b""] * (_STREAMS[column] - 1)
    return [bytes(count), *empty]


def _feed(rows: pa.RecordBatch, column: str) -> _Feed | None:
    place = rows.schema.get_field_index(column)
    if place < 0:
        return None
    array = rows.column(place)
    if column == "float_value":
        return _numbers(array, float_bits(array))
    if column == "int_value":
        return _numbers(array, raw(array, np.int64))
    if column == "datetime_value":
        return _numbers(array, raw(array, np.int64))
    if column == "bool_value":
        return _numbers(array, pc.fill_null(array, False).cast(pa.uint8()).to_numpy())
    if column == "string_value":
        return lambda start, end: _strings(array.slice(start, end - start))
    if column == "string_set_value":
        return lambda start, end: _sets(array.slice(start, end - start))
    return lambda start, end: _histograms(array.slice(start, end - start))


def float_bits(array: pa.Array) -> npt.NDArray[np.uint64]:
    """Return the bits of float64 values, the same for every NaN; anything for null."""
    bits: npt.NDArray[np.uint64] = raw(array, np.uint64)
    nan = np.isnan(bits.view(np.float64))
    return np.where(nan, _NAN, bits) if nan.any() else bits


def _numbers(array: pa.Array, values: npt.NDArray[Any]) -> _Feed:
    valid = _validity(array)
    if not array.null_count:
        return lambda start, end: [valid[start:end].tobytes(), values[start:end].tobytes()]

    def feed(start: int, end: int) -> list[Any]:
        some = valid[start:end]
        return [some.tobytes(), values[start:end][some.view(np.bool_)].tobytes()]

    return feed


def _strings(array: pa.Array) -> list[Any]:
    valid = _validity(array).tobytes()
    if array.null_count:
        array = array.drop_null()
    lengths, data = _lengths_and_bytes(array)
    return [valid, lengths, data]


def _sets(array: pa.Array) -> list[Any]:
    valid, content = bytearray(), bytearray()
    for members in array.to_pylist():
        valid.append(members is not None)
        if members is not None:
            content += struct.pack("<q", len(members))
            for member in sorted(members, key=lambda text: (text is not None, text or "")):
                content += b"\x00" if member is None else b"\x01" + _framed(member)
    return [bytes(valid), bytes(content)]


def _histograms(array: pa.Array) -> list[Any]:
    valid = _validity(array).tobytes()
    if array.null_count:
        array = array.drop_null()
    kinds = pc.struct_field(array, "type")
    streams: list[Any] = [valid, _validity(kinds).tobytes(), *_lengths_and_bytes(kinds.drop_null())]
    for name in ("edges", "values"):
        lists = pc.struct_field(array, name)
        numbers = lists.flatten()
        bits = float_bits(numbers)
        if numbers.null_count:
            # A null inside a list is not a number: bits that no float of ours has.
            bits = np.where(_validity(numbers).view(np.bool_), bits, _NAN + np.uint64(1))
        streams.append(pc.fill_null(pc.list_value_length(lists).cast(pa.int64()), -1).to_numpy().tobytes())
        streams.append(bits.tobytes())
    return streams


def _validity(array: pa.Array) -> npt.NDArray[np.uint8]:
    return validity(array).view(np.uint8)


def _lengths_and_bytes(array: pa.Array) -> tuple[bytes, bytes]:
    """Return the int64 lengths and the joined UTF-8 bytes of strings without nulls."""
    if not len(array):
        return b"", b""
    _, offsets_buffer, data = array.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[array.offset : array.offset + len(array) + 1]
    text = b"" if data is None else memoryview(data)[int(offsets[0]) : int(offsets[-1])].tobytes()
    return np.diff(offsets).astype(np.int64).tobytes(), text


def _framed(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<q", len(raw)) + raw
