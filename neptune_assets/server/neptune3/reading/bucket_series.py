"""Series gathered into buckets, for charts of many series."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError
from neptune_api.proto.neptune_pb.api.v1.model.requests_pb2 import (
    LineageEntityType,
    ProtoCustomExpression,
    ProtoGetTimeseriesBucketsRequest,
    ProtoLineage,
    ProtoScale,
)
from neptune_api.proto.neptune_pb.api.v1.model.series_values_pb2 import (
    FinitePoint,
    ProtoTimeseriesBucketsDTO,
    TimeseriesBucket,
    TimeseriesBuckets,
)
from starlette.responses import Response

from neptune_assets.schema import MICROSTEPS
from neptune_assets.server.catalog.catalog import Catalog
from neptune_assets.server.catalog.search import ends as catalog_ends
from neptune_assets.server.catalog.tables import Run
from neptune_assets.server.endpoints import PROTOBUF, ApiError, Call
from neptune_assets.server.neptune3.reading.requests import find_runs, reading
from neptune_assets.server.neptune3.reading.series_requests import lineage_of
from neptune_assets.server.series import Bucket, Lineage, SeriesReader, Window

_MAX_SERIES: Final = 1_000
_MAX_BUCKETS: Final = 10_000
_FORMULA: Final = re.compile(r"\$\{((?:[^\\${}]|\\.)*)\}", re.DOTALL)
_ENDS: Final = (Window(limit=1, last=False), Window(limit=1, last=True))


@dataclass(frozen=True, slots=True)
class Asked:
    """One series of a request."""

    run: Run
    path: str
    lineage: Lineage
    previews: bool
    request: str


@reading
def bucket_series(call: Call) -> Response:
    """Answer buckets of all series over one range: the view's, or from the first to the last step of all of them."""
    asked = _parsed(call.body)
    view, reader = asked.view, call.service.series
    if not view.xAxis.HasField("steps") or view.xScale != ProtoScale.linear:
        raise ApiError(400, "BAD_REQUEST", "Buckets are along steps, on a linear scale.")
    if not 1 <= view.maxBuckets <= _MAX_BUCKETS or len(asked.expressions) > _MAX_SERIES:
        raise ApiError(400, "BAD_REQUEST", f"At most {_MAX_SERIES} series in at most {_MAX_BUCKETS} buckets.")
    runs = find_runs(call.service.catalog, [item.runId for item in asked.expressions]) if asked.expressions else {}
    # The lake holds the series of a run together: asked one after the other, they are decoded once.
    series = sorted(
        (Asked(run, _path(item), _lineage(item), item.includePreview, item.requestId) for item in asked.expressions
         if (run := runs.get(item.runId)) is not None),
        key=lambda item: (item.run.number, item.path),
    )  # fmt: skip
    # Ranges first: they are the same for all series, wherever each of them begins and ends.
    low = getattr(view, "from") if view.HasField("from") else None
    high = view.to if view.HasField("to") else None
    if low is None or high is None:
        ends = all_ends(call.service.catalog, reader, series)
        low = min(ends, default=None) if low is None else low
        high = max(ends, default=None) if high is None else high
    entries = {item.requestId: TimeseriesBuckets(requestId=item.requestId) for item in asked.expressions}
    if low is not None and high is not None:
        for wanted in series:
            found = reader.buckets(
                wanted.run, wanted.path, low, high, view.maxBuckets, wanted.lineage, previews=wanted.previews
            )
            entries[wanted.request].bucket.extend(map(_message, found))
    answer = ProtoTimeseriesBucketsDTO(entries=entries.values())
    return Response(answer.SerializeToString(), media_type=PROTOBUF)


def _parsed(body: bytes) -> ProtoGetTimeseriesBucketsRequest:
    try:
        return ProtoGetTimeseriesBucketsRequest.FromString(body)
    except DecodeError as error:
        raise ApiError(400, "BAD_REQUEST", "The body is not the message of this call.") from error


def all_ends(catalog: Catalog, reader: SeriesReader, series: Sequence[Asked]) -> list[float]:
    """Return the first and the last steps of all series that have points, as far as they are asked for."""
    known = catalog_ends(catalog, [(item.run.number, item.path) for item in series if is_alone(item)])
    steps: list[int] = []
    for item in series:
        if is_alone(item):
            steps.extend(known.get((item.run.number, item.path), ()))
            continue
        for window in _ENDS:
            points = reader.floats(item.run, item.path, window, item.lineage, previews=item.previews)
            steps.extend(points.steps.tolist())
    return [step / MICROSTEPS for step in steps]


def is_alone(item: Asked) -> bool:
    """True for a series of the lake in a run that continues no other: the catalog knows where it begins and ends."""
    return item.run.origin == "lake" and item.run.parent is None


def _lineage(item: ProtoCustomExpression) -> Lineage:
    return lineage_of(item.lineage == ProtoLineage.FULL, item.entityType == LineageEntityType.EXPERIMENT)


def _path(item: ProtoCustomExpression) -> str:
    match = _FORMULA.fullmatch(item.customYFormula)
    if match is None:
        raise ApiError(400, "BAD_REQUEST", f"{item.customYFormula!r} is not the name of one series, ${{...}}.")
    return re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL)


def _message(bucket: Bucket) -> TimeseriesBucket:
    return TimeseriesBucket(
        index=bucket.index,
        fromX=bucket.low,
        toX=bucket.high,
        first=FinitePoint(x=bucket.first[0], y=bucket.first[1]),
        last=FinitePoint(x=bucket.last[0], y=bucket.last[1]),
        localMin=bucket.least,
        localMax=bucket.greatest,
        finitePointCount=bucket.finite,
        nanCount=bucket.nans,
        positiveInfCount=bucket.positive_infinities,
        negativeInfCount=bucket.negative_infinities,
        localSum=bucket.total,
    )
