"""Points of float series as protobuf, whole arrays at a time: message objects would be the limit of the server.

A point is the message ``ProtoFloatPointValueDTO``: timestamp_millis (1, varint), step (2, double), value (3, double),
is_preview (4, bool), completion_ratio (5, float). All points of an array get the same number of bytes: varints are
padded to the longest one, which every parser takes.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from neptune_assets.server.series.points import FloatPoints, step_doubles

_LENGTH_DELIMITED: Final = 2
_REQUEST_ID, _SERIES, _TOTAL, _VALUES = 1, 2, 1, 2


def float_series_message(request_id: str, points: FloatPoints, *, descending: bool) -> bytes:
    """Return field ``series`` of ``ProtoFloatSeriesValuesResponseDTO`` with one series."""
    body = encode_points(points, descending=descending)
    total = _tag(_TOTAL, 0) + varint(len(points)) if len(points) else b""
    name = request_id.encode()
    inner = b"".join(
        (
            _tag(_REQUEST_ID, _LENGTH_DELIMITED),
            varint(len(name)),
            name,
            _tag(_SERIES, _LENGTH_DELIMITED),
            varint(len(total) + len(body)),
            total,
            body,
        )
    )
    return _tag(1, _LENGTH_DELIMITED) + varint(len(inner)) + inner


def encode_points(points: FloatPoints, *, descending: bool) -> bytes:
    """Return the points as repeated field ``values`` of ``ProtoFloatSeriesValuesDTO``."""
    count = len(points)
    if not count:
        return b""
    order = slice(None, None, -1) if descending else slice(None)
    times = _varints(points.times[order])
    width = times.shape[1]
    previewed = points.previews is not None
    size = 1 + width + 9 + 9 + 5 + (2 if previewed else 0)
    out = np.empty((count, 2 + size), np.uint8)
    out[:, 0] = _byte(_VALUES, _LENGTH_DELIMITED)
    out[:, 1] = size
    out[:, 2] = _byte(1, 0)
    out[:, 3 : 3 + width] = times
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


def _varints(values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return one row of bytes for each number, all of the same length; negative ones take ten bytes."""
    bits = values.astype(np.uint64)
    width = max(1, -(-int(bits.max()).bit_length() // 7))
    shifts = np.arange(width, dtype=np.uint64) * np.uint64(7)
    out = ((bits[:, None] >> shifts) & np.uint64(0x7F)).astype(np.uint8)
    out[:, :-1] |= 0x80
    return out


def _byte(field: int, kind: int) -> int:
    return field << 3 | kind


def _tag(field: int, kind: int) -> bytes:
    return bytes((_byte(field, kind),))
