"""Pages of float series as JSON, column by column: an object for each point would be the limit of the server."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from starlette.responses import Response

from neptune_assets.server.neptune2.answers import Json
from neptune_assets.server.series import FloatPoints, step_doubles


def float_page(total: int, points: FloatPoints) -> Response:
    """Return the answer with a page of points, of so many in all."""
    steps, values = step_doubles(points.steps), points.values
    if not len(points) or not _plain(values) or not _plain(steps):
        return Json({"totalItemCount": total, "values": _objects(points)})
    texts = pc.binary_join_element_wise(
        '{"step":',
        _texts(steps),
        ',"timestampMillis":',
        _texts(points.times),
        ',"value":',
        _texts(values),
        "},",
        "",
    )
    # Strings of an array lie one after the other: what they make together is there already.
    _, offsets, letters = texts.buffers()
    first, last = (int(np.frombuffer(offsets, np.int32)[texts.offset + place]) for place in (0, len(texts)))
    body = b"".join((b'{"totalItemCount":%d,"values":[' % total, memoryview(letters)[first : last - 1], b"]}"))
    return Response(body, media_type=Json.media_type)


def _plain(numbers: np.ndarray) -> bool:
    """True if JSON has all these numbers as Arrow writes them: -0 would come back as the integer 0."""
    return bool((np.isfinite(numbers) & ((numbers != 0) | ~np.signbit(numbers))).all())


def _texts(numbers: np.ndarray) -> pa.Array:
    """Numbers as the shortest texts that stand for them."""
    return pa.array(numbers).cast(pa.string())


def _objects(points: FloatPoints) -> list[dict[str, float | int]]:
    return [
        {"step": step, "timestampMillis": moment, "value": number}
        for step, moment, number in zip(
            step_doubles(points.steps).tolist(), points.times.tolist(), points.values.tolist(), strict=True
        )
    ]
