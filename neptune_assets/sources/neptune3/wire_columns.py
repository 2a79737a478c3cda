"""Points of equal length, cut into columns: one look at the bytes of the first tells where the fields of all lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from neptune_assets.sources.neptune3.wire_fields import varint

_TIME, _STEP, _VALUE, _PREVIEW, _COMPLETION = 1, 2, 3, 4, 5
_NAMES: Final = ("time", "step", "value", "preview", "completion")
_BLOCK: Final = 16_384
"""Points that are worked on at once: what is made of them on the way stays in the processor's cache."""

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


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
        if kind == 1 and number in {_STEP, _VALUE}:
            shape.numbers.append((number, place, "<f8"))
            place += 8
        elif kind == 5 and number == _COMPLETION:
            shape.numbers.append((number, place, "<f4"))
            place += 4
        elif kind == 0 and number in {_TIME, _PREVIEW}:
            _, end = varint(point, place, len(point))
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
        getattr(points, _NAMES[number - 1])[where] = _cells(rows, first, kind)
    for number, first, count in shape.varints:
        numbers = _varints(rows, first, count)
        if number == _TIME:
            points.time[where] = numbers.view(np.int64)
        else:
            points.preview[where] = numbers != 0


def _cells(rows: Bytes, first: int, kind: str) -> npt.NDArray[Any]:
    """Numbers of a type that lie at the same place in every row, wherever that is."""
    return np.ndarray(len(rows), kind, rows, first, (rows.strides[0],))


def _varints(rows: Bytes, first: int, count: int) -> npt.NDArray[np.uint64]:
    """Varints of so many bytes, seven bits in each, the lowest first."""
    if count <= 8 and first + 8 <= rows.shape[1]:
        return _folded(_cells(rows, first, "<u8"), count)
    total = np.zeros(len(rows), np.uint64)
    for index in range(count):
        total |= (rows[:, first + index] & 0x7F).astype(np.uint64) << np.uint64(7 * index)
    return total


def _folded(words: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.uint64]:
    """Varints of so many bytes read as eight: groups of 7, 14, 28 bits are moved together, two at a time."""
    found = words & np.uint64((1 << 8 * count) - 1 & 0x7F7F7F7F7F7F7F7F)
    for bits in (7, 14, 28):
        # Of every pair of groups, the upper one lies (8 * bits / 7 - bits) bits too high.
        width = 8 * bits // 7
        low = sum(((1 << bits) - 1) << 2 * width * pair for pair in range(32 // width))
        high = low << width
        found = (found & np.uint64(low)) | ((found & np.uint64(high)) >> np.uint64(width - bits))
    return found
