"""Rows of one run, collected column by column and turned into Arrow batches of the one schema.

Every type of attribute has a buffer of plain Python arrays; a full buffer becomes a batch with vectorised
conversions only. Batches hold rows of one attribute type each.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.schema import (
    MAX_STEP,
    MAX_TIME,
    MICROSTEPS,
    MIN_TIME,
    SCHEMA,
    STEP_TYPE,
    TIME_TYPE,
    VALUE_COLUMN,
    AttributeType,
)
from neptune_assets.sources.times import YEAR_1, YEAR_10000
from neptune_assets.sources.values import printable

BATCH_ROWS: Final = 65_536
BATCH_BYTES: Final = 16 * 1024 * 1024
"""A batch closes at this many bytes of strings and lists, since one string may be a mebibyte."""

Ints = npt.NDArray[np.int64]
_STEP_LIMIT: Final = MAX_STEP * MICROSTEPS
NO_TIME: Final = -(2**63)
"""Stands for the step or time of a row that has none: nothing that passes the checks comes near it."""


class RowBuilder:
    """Collects rows of one run and gives them back as batches.

    ``keep(path, attribute_type)`` is asked once for every attribute; rows of attributes it refuses are dropped.
    Steps are whole micro-steps, times are epoch milliseconds in UTC. A value that no row can hold (a step or time out
    of range, an int beyond 64 bits, a string that is not Unicode) raises ValueError and leaves the builder unchanged.
    With ``escape``, strings that are not Unicode are kept as :func:`~.values.printable` has them and are counted.
    """

    def __init__(self, project_id: str, run_id: str, keep: Callable[[str, str], bool], *, escape: bool = False) -> None:
        self.project_id = project_id
        self.run_id = run_id
        self._keep = keep
        self._escape = escape
        self._buffers: dict[AttributeType, _Buffer] = {}
        self._ready: list[pa.RecordBatch] = []

    @property
    def ready(self) -> bool:
        """True if :meth:`drain` would give batches."""
        return bool(self._ready)

    @property
    def escaped(self) -> int:
        """How many paths and values were not Unicode and are kept with escapes."""
        return sum(buffer.escaped for buffer in self._buffers.values())

    def drain(self) -> list[pa.RecordBatch]:
        """Take the batches that are full; call it often, for what is not taken stays in memory."""
        ready, self._ready = self._ready, []
        return ready

    def flush(self) -> list[pa.RecordBatch]:
        """Take everything, full or not."""
        for buffer in self._buffers.values():
            self._close(buffer)
        return self.drain()

    def attributes(self) -> dict[str, int]:
        """Distinct attributes that have been added and kept so far, by attribute type."""
        return {str(kind): buffer.kept for kind, buffer in self._buffers.items() if buffer.kept}

    def conflicts(self) -> dict[str, list[str]]:
        """Paths that have rows of more than one type, with the types."""
        first: dict[str, str] = {}
        found: dict[str, list[str]] = {}
        for kind, buffer in self._buffers.items():
            for path in buffer.names:
                other = first.setdefault(path, str(kind))
                if other != kind:
                    found.setdefault(path, [other]).append(str(kind))
        return found

    def point(self, attribute_type: AttributeType, path: str, step: int, time: int | None, value: Any) -> None:
        """Add a point of a series.

        ``value`` is a float, a string, a file reference, or for histograms ``(type, edges, values)``.
        """
        buffer = self._buffers.get(attribute_type) or self._open(attribute_type)
        code = buffer.code(path)
        if code < 0:
            return
        _check(step, time)
        if buffer.add(code, step, time, value):
            self._close(buffer)

    def float_points(self, paths: Sequence[str], step: int, time: int | None, values: Sequence[float]) -> None:
        """Add one point to each of many float series, all at one step and time: several times as fast as one by one."""
        attribute_type = AttributeType.FLOAT_SERIES
        buffer = self._buffers.get(attribute_type) or self._open(attribute_type)
        _check(step, time)
        if buffer.extend(paths, step, time, values):
            self._close(buffer)

    def float_series(self, path: str, steps: array[int], times: array[int], bits: array[int]) -> None:
        """Add points of one float series: arrays of micro-steps, epoch milliseconds and the 64 bits of each value.

        Steps and times are taken as they are: they must have been checked before.
        """
        attribute_type = AttributeType.FLOAT_SERIES
        buffer = self._buffers.get(attribute_type) or self._open(attribute_type)
        code = buffer.code(path)
        if code >= 0 and buffer.series(code, steps, times, bits):
            self._close(buffer)

    def value(self, attribute_type: AttributeType, path: str, value: Any) -> None:
        """Add an attribute that is not a series.

        ``value`` is a float, int, string, bool, epoch milliseconds (datetime), a sequence of strings (string_set), or
        a reference (file, file_set, artifact).
        """
        buffer = self._buffers.get(attribute_type) or self._open(attribute_type)
        code = buffer.code(path)
        if code >= 0 and buffer.add(code, None, None, value):
            self._close(buffer)

    def wants(self, attribute_type: AttributeType, path: str) -> bool:
        """True if rows of this attribute are kept; asking does not count as adding."""
        return self._keep(path, str(attribute_type))

    def _open(self, attribute_type: AttributeType) -> _Buffer:
        buffer = self._buffers[attribute_type] = _Buffer(attribute_type, self._keep, self._escape)
        return buffer

    def _close(self, buffer: _Buffer) -> None:
        if len(buffer.codes):
            self._ready.append(buffer.batch(self.project_id, self.run_id))


class _Buffer:
    """Rows of one attribute type. Paths are kept once and rows hold their number; -1 marks a path left out."""

    def __init__(self, attribute_type: AttributeType, keep: Callable[[str, str], bool], escape: bool) -> None:
        self.attribute_type = attribute_type
        self._keep = keep
        self._escape = escape
        self.escaped = 0
        self._numbers: dict[str, int] = {}
        self.names: list[str] = []
        self.kept = 0
        self._column = VALUE_COLUMN[attribute_type]
        self._reset()

    def _reset(self) -> None:
        self.codes = array("q")
        self._steps = array("q")
        self._times = array("q")
        self._values: Any = array("d") if self._column == "float_value" else []
        self._bytes = 0

    def code(self, path: str) -> int:
        """Number of a path in this buffer, or -1 if it is left out."""
        try:
            return self._numbers[path]
        except KeyError:
            pass
        if not self._keep(path, str(self.attribute_type)):
            self._numbers[path] = -1
            return -1
        name = self._readable(path)
        number = self._numbers[path] = len(self.names)
        self.names.append(name)
        self.kept += 1
        return number

    def add(self, code: int, step: int | None, time: int | None, value: Any) -> bool:
        """Add one row; True if the buffer is full."""
        if self._column == "float_value":
            self._values.append(value)
        else:
            try:
                self._bytes += check_value(self._column, value)
            except UnicodeEncodeError:
                if self._column == "string_set_value":
                    value = [self._readable(item) for item in value]
                elif self._column == "string_value":
                    value = self._readable(value)
                self._bytes += check_value(self._column, value)
            self._values.append(value)
        self.codes.append(code)
        self._steps.append(NO_TIME if step is None else step)
        self._times.append(NO_TIME if time is None else time)
        return len(self.codes) >= BATCH_ROWS or self._bytes >= BATCH_BYTES

    def _readable(self, text: str) -> str:
        """A string as UTF-8 holds it; raises ValueError if it does not and is not to be changed."""
        known = printable(text) if self._escape else text
        _unicode(known)
        self.escaped += known != text
        return known

    def extend(self, paths: Sequence[str], step: int, time: int | None, values: Sequence[float]) -> bool:
        """Add one float row for each path; True if the buffer is full."""
        try:
            codes = [self._numbers[path] for path in paths]
        except KeyError:
            codes = [self.code(path) for path in paths]
        if -1 in codes:
            values = [value for code, value in zip(codes, values, strict=True) if code >= 0]
            codes = [code for code in codes if code >= 0]
        self._values.extend(values)
        self.codes.extend(codes)
        self._steps.extend((step,) * len(codes))
        self._times.extend((NO_TIME if time is None else time,) * len(codes))
        return len(self.codes) >= BATCH_ROWS

    def series(self, code: int, steps: array[int], times: array[int], bits: array[int]) -> bool:
        """Add float rows of one path, values as their 64 bits; True if the buffer is full."""
        self._values.frombytes(bits.tobytes())
        self.codes.extend(array("q", (code,)) * len(steps))
        self._steps.extend(steps)
        self._times.extend(times)
        return len(self.codes) >= BATCH_ROWS

    def batch(self, project_id: str, run_id: str) -> pa.RecordBatch:
        """Turn the buffer into a batch and empty it."""
        used, positions = np.unique(np.frombuffer(self.codes, dtype=np.int64), return_inverse=True)
        batch = rows_of_series(
            project_id,
            [run_id],
            self.attribute_type,
            [self.names[number] for number in used.tolist()],
            positions,
            np.frombuffer(self._steps, dtype=np.int64),
            np.frombuffer(self._times, dtype=np.int64),
            np.frombuffer(self._values, dtype=np.float64) if self._column == "float_value" else self._values,
        )
        self._reset()
        return batch


def rows_of_series(
    project_id: str,
    run_ids: Sequence[str],
    kind: AttributeType,
    paths: Sequence[str] | pa.Array,
    series: Ints,
    steps: Ints,
    times: Ints,
    values: Any,
    runs: Ints | None = None,
) -> pa.RecordBatch:
    """Make a batch of rows of one attribute type.

    ``series`` has for each row its position in ``paths``; ``steps`` and ``times`` are micro-steps and epoch
    milliseconds, :data:`NO_TIME` where there is none; ``values`` is an array of floats or a list. ``runs`` has for each
    row the position of its run in ``run_ids``; it is left out if there is only one.
    """
    count = len(series)
    run_names = pa.array(run_ids, pa.string())
    if not isinstance(paths, pa.Array):
        paths = pa.array(paths, pa.string())
    column = VALUE_COLUMN[kind]
    columns = {
        "project_id": pa.repeat(pa.scalar(project_id, pa.string()), count),
        "run_id": pa.repeat(run_names[0], count) if runs is None else run_names.take(pa.array(runs)),
        "attribute_path": paths.take(pa.array(series)),
        "attribute_type": pa.repeat(pa.scalar(str(kind), pa.string()), count),
        "step": decimal_steps(steps),
        "timestamp": _times(times),
        column: value_array(column, values),
    }
    return rows_of(columns, count)


def rows_of(columns: Mapping[str, pa.Array], count: int) -> pa.RecordBatch:
    """Make a batch of the one schema; columns that are not given are null."""
    arrays = [columns[field.name] if field.name in columns else pa.nulls(count, field.type) for field in SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def value_array(column: str, values: Any) -> pa.Array:
    """Make a value column of what :class:`RowBuilder` takes as values, which must have been checked."""
    if column == "file_value":
        return pa.StructArray.from_arrays([pa.array(values, pa.string())], names=["path"])
    if column == "histogram_value":
        return _histograms(values)
    field = SCHEMA.field(column)
    if column == "datetime_value":
        return pa.array(values, pa.int64()).cast(field.type)
    return pa.array(values, field.type)


def together(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Join small batches: every batch costs its reader the same, however small it is. Large ones are passed on."""
    waiting: list[pa.RecordBatch] = []
    count = size = 0
    for batch in batches:
        large = 2 * batch.num_rows >= BATCH_ROWS or 2 * batch.nbytes >= BATCH_BYTES
        if waiting and (large or count + batch.num_rows > BATCH_ROWS or size + batch.nbytes > BATCH_BYTES):
            yield _joined(waiting)
            waiting, count, size = [], 0, 0
        if large:
            yield batch
            continue
        waiting.append(batch)
        count += batch.num_rows
        size += batch.nbytes
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def check_value(column: str, value: Any) -> int:
    """Bytes a value takes, roughly; raises ValueError if the column (any but ``float_value``) cannot hold it."""
    if column in {"string_value", "file_value"}:
        return _unicode(value)
    if column == "histogram_value":
        kind, edges, values = value
        return 16 + 8 * (len(edges) + len(values)) + _unicode(kind)
    if column == "string_set_value":
        return 16 + sum(_unicode(item) + 8 for item in value)
    if column == "int_value" and not -(2**63) <= value < 2**63:
        raise ValueError(f"int {value} does not fit 64 bits")
    if column == "datetime_value" and not MIN_TIME <= value <= MAX_TIME:
        raise ValueError(f"time {value} ms is out of range")
    return 8


def is_time(milliseconds: int) -> bool:
    """True if every reader of a row can hold this time, in epoch milliseconds: from the year 1 to 9999."""
    return YEAR_1 <= milliseconds < YEAR_10000


def _check(step: int, time: int | None) -> None:
    """Raise ValueError for a step or a time that no row can hold."""
    if not -_STEP_LIMIT < step < _STEP_LIMIT:
        raise ValueError(f"step {step / MICROSTEPS} is out of range")
    if time is not None and not MIN_TIME <= time <= MAX_TIME:
        raise ValueError(f"time {time} ms is out of range")


def decimal_steps(micros: Ints) -> pa.Array:
    """Turn whole micro-steps into exact decimals; the lowest int64 becomes null."""
    null = micros == NO_TIME
    words = np.empty((len(micros), 2), dtype="<i8")
    words[:, 0] = micros
    words[:, 1] = micros >> 63
    valid = pa.array(~null).buffers()[1] if null.any() else None
    return pa.Array.from_buffers(STEP_TYPE, len(micros), [valid, pa.py_buffer(words)])


def _times(milliseconds: Ints) -> pa.Array:
    null = milliseconds == NO_TIME
    return pa.array(milliseconds, pa.int64(), mask=null if null.any() else None).cast(TIME_TYPE)


def _histograms(values: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> pa.Array:
    def lists(position: int) -> pa.Array:
        offsets = np.zeros(len(values) + 1, dtype=np.int32)
        np.cumsum([len(value[position]) for value in values], out=offsets[1:])
        flat = [number for value in values for number in value[position]]
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, pa.float64()))

    kinds = pa.array([value[0] for value in values], pa.string())
    return pa.StructArray.from_arrays([kinds, lists(1), lists(2)], names=["type", "edges", "values"])


def _unicode(text: str) -> int:
    """Length of the text in UTF-8; raises ValueError (UnicodeEncodeError) for lone surrogates."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))
