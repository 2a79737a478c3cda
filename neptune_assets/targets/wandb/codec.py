"""The codec of a ``.wandb`` file: its log, its records, and history rows as Arrow columns, many at a time.

A file is a header and W&B's records in LevelDB's log format: 32 KiB blocks, each piece of a record with a CRC-32 over
its kind and its bytes, so that a torn or damaged file never reads as a shorter, healthy one. Records are wandb's own
protobuf classes (``wandb/proto/wandb_internal.proto``). History rows are encoded and decoded by hand for speed, with
the field numbers of wandb's descriptors: a release of wandb that moves one is an error and not a wrong file.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.errors import TargetError
from neptune_assets.lake.layout import format_step
from neptune_assets.protobuf_columns import LENGTH_DELIMITED, field_bytes, field_tag, read_varints, varint
from neptune_assets.targets.columns import Bools, Ints

if TYPE_CHECKING:
    pass


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


def step_text(microsteps: int) -> str:
    """Return a step as the shortest exact decimal."""
    return format_step(microsteps).rstrip("0").rstrip(".")


def seconds_text(milliseconds: int) -> str:
    """Return milliseconds as seconds with three places."""
    sign = "-" if milliseconds < 0 else ""
    whole, rest = divmod(abs(milliseconds), 1000)
    return f"{sign}{whole}.{rest:03d}"


def decimal_texts(numbers: Ints, places: int, *, shortest: bool = False) -> Any:
    """Return whole numbers divided by a power of ten, exactly; ``shortest`` leaves out zeros at the end."""
    positive = np.abs(numbers)
    whole = pa.array(positive // 10**places).cast(pa.large_string())
    rest = pc.utf8_lpad(pa.array(positive % 10**places).cast(pa.large_string()), places, "0")
    signs = pa.array(["", "-"], pa.large_string()).take(pa.array((numbers < 0).astype(np.int8)))
    point: Any = pa.scalar(".", pa.large_string())
    if shortest:
        rest = pc.utf8_rtrim(rest, "0")
        dots = pc.greater(pc.binary_length(rest), 0).cast(pa.int8())
        point = pa.array(["", "."], pa.large_string()).take(dots)
    return pc.binary_join_element_wise(signs, whole, point, rest, pa.scalar("", pa.large_string()))


MAX_EXACT: Final = 2**53
"""Whole numbers up to here are exact wherever JSON is read with 64-bit floats."""


@lru_cache(maxsize=1)
def protobuf() -> Any:
    """Return wandb's module of protobuf classes, imported when first needed."""
    from wandb.proto import wandb_internal_pb2

    return wandb_internal_pb2


def json_text(value: Any) -> str:
    """Return the JSON W&B keeps: compact, Unicode as it is, ``NaN`` and ``Infinity`` as words."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=True)


def number_text(value: float) -> str:
    """Return a float as W&B writes it; negative zero keeps its sign when it is read as a float again."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(value)


@dataclass(frozen=True, slots=True)
class ItemFields:
    """Field numbers of an item, a key with its value as JSON, and of the record that has items."""

    item: int
    key: int
    value_json: int


@dataclass(frozen=True, slots=True)
class HistoryFields:
    """Field numbers of what a history row is made of."""

    num: int
    history: int
    step: int
    step_num: int
    items: ItemFields


@dataclass(frozen=True, slots=True)
class StatsFields:
    """Field numbers of what a record of system metrics is made of."""

    num: int
    stats: int
    timestamp: int
    items: ItemFields


@lru_cache(maxsize=1)
def history_fields() -> HistoryFields:
    """Look the field numbers up in wandb's descriptors. Raises TargetError if this wandb has other fields."""
    pb = protobuf()
    record, row, item = _numbers(pb.Record), _numbers(pb.HistoryRecord), _numbers(pb.HistoryItem)
    return HistoryFields(
        num=record["num"],
        history=record["history"],
        step=row["step"],
        step_num=_numbers(pb.HistoryStep)["num"],
        items=ItemFields(row["item"], item["nested_key"], item["value_json"]),
    )


@lru_cache(maxsize=1)
def stats_fields() -> StatsFields:
    """Look the field numbers up in wandb's descriptors. Raises TargetError if this wandb has other fields."""
    pb = protobuf()
    record, row, item = _numbers(pb.Record), _numbers(pb.StatsRecord), _numbers(pb.StatsItem)
    return StatsFields(
        num=record["num"],
        stats=record["stats"],
        timestamp=row["timestamp"],
        items=ItemFields(row["item"], item["key"], item["value_json"]),
    )


class _Numbers(dict[str, int]):
    """Field numbers of a message by name; a name that the installed wandb does not have is a TargetError."""

    def __missing__(self, name: str) -> int:
        raise TargetError(
            f"The installed wandb knows no record field {name!r}.", hint="Install a version of wandb from 0.31 on."
        )


def _numbers(message: Any) -> _Numbers:
    return _Numbers((field.name, field.number) for field in message.DESCRIPTOR.fields)


def header(producer: str) -> Any:
    """Return the first record of a file; ``producer`` is the wandb version whose records these are."""
    record = protobuf().Record()
    record.header.version_info.producer = producer
    record.header.version_info.min_consumer = "0.70.0"
    return record


def run(
    *,
    run_id: str,
    entity: str,
    project: str,
    name: str,
    group: str,
    job_type: str,
    notes: str,
    tags: Sequence[str],
    config: Mapping[str, Any],
    start_ms: int | None,
) -> Any:
    """Return the record that names the run. No host, program, telemetry or git: those would be this machine's."""
    record = protobuf().Record()
    made = record.run
    made.run_id, made.entity, made.project, made.display_name = run_id, entity, project, name
    made.run_group, made.job_type, made.notes = group, job_type, notes
    made.tags.extend(tags)
    for key, value in config.items():
        made.config.update.add(key=key, value_json=json_text(value))
    if start_ms is not None:
        made.start_time.seconds, milliseconds = divmod(start_ms, 1000)
        made.start_time.nanos = milliseconds * 1_000_000
    return record


def step_axis(axis: str, keys: Iterable[str]) -> Iterable[Any]:
    """Yield the records that make ``axis`` the x axis of every key, and itself no metric to be drawn."""
    pb = protobuf()
    record = pb.Record()
    record.metric.name = axis
    record.metric.options.hidden = True
    record.metric.options.defined = True
    yield record
    for key in keys:
        record = pb.Record()
        record.metric.name = key
        record.metric.step_metric = axis
        record.metric.options.step_sync = True
        record.metric.options.defined = True
        yield record


def files(paths: Iterable[str], *, media: bool) -> Any:
    """Return the record that has files of the run's ``files`` directory uploaded."""
    pb = protobuf()
    record = pb.Record()
    kind = pb.FilesItem.FileType.Value("MEDIA" if media else "OTHER")
    for path in paths:
        record.files.files.add(path=path, policy=pb.FilesItem.PolicyType.Value("NOW"), type=kind)
    return record


def summary(values: Mapping[str, str]) -> Any:
    """Return the record with the run's last values; ``values`` are JSON texts by key."""
    record = protobuf().Record()
    for key, value in values.items():
        record.summary.update.add(nested_key=[key], value_json=value)
    return record


def finish(exit_code: int, runtime: int) -> Any:
    """Return the last record: how the run ended and how many seconds it took."""
    record = protobuf().Record()
    record.exit.exit_code = exit_code
    record.exit.runtime = max(runtime, 0)
    return record


HEADER: Final = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
BLOCK: Final = 32_768
_PIECE: Final = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_SEEDS: Final = {kind: zlib.crc32(bytes([kind])) for kind in (_FULL, _FIRST, _MIDDLE, _LAST)}


class LogWriter:
    """Writes records to a new ``.wandb`` file; all of it is written once :meth:`close` has returned."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("xb", buffering=1 << 20)
        self._file.write(HEADER)
        self._offset = len(HEADER)
        self._left = BLOCK - self._offset
        self.records = 0

    def append(self, record: bytes) -> None:
        """Write one serialised record."""
        left, size, write = self._left, len(record), self._file.write
        self.records += 1
        if left >= size + 7:
            write(_PIECE.pack(zlib.crc32(record, _SEEDS[_FULL]), size, _FULL))
            write(record)
            self._left = left - size - 7 or BLOCK
            self._offset += size + 7
            return
        position, view, first = 0, memoryview(record), True
        while True:
            if self._left < 7:
                write(bytes(self._left))
                self._offset += self._left
                self._left = BLOCK
            take = min(size - position, self._left - 7)
            last = position + take == size
            kind = (_FULL if last else _FIRST) if first else (_LAST if last else _MIDDLE)
            piece = view[position : position + take]
            write(_PIECE.pack(zlib.crc32(piece, _SEEDS[kind]), take, kind))
            write(piece)
            self._left = self._left - take - 7 or BLOCK
            self._offset += take + 7
            position, first = position + take, False
            if last:
                return

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._offset

    def close(self) -> None:
        """Write what is buffered and close."""
        if not self._file.closed:
            self._file.close()

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_log(path: Path) -> Iterator[bytes]:
    """Yield the serialised records of a ``.wandb`` file. Raises TargetError if it is not as it was written."""
    hint = "Load the run again; it is staged anew."
    with path.open("rb") as file:
        if file.read(len(HEADER)) != HEADER:
            raise TargetError(f"{path.name} is not a valid W&B run file.", hint=hint)
        parts: list[bytes] = []
        block = file.read(BLOCK - len(HEADER))
        while block:
            position, size = 0, len(block)
            while size - position >= 7:
                crc, length, kind = _PIECE.unpack_from(block, position)
                position += 7
                piece = block[position : position + length]
                position += length
                seed = _SEEDS.get(kind)
                if seed is None or len(piece) != length or zlib.crc32(piece, seed) != crc:
                    raise TargetError(f"{path.name} is damaged or cut short.", hint=hint)
                if bool(parts) == (kind in (_FULL, _FIRST)):
                    raise TargetError(f"{path.name} misses a piece of a record.", hint=hint)
                if kind == _FULL:
                    yield piece
                    continue
                parts.append(piece)
                if kind == _LAST:
                    yield b"".join(parts)
                    parts = []
            if any(block[position:]):
                raise TargetError(f"{path.name} is damaged or cut short.", hint=hint)
            block = file.read(BLOCK)
        if parts:
            raise TargetError(f"{path.name} ends within a record.", hint=hint)


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


class Event(NamedTuple):
    """A value other than a number: ``step`` in micro-steps, ``time`` in milliseconds, ``item`` encoded."""

    step: int
    time: int
    kind: str
    item: bytes


def item(key: str, value: str) -> bytes:
    """Return one encoded key and JSON value of a history row, ready to be joined with others."""
    fields = history_fields().items
    name = field_bytes(fields.key, key.encode("utf-8"))
    return field_bytes(fields.item, name + field_bytes(fields.value_json, value.encode("utf-8")))


class Column:
    """Values of one key in many rows: what precedes each only depends on the value's length."""

    def __init__(self, key: str, fields: ItemFields | None = None) -> None:
        """``fields`` are those of the items of history rows if left out."""
        fields = fields or history_fields().items
        self._name = field_bytes(fields.key, key.encode("utf-8"))
        self._item_tag = field_tag(fields.item, LENGTH_DELIMITED)
        self._value_tag = field_tag(fields.value_json, LENGTH_DELIMITED)
        self._made: dict[int, bytes] = {}

    def before(self, length: int) -> bytes:
        """Return what precedes a value of this many bytes."""
        made = self._made.get(length)
        if made is None:
            inner = self._name + self._value_tag + varint(length)
            made = self._made[length] = self._item_tag + varint(len(inner) + length) + inner
        return made

    def items(self, texts: Any) -> list[Any]:
        """Return the encoded items of these values in two pieces, one below the other."""
        lengths = pc.binary_length(texts).to_numpy()
        longest = int(lengths.max(initial=0))
        before = pa.array([self.before(length) for length in range(longest + 1)], pa.large_binary())
        return [before.take(pa.array(lengths)), texts.cast(pa.large_binary())]


class PointEncoder:
    """Encodes points of any of some keys."""

    def __init__(self, keys: Sequence[str], fields: ItemFields | None = None) -> None:
        """``fields`` are those of the items of history rows if left out."""
        self._columns = [Column(key, fields) for key in keys]
        self._prefixes: list[bytes] = []
        self._lookup = np.full(len(keys) * _LENGTHS, -1, dtype=np.int64)

    def encode(self, keys: Ints, values: Any) -> EncodedPoints:
        """Return the items of points one after the other; ``keys`` are places among the keys."""
        texts = float_texts(values)
        lengths = pc.binary_length(texts).to_numpy().astype(np.int64)
        code = keys * _LENGTHS + lengths
        if (self._lookup[code] < 0).any():
            for new in np.unique(code[self._lookup[code] < 0]).tolist():
                self._lookup[new] = len(self._prefixes)
                key, length = divmod(new, _LENGTHS)
                self._prefixes.append(self._columns[key].before(length))
        before = pa.array(self._prefixes, pa.large_binary()).take(pa.array(self._lookup[code]))
        joined = pc.binary_join_element_wise(before, texts.cast(pa.large_binary()), pa.scalar(b"", pa.large_binary()))
        offsets = np.frombuffer(joined.buffers()[1], dtype=np.int64)[joined.offset : joined.offset + len(joined) + 1]
        return EncodedPoints(joined.buffers()[2] or pa.py_buffer(b""), offsets)


@dataclass(frozen=True, slots=True)
class EncodedPoints:
    """Items of points one after the other, and where each begins (one mark more than there are points)."""

    data: Any
    marks: Ints

    def rows(self, starts: Ints, end: int) -> Any:
        """Return an array of what lies between each start and the next, the last one up to ``end``; copies nothing."""
        offsets = np.append(self.marks[starts], self.marks[end])
        return pa.Array.from_buffers(pa.large_binary(), len(starts), [None, pa.py_buffer(offsets), self.data])

    def cut(self, begin: int, end: int) -> bytes:
        """Return the items of some points."""
        data: bytes = self.data.slice(int(self.marks[begin]), int(self.marks[end] - self.marks[begin])).to_pybytes()
        return data

    def pieces(self, begin: int, end: int, limit: int) -> list[bytes]:
        """Cut the items of some points at their borders into pieces of at most ``limit`` bytes."""
        found = []
        while begin < end:
            cut = int(np.searchsorted(self.marks[: end + 1], self.marks[begin] + limit, side="right")) - 1
            cut = max(cut, begin + 1)
            found.append(self.cut(begin, cut))
            begin = cut
        return found


class Events:
    """Events in the order of their steps, looked at before they are taken."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._rows = (event for batch in batches for event in _events(batch))
        self._next = next(self._rows, None)

    @property
    def step(self) -> int | None:
        """Step of the next event in micro-steps; None after the last."""
        return None if self._next is None else self._next.step

    def take_step(self) -> list[Event]:
        """Return all events of the next step, and go on."""
        step = self.step
        return [] if step is None else self.take_until(step, 1 << 62)

    def take_until(self, step: int | None, limit: int) -> list[Event]:
        """Return the events as far as a step, and go on; after ``limit`` bytes no further step is begun."""
        taken: list[Event] = []
        size = 0
        while self._next is not None and (step is None or self._next.step <= step):
            if size > limit and self._next.step != taken[-1].step:
                break
            taken.append(self._next)
            size += len(self._next.item)
            self._next = next(self._rows, None)
        return taken


def _events(batch: pa.RecordBatch) -> Iterator[Event]:
    columns = [batch.column(name).to_pylist() for name in ("step", "time", "type", "item")]
    yield from (Event(*row) for row in zip(*columns, strict=True))


WINDOW_BYTES: Final = 4 << 20
"""Records are taken apart this many bytes at a time."""
_WINDOW_RECORDS: Final = 65_536
_FEW: Final = 48
"""With fewer rows than this still going on, taking them apart side by side is slower than protobuf."""
_PADDING: Final = bytes(16)
SAMPLE: Final = 4
"""Rows of each window, of those taken apart side by side, that wandb's own classes read as well."""

Data = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class HistoryItems:
    """Items of consecutive history rows: item ``n`` is ``keys[n]`` with the JSON ``values[n]`` in row ``rows[n]``.

    ``rows`` count from 0 within this batch and never go down. ``step_numbers`` holds each row's own step field, -1
    where it has none. ``names`` are the distinct keys and ``codes`` the place of each item's key in them.
    """

    row_count: int
    rows: Ints
    codes: Ints
    names: list[str]
    values: Any
    """A ``large_string`` array."""
    step_numbers: Ints


@dataclass(slots=True)
class Window:
    """What some consecutive records of a file hold."""

    history: HistoryItems
    others: list[tuple[int, Any]]
    """Place in the file and parsed record of everything but history rows."""
    end: int
    """Place in the file after the last record of the window."""
    sample: list[tuple[int, Any]]
    """Number in ``history`` of some rows, and their records as wandb's own classes read them."""


def windows(path: Path, *, window_bytes: int = WINDOW_BYTES, few: int = _FEW) -> Iterator[Window]:
    """Yield the content of a ``.wandb`` file piece by piece. Raises TargetError if it is damaged.

    Side by side go ``few`` rows or more, out of ``window_bytes`` bytes at a time; others go through wandb's classes.
    """
    held: list[bytes] = []
    size = begin = 0
    for payload in read_log(path):
        held.append(payload)
        size += len(payload)
        if size >= window_bytes or len(held) >= _WINDOW_RECORDS:
            yield _window(held, begin, path, few)
            begin += len(held)
            held, size = [], 0
    if held:
        yield _window(held, begin, path, few)


def _window(payloads: Sequence[bytes], begin: int, path: Path, few: int) -> Window:
    try:
        fast = _Rows(payloads, few)
        slow = _Parsed()
        others = []
        parse = protobuf().Record.FromString
        history = fast.good.copy()
        for place in np.flatnonzero(~fast.good).tolist():
            record = parse(payloads[place])
            if record.WhichOneof("record_type") == "history":
                history[place] = True
                slow.add(place, record.history)
            else:
                others.append((begin + place, record))
        numbers, good = np.cumsum(history) - 1, np.flatnonzero(fast.good)
        chosen = good[np.linspace(0, len(good) - 1, min(SAMPLE, len(good)), dtype=np.int64)].tolist()
        sample = [(int(numbers[place]), parse(payloads[place])) for place in chosen]
        return Window(_joined(fast, slow, history), others, begin + len(payloads), sample)
    except (pa.ArrowInvalid, ValueError, _decode_error()) as error:
        raise TargetError(
            f"{path.name} holds a record that cannot be read.", hint="Load the run again; it is staged anew."
        ) from error


def _decode_error() -> type[Exception]:
    from google.protobuf.message import DecodeError

    return DecodeError


@dataclass(slots=True)
class _Parsed:
    """Items of the rows that went through protobuf."""

    places: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    steps: dict[int, int] = field(default_factory=dict)

    def add(self, place: int, history: Any) -> None:
        """Take a row in."""
        self.places += [place] * len(history.item)
        self.keys += [".".join(item.nested_key) if item.nested_key else item.key for item in history.item]
        self.values += [item.value_json for item in history.item]
        self.steps[place] = history.step.num if history.HasField("step") else -1


def _joined(fast: _Rows, slow: _Parsed, history: Bools) -> HistoryItems:
    """Put the rows of both ways in the order of the file."""
    numbers = np.cumsum(history) - 1
    keys, values, places = fast.keys, fast.values, fast.places
    steps = fast.steps
    if slow.steps:
        keys = pa.concat_arrays([keys, pa.array(slow.keys, pa.large_string())])
        values = pa.concat_arrays([values, pa.array(slow.values, pa.large_string())])
        places = np.concatenate((places, np.array(slow.places, dtype=np.int64)))
        order = np.argsort(places, kind="stable")
        places = places[order]
        keys, values = keys.take(pa.array(order)), values.take(pa.array(order))
        steps[list(slow.steps)] = list(slow.steps.values())
    encoded = keys.dictionary_encode()
    return HistoryItems(
        row_count=int(history.sum()),
        rows=numbers[places],
        codes=encoded.indices.to_numpy().astype(np.int64),
        names=encoded.dictionary.to_pylist(),
        values=values,
        step_numbers=steps[history],
    )


class _Rows:
    """The history rows among some records that are laid out plainly, taken apart side by side.

    ``good`` marks these records; ``places`` has the record of each item, in the order of the file.
    """

    def __init__(self, payloads: Sequence[bytes], few: int) -> None:
        fields = history_fields()
        item = fields.items
        self._item, self._step, self._step_num = item.item << 3 | 2, fields.step << 3 | 2, fields.step_num << 3
        self._key, self._value = item.key << 3 | 2, item.value_json << 3 | 2
        self._few = few
        count = len(payloads)
        raw = b"".join((*payloads, _PADDING))
        self._data: Data = np.frombuffer(raw, dtype=np.uint8)
        sizes = np.fromiter(map(len, payloads), dtype=np.int64, count=count)
        self._ends = np.cumsum(sizes)
        self.good: Bools = sizes > 0
        self.steps: Ints = np.full(count, -1, dtype=np.int64)
        self._found: list[tuple[Ints, Ints]] = []
        at = self._bodies(fields.num << 3, fields.history << 3 | 2, self._ends - sizes)
        taken = np.zeros(count, dtype=np.int64)
        self._items(np.flatnonzero(self.good), at, taken)
        self._collect(raw, taken)

    def _bodies(self, num: int, history: int, at: Ints) -> Ints:
        """Return where the fields of each row begin; records of any other kind are no longer good."""
        at = np.where(self.good, at, 0)
        tag, after = read_varints(self._data, at)
        numbered = tag == num
        last = len(self._data) - len(_PADDING)
        number, behind = read_varints(self._data, np.minimum(after, last))
        self.good &= ~numbered | (number >= 0)
        at = np.where(numbered, behind, at)
        tag, at = read_varints(self._data, np.minimum(at, last))
        length, at = read_varints(self._data, np.minimum(at, last))
        self.good &= (tag == history) & (length > 0) & (at + length == self._ends)
        return at

    def _items(self, rows: Ints, places: Ints, taken: Ints) -> None:
        """Take one field of every row at a time, until all are done."""
        data, at = self._data, places[rows]
        while rows.size:
            if rows.size < self._few:
                self.good[rows] = False
                return
            ends = self._ends[rows]
            tag, at = read_varints(data, at)
            length, at = read_varints(data, np.minimum(at, ends))
            after = at + length
            fine = (length > 0) & (after <= ends)
            step, inside = fine & (tag == self._step), fine & (tag == self._item)
            if step.any():
                self._step_field(rows, at, after, step)
                step &= self.good[rows]
            if inside.any():
                chosen = slice(None) if inside.all() else inside
                ok = self._item_field(rows[chosen], at[chosen], after[chosen], taken)
                inside[np.flatnonzero(inside)[~ok]] = False
            fine = step | inside
            self.good[rows[~fine]] = False
            fine &= after < ends
            rows, at = rows[fine], after[fine]

    def _step_field(self, rows: Ints, at: Ints, after: Ints, chosen: Bools) -> None:
        tag, value_at = read_varints(self._data, at[chosen])
        number, end = read_varints(self._data, value_at)
        chosen_rows = rows[chosen]
        ok = (tag == self._step_num) & (number >= 0) & (end == after[chosen]) & (self.steps[chosen_rows] == -1)
        self.steps[chosen_rows[ok]] = number[ok]
        self.good[chosen_rows[~ok]] = False

    def _item_field(self, rows: Ints, at: Ints, after: Ints, taken: Ints) -> Bools:
        """Find key and value of an item in each of these rows; return which are plain."""
        data = self._data
        tag, at = read_varints(data, at)
        ok: Bools = tag == self._key
        length, key = read_varints(data, np.minimum(at, after))
        key_end = key + length
        ok &= (length >= 0) & (key_end < after)
        tag, at = read_varints(data, np.where(ok, key_end, 0))
        ok &= tag == self._value
        length, value = read_varints(data, np.minimum(at, after))
        ok &= (length >= 0) & (value + length == after)
        marks = np.stack((key, key_end, value, after), axis=1)
        if not ok.all():
            rows, marks = rows[ok], marks[ok]
        self._found.append((rows, marks))
        taken[rows] += 1
        return ok

    def _collect(self, raw: bytes, taken: Ints) -> None:
        """Order the items as they stand in the file, and cut keys and values out."""
        taken[~self.good] = 0
        self.steps[~self.good] = -1
        base = np.cumsum(taken) - taken
        marks = np.empty((int(taken.sum()), 4), dtype=np.int64)
        for rows, found in self._found:
            kept = self.good[rows]
            if not kept.all():
                rows, found = rows[kept], found[kept]
            marks[base[rows]] = found
            base[rows] += 1
        self.places: Ints = np.repeat(np.arange(len(taken)), taken)
        count = len(marks)
        # Between any two marks lies a key, a value, or what separates them: cut there, every second piece is wanted.
        offsets = pa.py_buffer(np.append(marks.reshape(-1), len(raw)))
        pieces = pa.Array.from_buffers(pa.large_binary(), 4 * count, [None, offsets, pa.py_buffer(raw)])
        keys = pieces.take(pa.array(np.arange(count) * 4))
        values = pieces.take(pa.array(np.arange(count) * 4 + 2))
        self.keys, self.values = keys.cast(pa.large_string()), values.cast(pa.large_string())
