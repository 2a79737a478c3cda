"""Points of float series, many series in one answer, each up to a number of points."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import Final

from starlette.responses import Response, StreamingResponse

from neptune_assets.server.endpoints import PROTOBUF, Call
from neptune_assets.server.neptune3.reading.float_encoding import float_series_message
from neptune_assets.server.neptune3.reading.requests import first_from, last_to, reading, step
from neptune_assets.server.neptune3.reading.series_requests import SeriesRequests, series_requests
from neptune_assets.server.series import SeriesReader

_PIECE: Final = 1 << 20
"""Bytes gathered before they are sent."""


@reading
def float_series(call: Call) -> Response:
    """Answer points; a client asks again, after the last step it got, for series that filled their limit."""
    asked = series_requests(call)
    pieces = _pieces(call.service.series, asked)
    # What cannot be read at all is an error, not an answer that breaks off.
    first = next(pieces, b"")
    return StreamingResponse(chain([first], pieces), media_type=PROTOBUF)


def _beyond(after: float, *, descending: bool) -> tuple[int | None, int | None]:
    """Return the bounds of the points that come after one with this step."""
    if descending:
        return None, last_to(math.nextafter(after, -math.inf))
    return first_from(math.nextafter(after, math.inf)), None


def _pieces(reader: SeriesReader, asked: SeriesRequests) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for item in asked.series:
        window = asked.window
        after = step(item.body, "afterStep")
        if after is not None:
            window = window.narrowed(*_beyond(after, descending=asked.descending))
        points = reader.floats(item.run, item.path, window, item.lineage, previews=item.previews)
        for block in float_series_message(item.id, points, descending=asked.descending):
            held.append(block)
            size += len(block)
            if size >= _PIECE:
                yield b"".join(held)
                held, size = [], 0
    if held:
        yield b"".join(held)
