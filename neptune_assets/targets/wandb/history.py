"""The history: one row for each step, made by merging all series of a run in the exact order of their steps.

Rows are made many at a time: Arrow turns numbers into text and joins them with what is constant for a key. Histograms,
tables and media arrive as *events*, already encoded, and join the row of their step.

System metrics, Neptune's ``monitoring/`` series, are rows of W&B's own section. W&B keeps no step for them: a record
has a time, and a value for each of some keys. A point has its place there if it has a time from 1970 on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

from neptune_assets.lake.external_sort import ExternalSorter
from neptune_assets.protobuf_columns import joined, message_field, number_field
from neptune_assets.targets.columns import NO_TIME, Bools, Ints
from neptune_assets.targets.wandb.codec import (
    EVENTS,
    Column,
    EncodedPoints,
    Event,
    Events,
    PointEncoder,
    decimal_texts,
    history_fields,
    item,
    stats_fields,
)
from neptune_assets.targets.wandb.mapping import AXIS, LINE_BYTES, Layout, Stepping

_EVENT_BYTES: Final = 4 << 20
_EVENTS: Final = 4_096


class LastValues:
    """The value at the highest step of every key, as JSON text: what the summary shows."""

    def __init__(self) -> None:
        self.by_key: dict[int, tuple[int, str]] = {}

    def see(self, key: int, step: int, text: str) -> None:
        """Take notice of a value; of two at one step the later one counts."""
        if key not in self.by_key or self.by_key[key][0] <= step:
            self.by_key[key] = (step, text)


class EventSorter:
    """Takes events in any order and gives them back sorted by step."""

    def __init__(self, placed: Layout, last: LastValues, sorter: ExternalSorter) -> None:
        self._keys, self._last = placed.keys, last
        self._numbers = {key: number for number, key in enumerate(placed.keys)}
        self.sorter = sorter
        self._pending: list[tuple[int, int, int, str, bytes]] = []
        self._pending_bytes = 0

    def add(self, path: str, kind: str, step: int, time: int | None, text: str, *, counted: bool) -> None:
        """Take a value as JSON text; ``counted`` if a time that is not the row's makes it a mapped one."""
        number = self._numbers[path, kind]
        encoded = item(self._keys[path, kind], text)
        self._pending.append((step, number, NO_TIME if time is None else time, kind if counted else "", encoded))
        self._pending_bytes += len(encoded)
        self._last.see(number, step, text)
        if self._pending_bytes > _EVENT_BYTES or len(self._pending) >= _EVENTS:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the sorter; before it is read."""
        if self._pending:
            columns = [
                pa.array(values, field.type)
                for values, field in zip(zip(*self._pending, strict=True), EVENTS, strict=True)
            ]
            self.sorter.add(pa.RecordBatch.from_arrays(columns, schema=EVENTS))
            self._pending, self._pending_bytes = [], 0


SYSTEM: Final = pa.schema([("time", pa.int64()), ("key", pa.int64()), ("value", pa.float64())])


def placeable(times: Ints) -> Bools:
    """Return which points, by their times in milliseconds, W&B's section can hold."""
    result: Bools = (times != NO_TIME) & (times >= 0)
    return result


class SystemEncoder:
    """Turns points sorted by time into serialised records; one for points of one time, unless a key is in it twice."""

    def __init__(self, keys: Sequence[str], first_number: int) -> None:
        """``keys`` are told by their number."""
        self._fields = stats_fields()
        self._points = PointEncoder(keys, self._fields.items)
        self._number = first_number
        self.rows = 0
        """Records that were made."""

    def records(self, batches: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
        """Yield records; batches have the schema SYSTEM."""
        for batch in batches:
            if batch.num_rows:
                yield from self._records(batch)

    def _records(self, batch: pa.RecordBatch) -> list[bytes]:
        times: Ints = batch.column("time").to_numpy()
        keys: Ints = batch.column("key").to_numpy()
        begins = (times[1:] != times[:-1]) | (keys[1:] <= keys[:-1])
        starts = np.concatenate(([0], np.flatnonzero(begins) + 1))
        items = self._points.encode(keys, batch.column("value")).rows(starts, len(keys))
        seconds, rest = np.divmod(times[starts], 1000)
        moment = [*number_field(1, seconds), *number_field(2, rest * 1_000_000)]
        numbers = np.arange(self._number, self._number + len(starts))
        stats = [*message_field(self._fields.timestamp, moment), items]
        self._number += len(starts)
        self.rows += len(starts)
        whole = joined([*number_field(self._fields.num, numbers), *message_field(self._fields.stats, stats)])
        made: list[bytes] = whole.to_pylist()
        return made


def record_points(record: Any) -> tuple[int, list[str], list[float]]:
    """Return time in milliseconds, keys and values of a parsed record of system metrics."""
    stats = record.stats
    time = stats.timestamp.seconds * 1000 + stats.timestamp.nanos // 1_000_000
    return time, [item.key for item in stats.item], [float(item.value_json) for item in stats.item]


POINTS: Final = pa.schema([("step", pa.int64()), ("key", pa.int64()), ("time", pa.int64()), ("value", pa.float64())])


@dataclass(slots=True)
class HistoryResult:
    """What became of the rows of the series."""

    rows: int = 0
    last_step: int = -1
    last_time: int | None = None
    last_microstep: int | None = None
    other_time: Counter[str] = field(default_factory=Counter)
    """Values whose own time is not that of their row, or is missing, by attribute type."""


@dataclass(slots=True)
class _Rows:
    """Rows that are whole but for what every row has: steps in micro-steps, times, and encoded items."""

    steps: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    items: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, step: int, time: int, items: bytes) -> None:
        """Append a row."""
        self.steps.append(step)
        self.times.append(time)
        self.items.append(items)
        self.size += len(items)


@dataclass(frozen=True, slots=True)
class _Block:
    """Points of whole steps: row ``n`` is at micro-step ``steps[n]`` and has the points from ``starts[n]`` on."""

    steps: Ints
    starts: Ints
    times: Ints
    """Of each point; :data:`NO_TIME` where it has none."""
    firsts: Ints
    """The earliest time of each row."""
    encoded: EncodedPoints
    own: Bools
    """Which points are the run's own and no ancestor's."""


class HistoryEncoder:
    """Turns points and events, both sorted by step, into serialised history records."""

    def __init__(self, keys: Sequence[str], stepping: Stepping, start_ms: int | None, first_number: int) -> None:
        """``keys`` are told by their number; a number beyond the last is that of a key whose point is inherited."""
        self._own_keys = len(keys)
        self._points = PointEncoder([*keys, *keys])
        self._stepping = stepping
        self._start = start_ms
        self._number = first_number
        self._step, self._timestamp, self._runtime = Column("_step"), Column("_timestamp"), Column("_runtime")
        self._axis = Column(AXIS)
        self.result = HistoryResult()

    def records(self, points: Iterator[pa.RecordBatch], events: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
        """Yield one serialised record for each row of the history.

        ``points`` have the schema POINTS and ``events`` EVENTS, each sorted by step.
        """
        waiting = Events(events)
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
        yield from (self._counted(None, waiting) if self._stepping.ordinal else self._merged(None, waiting, None))

    @property
    def next_number(self) -> int:
        """Number of the record after the last one that was made."""
        return self._number

    # -- rows

    def _window(self, batches: list[pa.RecordBatch], waiting: Events) -> Iterator[bytes]:
        """Yield the rows of whole steps, and those of events before and between them."""
        table = pa.Table.from_batches(batches, POINTS).combine_chunks()
        if table.num_rows == 0:
            return
        steps: Ints = table.column("step").to_numpy()
        times: Ints = table.column("time").to_numpy()
        keys: Ints = table.column("key").to_numpy()
        starts = np.concatenate(([0], np.flatnonzero(np.diff(steps)) + 1))
        block = _Block(
            steps[starts],
            np.append(starts, len(steps)),
            times,
            np.minimum.reduceat(times, starts),
            self._points.encode(keys, table.column("value")),
            keys < self._own_keys,
        )
        if self._stepping.ordinal:
            yield from self._counted(block, waiting)
        else:
            yield from self._merged(block, waiting, int(steps[-1]))

    def _merged(self, block: _Block | None, waiting: Events, until: int | None) -> Iterator[bytes]:
        """Yield rows that have points, events or both, as far as step ``until``; all at once, or some MiB of events."""
        begin = 0
        while True:
            events = waiting.take_until(until, LINE_BYTES)
            more = waiting.step is not None and (until is None or waiting.step <= until)
            end = 0 if block is None else len(block.steps)
            if more and block is not None:
                end = int(np.searchsorted(block.steps, events[-1].step, side="right"))
            if events or end > begin:
                yield from self._segment(block, begin, end, events)
            begin = end
            if not more:
                return

    def _segment(self, block: _Block | None, begin: int, end: int, events: list[Event]) -> list[bytes]:
        """Return the rows of some steps of a block and of these events."""
        if block is None:
            steps = np.unique([event.step for event in events])
            times, extra = np.full(len(steps), NO_TIME), None
            parts: list[Any] = []
        else:
            steps, times = block.steps[begin:end], block.firsts[begin:end]
            if events:
                steps = np.union1d(steps, [event.step for event in events])
                own = np.searchsorted(steps, block.steps[begin:end])
                times = np.full(len(steps), NO_TIME)
                times[own] = block.firsts[begin:end]
            starts = block.starts[begin + np.searchsorted(block.steps[begin:end], steps)]
            parts = [block.encoded.rows(starts, int(block.starts[end]))]
        if events:
            extra = [b""] * len(steps)
            places = np.searchsorted(steps, [event.step for event in events]).tolist()
            for place, event in zip(places, events, strict=True):
                extra[place] += event.item
                times[place] = min(times[place], event.time)
            for place, event in zip(places, events, strict=True):
                other = event.time != int(times[place]) or event.time == NO_TIME
                self.result.other_time[event.kind] += other
            parts.append(pa.array(extra, pa.large_binary()))
        if block is not None and end > begin:
            counts = np.diff(block.starts[begin : end + 1])
            rows = times[np.searchsorted(steps, block.steps[begin:end])]
            self._count_times(block, slice(block.starts[begin], block.starts[end]), np.repeat(rows, counts))
        return self._finished(steps, times, parts)

    def _counted(self, block: _Block | None, waiting: Events) -> Iterator[bytes]:
        """Yield rows whose ``_step`` is counted: a step takes several where one row would be too long for W&B."""
        made = _Rows()
        steps = [] if block is None else block.steps.tolist()
        for number, step in enumerate([*steps, None]):
            while waiting.step is not None and (waiting.step < step if step is not None else block is None):
                self._split(made, waiting.step, NO_TIME, [b""], waiting.take_step())
                yield from self._flush(made, LINE_BYTES)
            if step is None or block is None:
                break
            events = waiting.take_step() if waiting.step == step else []
            begin, end = int(block.starts[number]), int(block.starts[number + 1])
            when = min([int(block.firsts[number]), *(event.time for event in events)])
            self._count_times(block, slice(begin, end), np.full(end - begin, when))
            self._split(made, step, when, block.encoded.pieces(begin, end, LINE_BYTES // 2), events)
            yield from self._flush(made, LINE_BYTES)
        yield from self._flush(made, 0)

    def _split(self, made: _Rows, step: int, when: int, points: list[bytes], events: list[Event]) -> None:
        """Add the row of a step, or several."""
        when = min([when, *(event.time for event in events)])
        for piece in points[:-1]:
            made.add(step, when, piece)
        items, size = [points[-1]], len(points[-1])
        for event in events:
            self.result.other_time[event.kind] += event.time != when or event.time == NO_TIME
            if size and size + len(event.item) > LINE_BYTES:
                made.add(step, when, b"".join(items))
                items, size = [], 0
            items.append(event.item)
            size += len(event.item)
        made.add(step, when, b"".join(items))

    def _flush(self, made: _Rows, above: int) -> Iterator[bytes]:
        if made.steps and made.size >= above:
            items = pa.array(made.items, pa.large_binary())
            yield from self._finished(np.array(made.steps), np.array(made.times), [items])
            made.steps, made.times, made.items, made.size = [], [], [], 0

    def _count_times(self, block: _Block, points: slice, rows: Ints) -> None:
        """Count the run's own points whose time is not that of their row."""
        times = block.times[points]
        other = ((times != rows) | (times == NO_TIME)) & block.own[points]
        self.result.other_time["float_series"] += int(np.count_nonzero(other))

    def _finished(self, steps: Ints, times: Ints, items: list[Any]) -> list[bytes]:
        """Return whole records: what every row has is added to the items, and number and length go in front."""
        result, stepping, fields = self.result, self._stepping, history_fields()
        times = self._filled(times)
        if stepping.ordinal:
            counts = np.arange(result.last_step + 1, result.last_step + 1 + len(steps))
        else:
            counts = steps // stepping.unit
        runtimes = np.zeros_like(times) if self._start is None else np.maximum(times - self._start, 0)
        parts = [
            *items,
            *self._step.items(pa.array(counts).cast(pa.large_string())),
            *self._timestamp.items(decimal_texts(times, 3)),
            *self._runtime.items(decimal_texts(runtimes, 3)),
        ]
        if stepping.axis:
            parts += self._axis.items(decimal_texts(steps, 6, shortest=True))
        parts += message_field(fields.step, number_field(fields.step_num, counts))
        numbers = np.arange(self._number, self._number + len(steps))
        self._number += len(steps)
        result.rows += len(steps)
        result.last_step, result.last_time = int(counts[-1]), int(times[-1])
        result.last_microstep = int(steps[-1])
        whole = joined([*number_field(fields.num, numbers), *message_field(fields.history, parts)])
        records: list[bytes] = whole.to_pylist()
        return records

    def _filled(self, times: Ints) -> Ints:
        """Give rows without a time that of the row before, or the run's."""
        if not (times == NO_TIME).any():
            return times
        last = self.result.last_time
        before = (self._start or 0) if last is None else last
        known = np.concatenate(([before], times))
        place = np.where(known == NO_TIME, 0, np.arange(len(known)))
        filled: Ints = known[np.maximum.accumulate(place)][1:]
        return filled
