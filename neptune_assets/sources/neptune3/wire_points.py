"""Points of float series out of the bytes of an answer, by numpy: no object and no Python call for a point.

The message is ``ProtoFloatSeriesValuesResponseDTO`` of Neptune's public API: series of points, each point a small
message of a time (varint), step and value (doubles), a preview flag and a completion (float). proto3 leaves out what is
zero, so points have a few different lengths; here they are found, and those of one length, of all series of the answer,
are cut into columns at once: one look at the bytes of the first tells where the fields of all are. Bytes that do not
follow the format raise ValueError.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from neptune_assets.protobuf_columns import (
    FIXED32,
    FIXED64,
    LENGTH_DELIMITED,
    VARINT,
    Bytes,
    Ints,
    fields,
    read_column,
    read_varint,
    read_varint_column,
)

_TIME, _STEP, _VALUE, _PREVIEW, _COMPLETION = 1, 2, 3, 4, 5
_NAMES: Final = ("time", "step", "value", "preview", "completion")
_BLOCK: Final = 16_384
"""Points that are worked on at once: what is made of them on the way stays in the processor's cache."""


@dataclass(slots=True)
class Points:
    """Columns of one series, in the order received: epoch milliseconds, step, value, preview flag, completion."""

    time: npt.NDArray[np.int64]
    step: npt.NDArray[np.float64]
    value: npt.NDArray[np.float64]
    preview: npt.NDArray[np.bool_]
    completion: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.step)

    @classmethod
    def zeros(cls, count: int) -> Points:
        """So many points of nothing but zeros: what a point leaves out is zero."""
        return cls(
            np.zeros(count, np.int64),
            np.zeros(count, np.float64),
            np.zeros(count, np.float64),
            np.zeros(count, np.bool_),
            np.zeros(count, np.float64),
        )

    def slice(self, start: int, stop: int) -> Points:
        """Some of the points; nothing is copied."""
        return Points(
            self.time[start:stop],
            self.step[start:stop],
            self.value[start:stop],
            self.preview[start:stop],
            self.completion[start:stop],
        )

    def reversed(self) -> Points:
        """The points in the opposite order; nothing is copied."""
        return Points(self.time[::-1], self.step[::-1], self.value[::-1], self.preview[::-1], self.completion[::-1])


def add_points(rows: Bytes, targets: Ints | None, points: Points) -> None:
    """Put points, one in each row of bytes, to their places; None for ``targets`` is everywhere, in order."""
    for first in range(0, len(rows), _BLOCK):
        block = slice(first, min(first + _BLOCK, len(rows)))
        _take(rows[block], block if targets is None else targets[block], points)


def _take(rows: Bytes, where: slice | Ints, points: Points) -> None:
    """Put points to their places, those of one shape at a time."""
    while len(rows):
        shape = _shape(rows[0].tobytes())
        alike = _alike(rows, shape)
        if alike.all():
            _extract(rows, shape, points, where)
            return
        if isinstance(where, slice):
            where = np.arange(where.start, where.stop)
        _extract(rows[alike], shape, points, where[alike])
        rows, where = rows[~alike], where[~alike]


@dataclass(slots=True)
class _Shape:
    """Where the fields of a point lie, counted from the point's tag; ``tags`` are the bytes that name them."""

    tags: list[int]
    numbers: list[tuple[int, int, str]]
    """(field, first byte, numpy's name of its type)."""
    varints: list[tuple[int, int, int]]
    """(field, first byte, number of bytes)."""


def _shape(point: bytes) -> _Shape:
    shape = _Shape([], [], [])
    place = 2
    while place < len(point):
        number, kind = point[place] >> 3, point[place] & 7
        shape.tags.append(place)
        place += 1
        if kind == FIXED64 and number in {_STEP, _VALUE}:
            shape.numbers.append((number, place, "<f8"))
            place += 8
        elif kind == FIXED32 and number == _COMPLETION:
            shape.numbers.append((number, place, "<f4"))
            place += 4
        elif kind == VARINT and number in {_TIME, _PREVIEW}:
            _, end = read_varint(point, place, len(point))
            shape.varints.append((number, place, end - place))
            place = end
        else:
            raise ValueError(f"a point holds field {number} of kind {kind}, which this version does not know")
    if place != len(point):
        raise ValueError("a field of a point goes beyond its end")
    return shape


def _alike(rows: Bytes, shape: _Shape) -> npt.NDArray[np.bool_]:
    """Which points have the fields of the first one at the same places."""
    alike = np.ones(len(rows), np.bool_)
    for place in shape.tags:
        alike &= rows[:, place] == rows[0, place]
    for _, first, count in shape.varints:
        for place in range(first, first + count - 1):
            alike &= rows[:, place] >= 0x80
        alike &= rows[:, first + count - 1] < 0x80
    return alike


def _extract(rows: Bytes, shape: _Shape, points: Points, where: Any) -> None:
    """Write the fields of rows of one shape to their places; fields that are left out stay zero."""
    for number, first, kind in shape.numbers:
        getattr(points, _NAMES[number - 1])[where] = read_column(rows, first, kind)
    for number, first, count in shape.varints:
        numbers = read_varint_column(rows, first, count)
        if number == _TIME:
            points.time[where] = numbers.view(np.int64)
        else:
            points.preview[where] = numbers != 0


_TAG: Final = 0x12
"""Begins every point."""
_SHORT: Final = 16
"""Stretches of fewer points than this cost more to find than to walk through."""


@dataclass(slots=True)
class _Places:
    """Where points of one length begin in the answer, and where they go: stretches without a gap, and single ones."""

    stretches: list[tuple[int, int, int]] = field(default_factory=list)
    """(first byte, number of points, place of the first among all points)."""
    singles: list[tuple[int, int]] = field(default_factory=list)
    """(first byte, place among all points)."""


def float_series(content: bytes) -> list[tuple[str, Points]]:
    """Return request id and points of every series of an answer."""
    found = [
        _single_series(content, value, end)
        for number, kind, value, end in fields(content, 0, len(content))
        if number == 1 and kind == LENGTH_DELIMITED
    ]
    buffer = np.frombuffer(content, np.uint8)
    bounds = [(start, stop) for _, start, stop in found]
    columns, ends = _columns(content, buffer, bounds, hopeful=True) or _certain(content, buffer, bounds)
    starts = [0, *ends]
    return [(name, columns.slice(starts[place], ends[place])) for place, (name, _, _) in enumerate(found)]


def _certain(content: bytes, buffer: Bytes, bounds: Sequence[tuple[int, int]]) -> tuple[Points, list[int]]:
    columns = _columns(content, buffer, bounds, hopeful=False)
    assert columns is not None  # noqa: S101 - every point was looked at
    return columns


def _columns(
    content: bytes, buffer: Bytes, bounds: Sequence[tuple[int, int]], *, hopeful: bool
) -> tuple[Points, list[int]] | None:
    """Points of all series one after the other, and where each series ends.

    ``hopeful`` takes the points of a series for equally long if that is how they fill it, and looks at all of them at
    once later; None if that was wrong.
    """
    places: dict[int, _Places] = defaultdict(_Places)
    ends: list[int] = []
    total = 0
    for start, stop in bounds:
        if start < stop:
            stride = _stride(content, start, stop)
            count, odd = divmod(stop - start, stride)
            if hopeful and not odd:
                places[stride].stretches.append((start, count, total))
                total += count
            else:
                total = _walk(content, buffer, start, stop, total, places)
        ends.append(total)
    points = Points.zeros(total)
    for stride, where in places.items():
        rows, targets = _gather(buffer, stride, where, total)
        alike = (rows[:, 0] == _TAG) & (rows[:, 1] == stride - 2)
        if not alike.all():
            return None
        add_points(rows, targets, points)
    return points, ends


def _gather(buffer: Bytes, stride: int, where: _Places, total: int) -> tuple[Bytes, Ints | None]:
    """Points of one length as rows, and where they go; None if that is everywhere, in order."""
    blocks = [buffer[start : start + count * stride].reshape(-1, stride) for start, count, _ in where.stretches]
    if where.singles:
        begins = np.array([start for start, _ in where.singles], np.int64)
        blocks.append(buffer[begins[:, None] + np.arange(stride)])
    rows = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    if len(rows) == total and not where.singles:
        return rows, None
    targets = [np.arange(place, place + count) for _, count, place in where.stretches]
    targets.append(np.array([place for _, place in where.singles], np.int64))
    return rows, np.concatenate(targets)


def _walk(content: bytes, buffer: Bytes, place: int, stop: int, total: int, places: dict[int, _Places]) -> int:
    """Find the points between two bytes, of whatever lengths; return how many points there are now."""
    # At first the rest of the series is looked at at once, then stretches that grow.
    window = stop - place
    while place < stop:
        stride = _stride(content, place, stop)
        window = min(window, (stop - place) // stride)
        end = place + window * stride
        alike = (buffer[place:end:stride] == _TAG) & (buffer[place + 1 : end : stride] == stride - 2)
        count = window if alike.all() else int(np.argmin(alike))
        places[stride].stretches.append((place, count, total))
        total += count
        place += count * stride
        window = 8 * window if count == window else 64
        if count < _SHORT:
            until = min(stop, place + 16 * _SHORT * stride)
            while place < until - 1 and content[place] == _TAG and content[place + 1] < 0x80:
                places[content[place + 1] + 2].singles.append((place, total))
                total += 1
                place += content[place + 1] + 2
            if place > stop:
                raise ValueError("the answer ends in the middle of a point")
    return total


def _stride(content: bytes, place: int, stop: int) -> int:
    """Bytes of the point that begins here, with its tag and length."""
    if content[place] != _TAG:
        raise ValueError(f"byte {place} of the answer is not a point")
    stride = content[place + 1] + 2 if place + 1 < stop else 0
    if stride > 0x80:
        raise ValueError(f"the point at byte {place} of the answer is too long")
    if not 0 < stride <= stop - place:
        raise ValueError("the answer ends in the middle of a point")
    return stride


def _single_series(content: bytes, start: int, stop: int) -> tuple[str, int, int]:
    """Request id of one series, and between which bytes its points lie."""
    request_id, begin, end_of_points = "", 0, 0
    for number, kind, value, end in fields(content, start, stop):
        if number == 1 and kind == LENGTH_DELIMITED:
            request_id = content[value:end].decode("utf-8")
        elif number == 2 and kind == LENGTH_DELIMITED:
            begin, end_of_points = _first_point(content, value, end), end
    return request_id, begin, end_of_points


def _first_point(content: bytes, start: int, stop: int) -> int:
    """Where the points of a ``ProtoFloatSeriesValuesDTO`` begin: the count comes first, then nothing but points."""
    for number, kind, _, end in fields(content, start, stop):
        if number == 2 and kind == LENGTH_DELIMITED:
            break
        start = end
    return start
