"""Items of history rows: keys and values as protobuf has them, points many at a time, anything else one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.targets.wandb.columns import Ints
from neptune_assets.targets.wandb.records import ItemFields, field_bytes, history_fields, varint
from neptune_assets.targets.wandb.texts import float_texts

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
