"""The history: one row for each step, made by merging all series of a run in the exact order of their steps.

Metrics are encoded many at a time: Arrow turns the numbers into text and joins them with what is constant for a key.
Histograms, tables and media come as *events*, already encoded, and join the row of their step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.lake.layout import format_step
from neptune_assets.targets.wandb.columns import NO_TIME, Ints
from neptune_assets.targets.wandb.mapping import AXIS, LINE_BYTES, Stepping
from neptune_assets.targets.wandb.records import field_bytes, history_fields, varint

POINTS: Final = pa.schema([("step", pa.int64()), ("key", pa.int64()), ("time", pa.int64()), ("value", pa.float64())])
EVENTS: Final = pa.schema(
    [
        ("step", pa.int64()),
        ("key", pa.int64()),
        ("time", pa.int64()),
        ("type", pa.string()),
        ("item", pa.large_binary()),
    ]
)
_LENGTHS: Final = 32
"""More than the characters that the text of a 64-bit float can have (24)."""


def item(key: str, value: str) -> bytes:
    """Return one encoded key and JSON value of a history row, ready to be joined with others."""
    fields = history_fields()
    name = field_bytes(fields.nested_key, key.encode("utf-8"))
    return field_bytes(fields.item, name + field_bytes(fields.value_json, value.encode("utf-8")))


def step_text(microsteps: int) -> str:
    """Return a step as the shortest exact decimal."""
    return format_step(microsteps).rstrip("0").rstrip(".")


def seconds_text(milliseconds: int) -> str:
    """Return milliseconds as seconds with three places."""
    sign = "-" if milliseconds < 0 else ""
    whole, rest = divmod(abs(milliseconds), 1000)
    return f"{sign}{whole}.{rest:03d}"


@dataclass(slots=True)
class HistoryResult:
    """What became of the rows of the series."""

    rows: int = 0
    last_step: int = -1
    last_time: int | None = None
    last_microstep: int | None = None
    other_time: Counter[str] = field(default_factory=Counter)
    """Values whose own time is not that of their row, or is missing, by attribute type."""


class _Constant:
    """Items of one key, whose encoding before the value only depends on the value's length."""

    def __init__(self, key: str) -> None:
        fields = history_fields()
        self._name = field_bytes(fields.nested_key, key.encode("utf-8"))
        self._item_tag = varint(fields.item << 3 | 2)
        self._value_tag = varint(fields.value_json << 3 | 2)
        self._made: dict[int, bytes] = {}

    def before(self, length: int) -> bytes:
        """Return what precedes a value of this many bytes."""
        made = self._made.get(length)
        if made is None:
            inner = self._name + self._value_tag + varint(length)
            made = self._made[length] = self._item_tag + varint(len(inner) + length) + inner
        return made

    def item(self, text: str) -> bytes:
        """Return the item with this value."""
        return self.before(len(text)) + text.encode("ascii")


class HistoryEncoder:
    """Turns points and events, both sorted by step, into serialised history records."""

    def __init__(self, keys: Sequence[str], stepping: Stepping, start_ms: int | None, first_number: int) -> None:
        self._keys = [_Constant(key) for key in keys]
        self._stepping = stepping
        self._start = start_ms
        self._number = first_number
        self._prefixes: list[bytes] = []
        self._lookup = np.full(len(keys) * _LENGTHS, -1, dtype=np.int64)
        self._step, self._timestamp, self._runtime = _Constant("_step"), _Constant("_timestamp"), _Constant("_runtime")
        self._axis = _Constant(AXIS)
        fields = history_fields()
        self._num_tag = varint(fields.num << 3)
        self._history_tag = varint(fields.history << 3 | 2)
        self._step_tag = varint(fields.step << 3 | 2)
        self._step_num_tag = varint(fields.step_num << 3)
        self.result = HistoryResult()

    def records(self, points: Iterator[pa.RecordBatch], events: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
        """Yield one serialised record for each row of the history.

        ``points`` have the schema POINTS and ``events`` EVENTS, each sorted by step.
        """
        waiting = _Events(events)
        carried: list[pa.RecordBatch] = []
        for batch in points:
            if batch.num_rows == 0:
                continue
            steps = batch.column("step").to_numpy()
            cut = int(np.searchsorted(steps, steps[-1], side="left"))
            if cut == 0 and (not carried or carried[0].column("step")[0].as_py() == int(steps[0])):
                carried.append(batch)  # a step that goes on beyond the batch
                continue
            yield from self._window([*carried, batch.slice(0, cut)], waiting)
            carried = [batch.slice(cut)]
        if carried:
            yield from self._window(carried, waiting)
        yield from self._events_before(None, waiting)

    def _window(self, batches: list[pa.RecordBatch], waiting: _Events) -> Iterator[bytes]:
        """Yield the rows of whole steps."""
        table = pa.Table.from_batches(batches, POINTS).combine_chunks()
        if table.num_rows == 0:
            return
        steps: Ints = table.column("step").to_numpy()
        times: Ints = table.column("time").to_numpy()
        encoded, offsets = self._encode(table.column("key").to_numpy(), table.column("value"))
        starts = np.concatenate(([0], np.flatnonzero(np.diff(steps)) + 1))
        firsts = np.minimum.reduceat(times, starts)
        counts = np.diff(np.append(starts, len(steps)))
        ends = np.append(starts[1:], len(steps))
        byte_starts, byte_ends = offsets[starts].tolist(), offsets[ends].tolist()
        spread = np.add.reduceat((times != np.repeat(firsts, counts)).astype(np.int64), starts)
        for number, (step, first, begin, end) in enumerate(
            zip(steps[starts].tolist(), firsts.tolist(), byte_starts, byte_ends, strict=True)
        ):
            if waiting.step is not None and waiting.step < step:
                yield from self._events_before(step, waiting)
            extra: list[tuple[int, str, bytes]] = []
            while waiting.step == step:
                extra.append(waiting.take())
            when = min(first, *(event[0] for event in extra)) if extra else first
            if when == first and when != NO_TIME:
                self.result.other_time["float_series"] += int(spread[number])
            else:
                own = times[starts[number] : ends[number]]
                self.result.other_time["float_series"] += int(np.count_nonzero((own != when) | (own == NO_TIME)))
            parts = [encoded[begin:end]]
            if self._stepping.ordinal and end - begin > LINE_BYTES // 2:
                marks = offsets[starts[number] : ends[number] + 1]
                parts = _pieces(encoded, marks, LINE_BYTES // 2)
            for piece in parts[:-1]:
                yield self._row(step, when, [piece])
            yield from self._rows(step, when, parts[-1], extra)

    def _events_before(self, step: int | None, waiting: _Events) -> Iterator[bytes]:
        """Yield rows of steps below ``step`` that have events and no points."""
        while waiting.step is not None and (step is None or waiting.step < step):
            current, extra = waiting.step, [waiting.take()]
            while waiting.step == current:
                extra.append(waiting.take())
            yield from self._rows(current, min(event[0] for event in extra), b"", extra)

    def _rows(self, step: int, when: int, points: bytes, extra: list[tuple[int, str, bytes]]) -> Iterator[bytes]:
        """Yield the row of a step, or several where one would be too long for W&B and steps are counted."""
        items, size = [points], len(points)
        for time, kind, encoded in extra:
            if time != when or time == NO_TIME:
                self.result.other_time[kind] += 1
            if self._stepping.ordinal and size and size + len(encoded) > LINE_BYTES:
                yield self._row(step, when, items)
                items, size = [], 0
            items.append(encoded)
            size += len(encoded)
        yield self._row(step, when, items)

    def _row(self, step: int, when: int, items: list[bytes]) -> bytes:
        result = self.result
        if when == NO_TIME:
            when = self._start or 0 if result.last_time is None else result.last_time
        count = result.last_step + 1 if self._stepping.ordinal else step // self._stepping.unit
        start = when if self._start is None else self._start
        items = [
            *items,
            self._step.item(str(count)),
            self._timestamp.item(seconds_text(when)),
            self._runtime.item(seconds_text(max(when - start, 0))),
        ]
        if self._stepping.axis:
            items.append(self._axis.item(step_text(step)))
        number = self._step_num_tag + varint(count)
        items.append(self._step_tag + varint(len(number)) + number)
        body = b"".join(items)
        result.rows += 1
        result.last_step, result.last_time, result.last_microstep = count, when, step
        self._number += 1
        return b"".join((self._num_tag, varint(self._number - 1), self._history_tag, varint(len(body)), body))

    @property
    def next_number(self) -> int:
        """Number of the record after the last one that was made."""
        return self._number

    def _encode(self, keys: Ints, values: Any) -> tuple[bytes, Ints]:
        """Return the items of points one after the other, and where each begins (one more than there are points)."""
        texts = float_texts(values)
        lengths = pc.binary_length(texts).to_numpy().astype(np.int64)
        code = keys * _LENGTHS + lengths
        for new in np.unique(code[self._lookup[code] < 0]).tolist():
            self._lookup[new] = len(self._prefixes)
            key, length = divmod(new, _LENGTHS)
            self._prefixes.append(self._keys[key].before(length))
        before = pa.array(self._prefixes, pa.large_binary()).take(pa.array(self._lookup[code]))
        joined = pc.binary_join_element_wise(before, texts.cast(pa.large_binary()), pa.scalar(b"", pa.large_binary()))
        offsets = np.frombuffer(joined.buffers()[1], dtype=np.int64)[joined.offset : joined.offset + len(joined) + 1]
        data = joined.buffers()[2]
        return (data.to_pybytes() if data is not None else b""), offsets


class _Events:
    """Looks at the next event before it is taken."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._rows = (row for batch in batches for row in _event_rows(batch))
        self._next = next(self._rows, None)

    @property
    def step(self) -> int | None:
        """Step of the next event in micro-steps; None after the last."""
        return None if self._next is None else self._next[0]

    def take(self) -> tuple[int, str, bytes]:
        """Return time, type and item of the next event, and go on."""
        if self._next is None:
            raise StopIteration
        _, time, kind, encoded = self._next
        self._next = next(self._rows, None)
        return time, kind, encoded


def _event_rows(batch: pa.RecordBatch) -> Iterator[tuple[int, int, str, bytes]]:
    columns = [batch.column(name).to_pylist() for name in ("step", "time", "type", "item")]
    yield from zip(*columns, strict=True)


def _pieces(data: bytes, marks: Ints, limit: int) -> list[bytes]:
    """Cut items at their borders into pieces of at most ``limit`` bytes."""
    pieces, begin = [], 0
    while begin < len(marks) - 1:
        end = max(int(np.searchsorted(marks, marks[begin] + limit, side="right")) - 1, begin + 1)
        pieces.append(data[int(marks[begin]) : int(marks[end])])
        begin = end
    return pieces


def float_texts(values: Any) -> Any:
    """Return floats as JSON texts that read back to the same bits; NaN and infinities in W&B's words."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    numbers = values.to_numpy(zero_copy_only=False)
    texts = values.cast(pa.string())
    odd = ~np.isfinite(numbers) | ((numbers == 0) & np.signbit(numbers))
    if odd.any():
        spelled = [
            "NaN" if value != value else "-0.0" if value == 0 else "Infinity" if value > 0 else "-Infinity"
            for value in numbers[odd].tolist()
        ]
        texts = pc.replace_with_mask(texts, pa.array(odd), pa.array(spelled, pa.string()))
    return texts
