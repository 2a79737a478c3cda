"""Points of float series out of the bytes of an answer, by numpy: no object and no Python call for a point.

The message is ``ProtoFloatSeriesValuesResponseDTO`` of Neptune's public API: series of points, each point a small
message of a time (varint), step and value (doubles), a preview flag and a completion (float). proto3 leaves out what is
zero, so points have a few different lengths; here they are found, and those of one length, of all series of the answer,
are cut into columns at once (:mod:`.wire_columns`). Bytes that do not follow the format raise ValueError.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from neptune_assets.sources.neptune3.wire_columns import Bytes, Ints, Points, add_points
from neptune_assets.sources.neptune3.wire_fields import fields, skip, varint

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
        if number == 1 and kind == 2
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
        raise ValueError(f"byte {place} of the answer is no point")
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
        if number == 1 and kind == 2:
            request_id = content[value:end].decode("utf-8")
        elif number == 2 and kind == 2:
            begin, end_of_points = _first_point(content, value, end), end
    return request_id, begin, end_of_points


def _first_point(content: bytes, start: int, stop: int) -> int:
    """Where the points of a ``ProtoFloatSeriesValuesDTO`` begin: the count comes first, then nothing but points."""
    while start < stop and content[start] != _TAG:
        tag, start = varint(content, start, stop)
        start = skip(content, start, stop, tag & 7)
    return start
