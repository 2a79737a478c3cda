"""Reading the history out of a ``.wandb`` file quickly, as columns.

Nothing here knows the encoder: rows are taken apart by protobuf's wire format, with the field numbers of wandb's own
descriptors, many rows at a time. A record that is not laid out in the plain way (other fields, keys of several parts,
few and very long rows) goes through wandb's own protobuf classes instead, which read everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.errors import TargetError
from neptune_assets.targets.wandb.columns import Bools, Ints
from neptune_assets.targets.wandb.records import history_fields, protobuf
from neptune_assets.targets.wandb.transaction_log import read_log

WINDOW_BYTES: Final = 4 << 20
"""Records are taken apart this many bytes at a time."""
_WINDOW_RECORDS: Final = 65_536
_FEW: Final = 48
"""With fewer rows than this still going on, taking them apart side by side is slower than protobuf."""
_PADDING: Final = bytes(16)

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
    """Place in the file and parsed record of everything that is no history row."""
    end: int
    """Place in the file after the last record of the window."""


def windows(path: Path) -> Iterator[Window]:
    """Yield the content of a ``.wandb`` file piece by piece. Raises TargetError if it is damaged."""
    held: list[bytes] = []
    size = begin = 0
    for payload in read_log(path):
        held.append(payload)
        size += len(payload)
        if size >= WINDOW_BYTES or len(held) >= _WINDOW_RECORDS:
            yield _window(held, begin, path)
            begin += len(held)
            held, size = [], 0
    if held:
        yield _window(held, begin, path)


def _window(payloads: Sequence[bytes], begin: int, path: Path) -> Window:
    try:
        fast = _Rows(payloads)
        slow = _Parsed()
        others = []
        history = fast.good.copy()
        for place in np.flatnonzero(~fast.good).tolist():
            record = protobuf().Record.FromString(payloads[place])
            if record.WhichOneof("record_type") == "history":
                history[place] = True
                slow.add(place, record.history)
            else:
                others.append((begin + place, record))
        return Window(_joined(fast, slow, history), others, begin + len(payloads))
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


def _varints(data: Data, at: Ints) -> tuple[Ints, Ints]:
    """Read a number of protobuf's variable length at each place; return them and the places after.

    Numbers of more than 56 bits, which no length and no plain field has here, come back as -1.
    """
    first = data[at].astype(np.int64)
    value, after = first & 0x7F, at + 1
    going = np.flatnonzero(first & 0x80)
    shift = 7
    while going.size:
        if shift > 49:
            value[going] = -1
            break
        byte = data[after[going]].astype(np.int64)
        value[going] |= (byte & 0x7F) << shift
        after[going] += 1
        going = going[byte >= 0x80]
        shift += 7
    return value, after


class _Rows:
    """The history rows among some records that are laid out plainly, taken apart side by side.

    ``good`` marks these records; ``places`` has the record of each item, in the order of the file.
    """

    def __init__(self, payloads: Sequence[bytes]) -> None:
        fields = history_fields()
        item = fields.items
        self._item, self._step, self._step_num = item.item << 3 | 2, fields.step << 3 | 2, fields.step_num << 3
        self._key, self._value = item.key << 3 | 2, item.value_json << 3 | 2
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
        tag, after = _varints(self._data, at)
        numbered = tag == num
        last = len(self._data) - len(_PADDING)
        number, behind = _varints(self._data, np.minimum(after, last))
        self.good &= ~numbered | (number >= 0)
        at = np.where(numbered, behind, at)
        tag, at = _varints(self._data, np.minimum(at, last))
        length, at = _varints(self._data, np.minimum(at, last))
        self.good &= (tag == history) & (length > 0) & (at + length == self._ends)
        return at

    def _items(self, rows: Ints, places: Ints, taken: Ints) -> None:
        """Take one field of every row at a time, until all are done."""
        data, at = self._data, places[rows]
        while rows.size:
            if rows.size < _FEW:
                self.good[rows] = False
                return
            ends = self._ends[rows]
            tag, at = _varints(data, at)
            length, at = _varints(data, np.minimum(at, ends))
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
        tag, value_at = _varints(self._data, at[chosen])
        number, end = _varints(self._data, value_at)
        chosen_rows = rows[chosen]
        ok = (tag == self._step_num) & (number >= 0) & (end == after[chosen]) & (self.steps[chosen_rows] == -1)
        self.steps[chosen_rows[ok]] = number[ok]
        self.good[chosen_rows[~ok]] = False

    def _item_field(self, rows: Ints, at: Ints, after: Ints, taken: Ints) -> Bools:
        """Find key and value of an item in each of these rows; return which are plain."""
        data = self._data
        tag, at = _varints(data, at)
        ok: Bools = tag == self._key
        length, key = _varints(data, np.minimum(at, after))
        key_end = key + length
        ok &= (length >= 0) & (key_end < after)
        tag, at = _varints(data, np.where(ok, key_end, 0))
        ok &= tag == self._value
        length, value = _varints(data, np.minimum(at, after))
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
