"""Points of float series as protobuf, whole arrays at a time: message objects would be the limit of the server.

A point is the message ``ProtoFloatPointValueDTO``: timestamp_millis (1, varint), step (2, double), value (3, double),
is_preview (4, bool), completion_ratio (5, float). All points of an array get the same number of bytes: varints are
padded to the longest one, which every parser takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from neptune_assets.server.series import FloatPoints, step_doubles

_LENGTH_DELIMITED: Final = 2
_REQUEST_ID, _SERIES, _TOTAL, _VALUES = 1, 2, 1, 2
_BLOCK: Final = 65_536
"""Points that are encoded at a time."""


def float_series_message(request_id: str, points: FloatPoints, *, descending: bool) -> Iterator[bytes]:
    """Yield field ``series`` of ``ProtoFloatSeriesValuesResponseDTO`` with one series, in pieces of bounded size."""
    size = _point_size(points)
    total = _tag(_TOTAL, 0) + varint(len(points)) if len(points) else b""
    body = len(total) + len(points) * (2 + size)
    name = request_id.encode()
    inner = b"".join(
        (
            _tag(_REQUEST_ID, _LENGTH_DELIMITED),
            varint(len(name)),
            name,
            _tag(_SERIES, _LENGTH_DELIMITED),
            varint(body),
        )
    )
    yield _tag(1, _LENGTH_DELIMITED) + varint(len(inner) + body) + inner + total
    starts = range(0, len(points), _BLOCK)
    for start in reversed(starts) if descending else starts:
        yield _encoded(points.slice(start, start + _BLOCK), size, descending=descending)


def _point_size(points: FloatPoints) -> int:
    """Return how many bytes every point takes."""
    return 1 + _width(points.times) + 9 + 9 + 5 + (2 if points.previews is not None else 0)


def _encoded(points: FloatPoints, size: int, *, descending: bool) -> bytes:
    """Return the points as repeated field ``values`` of ``ProtoFloatSeriesValuesDTO``."""
    count = len(points)
    order = slice(None, None, -1) if descending else slice(None)
    width = size - 1 - 9 - 9 - 5 - (2 if points.previews is not None else 0)
    out = np.empty((count, 2 + size), np.uint8)
    out[:, 0] = _byte(_VALUES, _LENGTH_DELIMITED)
    out[:, 1] = size
    out[:, 2] = _byte(1, 0)
    out[:, 3 : 3 + width] = _varints(points.times[order], width)
    place = 3 + width
    for field, doubles in ((2, step_doubles(points.steps[order])), (3, points.values[order])):
        out[:, place] = _byte(field, 1)
        out[:, place + 1 : place + 9] = np.ascontiguousarray(doubles, "<f8").view(np.uint8).reshape(count, 8)
        place += 9
    ratios = np.ones(count, "<f4")
    if points.previews is not None:
        completion = points.previews[order]
        final = np.isnan(completion)
        out[:, place] = _byte(4, 0)
        out[:, place + 1] = ~final
        place += 2
        ratios = np.where(final, np.float32(1), completion).astype("<f4")
    out[:, place] = _byte(5, 5)
    out[:, place + 1 : place + 5] = ratios.view(np.uint8).reshape(count, 4)
    return out.tobytes()


def varint(value: int) -> bytes:
    """Return a number that is not negative as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _width(values: npt.NDArray[np.int64]) -> int:
    """Return the bytes of the longest varint of these numbers; negative ones take ten."""
    longest = int(values.astype(np.uint64).max()).bit_length() if len(values) else 0
    return max(1, -(-longest // 7))


def _varints(values: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.uint8]:
    """Return one row of bytes for each number, all of the same length."""
    shifts = np.arange(width, dtype=np.uint64) * np.uint64(7)
    out = ((values.astype(np.uint64)[:, None] >> shifts) & np.uint64(0x7F)).astype(np.uint8)
    out[:, :-1] |= 0x80
    return out


def _byte(field: int, kind: int) -> int:
    return field << 3 | kind


def _tag(field: int, kind: int) -> bytes:
    return bytes((_byte(field, kind),))
