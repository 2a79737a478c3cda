"""Points of float series out of the bytes of an answer, by numpy: no object and no Python call for a point.

The message is ``ProtoFloatSeriesValuesResponseDTO`` of Neptune's public API: series of points, each point a small
message of a time (varint), step and value (doubles), a preview flag and a completion (float). proto3 leaves out what is
zero, so points have a few different shapes; points of one shape are cut out of the buffer all at once. Bytes that do
not follow the format raise ValueError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_TIME, _STEP, _VALUE, _PREVIEW, _COMPLETION = 1, 2, 3, 4, 5
_NAMES: Final = ("time", "step", "value", "preview", "completion")
_MASK64: Final = (1 << 64) - 1
_LONG: Final = 256
"""Stretches of at least so many points are taken where they lie, shorter ones together."""
_SHORT: Final = 16
"""Stretches of fewer points than this cost more to find than to walk through."""

Bytes = npt.NDArray[np.uint8]


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


def float_series(content: bytes) -> Iterator[tuple[str, Points]]:
    """Yield request id and points of every series of an answer."""
    buffer = np.frombuffer(content, np.uint8)
    for number, kind, value, end in _fields(content, 0, len(content)):
        if number == 1 and kind == 2:
            yield _single_series(content, buffer, value, end)


def _single_series(content: bytes, buffer: Bytes, start: int, stop: int) -> tuple[str, Points]:
    request_id = ""
    points = _empty(0)
    for number, kind, value, end in _fields(content, start, stop):
        if number == 1 and kind == 2:
            request_id = content[value:end].decode("utf-8")
        elif number == 2 and kind == 2:
            points = _series(content, buffer, value, end)
    return request_id, points


def _series(content: bytes, buffer: Bytes, start: int, stop: int) -> Points:
    """Points of one ``ProtoFloatSeriesValuesDTO``: the count comes first, then nothing but points."""
    while start < stop and content[start] != 0x12:
        tag, start = _varint(content, start, stop)
        start = _skip(content, start, stop, tag & 7)
    stretches = list(_stretches(content, buffer, start, stop))
    points = _empty(sum(len(stretch) for stretch in stretches))
    first = 0
    mixed: list[npt.NDArray[np.int64]] = []
    places: list[npt.NDArray[np.int64]] = []
    for stretch in stretches:
        end = first + len(stretch)
        if isinstance(stretch, range) and len(stretch) >= _LONG:
            rows = buffer[stretch.start : stretch.stop].reshape(-1, stretch.step)
            _take(rows, slice(first, end), points)
        else:
            mixed.append(np.asarray(stretch, np.int64))
            places.append(np.arange(first, end))
        first = end
    if mixed:
        begins, where = np.concatenate(mixed), np.concatenate(places)
        strides = buffer[begins + 1].astype(np.int64) + 2
        for stride in np.unique(strides).tolist():
            chosen = strides == stride
            _take(buffer[begins[chosen][:, None] + np.arange(stride)], where[chosen], points)
    return points


def _stretches(content: bytes, buffer: Bytes, start: int, stop: int) -> Iterator[range | npt.NDArray[np.int64]]:
    """Where the points begin: ranges of points of one length, found at once, and arrays of points met one by one."""
    place, window = start, 64
    while place < stop:
        stride = _stride(content, place, stop)
        window = min(window, (stop - place) // stride)
        end = place + window * stride
        alike = (buffer[place:end:stride] == 0x12) & (buffer[place + 1 : end : stride] == stride - 2)
        count = window if alike.all() else int(np.argmin(alike))
        yield range(place, place + count * stride, stride)
        place += count * stride
        window = 8 * window if count == window else 64
        if count < _SHORT:
            singles: list[int] = []
            until = min(stop, place + 16 * _SHORT * stride)
            while place < until - 1 and content[place] == 0x12 and content[place + 1] < 0x80:
                singles.append(place)
                place += content[place + 1] + 2
            if place > stop:
                raise ValueError("the answer ends in the middle of a point")
            yield np.asarray(singles, np.int64)


def _take(rows: Bytes, where: slice | npt.NDArray[np.int64], points: Points) -> None:
    """Put points of one length to their places, those of one shape at a time."""
    while len(rows):
        shape = _shape(rows[0].tobytes())
        alike = (rows[:, shape.fixed] == rows[0, shape.fixed]).all(axis=1)
        for _, first, count in shape.varints:
            alike &= rows[:, first + count - 1] < 0x80
            if count > 1:
                alike &= (rows[:, first : first + count - 1] >= 0x80).all(axis=1)
        if alike.all():
            _extract(rows, shape, points, where)
            return
        if isinstance(where, slice):
            where = np.arange(where.start, where.stop)
        _extract(rows[alike], shape, points, where[alike])
        rows, where = rows[~alike], where[~alike]


def _stride(content: bytes, place: int, stop: int) -> int:
    """Bytes of the point that begins here, with its tag and length."""
    if content[place] != 0x12:
        raise ValueError(f"byte {place} of the answer is no point")
    stride = content[place + 1] + 2 if place + 1 < stop else 0
    if stride > 0x80:
        raise ValueError(f"the point at byte {place} of the answer is too long")
    if not 0 < stride <= stop - place:
        raise ValueError("the answer ends in the middle of a point")
    return stride


@dataclass(slots=True)
class _Shape:
    """Where the fields of a point lie, counted from the point's tag; ``fixed`` are bytes that tell the shape."""

    fixed: list[int]
    numbers: list[tuple[int, int, str]]
    """(field, first byte, numpy's name of its type)."""
    varints: list[tuple[int, int, int]]
    """(field, first byte, number of bytes)."""


def _shape(point: bytes) -> _Shape:
    shape = _Shape([0, 1], [], [])
    place = 2
    while place < len(point):
        number, kind = point[place] >> 3, point[place] & 7
        shape.fixed.append(place)
        place += 1
        if kind == 1 and number in {_STEP, _VALUE}:
            shape.numbers.append((number, place, "<f8"))
            place += 8
        elif kind == 5 and number == _COMPLETION:
            shape.numbers.append((number, place, "<f4"))
            place += 4
        elif kind == 0 and number in {_TIME, _PREVIEW}:
            _, end = _varint(point, place, len(point))
            shape.varints.append((number, place, end - place))
            place = end
        else:
            raise ValueError(f"a point holds field {number} of kind {kind}, which this version does not know")
    if place != len(point):
        raise ValueError("a field of a point goes beyond its end")
    return shape


def _extract(rows: Bytes, shape: _Shape, points: Points, where: Any) -> None:
    """Write the fields of rows of one shape to their places; fields that are left out stay zero."""
    for number, first, kind in shape.numbers:
        cells = np.ascontiguousarray(rows[:, first : first + int(kind[-1])]).view(kind)[:, 0]
        getattr(points, _NAMES[number - 1])[where] = cells
    for number, first, count in shape.varints:
        total = np.zeros(len(rows), np.uint64)
        for index in range(count):
            total |= (rows[:, first + index] & 0x7F).astype(np.uint64) << np.uint64(7 * index)
        if number == _TIME:
            points.time[where] = total.view(np.int64)
        else:
            points.preview[where] = total != 0


def _empty(count: int) -> Points:
    return Points(
        np.zeros(count, np.int64),
        np.zeros(count, np.float64),
        np.zeros(count, np.float64),
        np.zeros(count, np.bool_),
        np.zeros(count, np.float64),
    )


def _fields(content: bytes, place: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire kind, where its content begins, where it ends) of a message."""
    while place < stop:
        tag, place = _varint(content, place, stop)
        kind = tag & 7
        if kind == 2:
            length, place = _varint(content, place, stop)
            end = place + length
            if end > stop:
                raise ValueError("a message of the answer goes beyond its end")
        else:
            end = _skip(content, place, stop, kind)
        yield tag >> 3, kind, place, end
        place = end


def _skip(content: bytes, place: int, stop: int, kind: int) -> int:
    if kind == 0:
        return _varint(content, place, stop)[1]
    if kind == 2:
        length, place = _varint(content, place, stop)
        end = place + length
    elif kind in {1, 5}:
        end = place + (8 if kind == 1 else 4)
    else:
        raise ValueError(f"the answer holds a field of kind {kind}, which protobuf does not know")
    if end > stop:
        raise ValueError("a field of the answer goes beyond its end")
    return end


def _varint(content: bytes, place: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while place < stop and shift < 70:
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK64, place
        shift += 7
    raise ValueError("a number of the answer has no end")
