"""Series gathered into buckets, for charts of many series."""

from __future__ import annotations

import re
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
from neptune_assets.server.catalog.runs import Run
from neptune_assets.server.endpoints import PROTOBUF, ApiError, Call
from neptune_assets.server.neptune3.reading.requests import find_runs, reading
from neptune_assets.server.neptune3.reading.series_requests import lineage_of
from neptune_assets.server.series.buckets import Bucket, edges, gather
from neptune_assets.server.series.lineage import Lineage
from neptune_assets.server.series.points import Window
from neptune_assets.server.series.reader import SeriesReader

_MAX_SERIES: Final = 1_000
_MAX_BUCKETS: Final = 10_000
_FORMULA: Final = re.compile(r"\$\{((?:[^\\${}]|\\.)*)\}", re.DOTALL)
_ENDS: Final = (Window(limit=1, last=False), Window(limit=1, last=True))


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
    # Ranges first: they are the same for all series, wherever each of them begins and ends.
    low = getattr(view, "from") if view.HasField("from") else None
    high = view.to if view.HasField("to") else None
    if low is None or high is None:
        ends = [
            step
            for item in asked.expressions
            if (run := runs.get(item.runId)) is not None
            for step in _ends(reader, item, run)
        ]
        low = min(ends, default=None) if low is None else low
        high = max(ends, default=None) if high is None else high
    answer = ProtoTimeseriesBucketsDTO()
    for item in asked.expressions:
        run = runs.get(item.runId)
        entry = TimeseriesBuckets(requestId=item.requestId)
        if run is not None and low is not None and high is not None:
            points = reader.float_pieces(run, _path(item), lineage=_lineage(item), previews=item.includePreview)
            entry.bucket.extend(_message(bucket) for bucket in gather(points, low, edges(low, high, view.maxBuckets)))
        answer.entries.append(entry)
    return Response(answer.SerializeToString(), media_type=PROTOBUF)


def _parsed(body: bytes) -> ProtoGetTimeseriesBucketsRequest:
    try:
        return ProtoGetTimeseriesBucketsRequest.FromString(body)
    except DecodeError as error:
        raise ApiError(400, "BAD_REQUEST", "The body is not the message of this call.") from error


def _ends(reader: SeriesReader, item: ProtoCustomExpression, run: Run) -> list[float]:
    return [
        float(step) / MICROSTEPS
        for window in _ENDS
        for step in reader.floats(run, _path(item), window, _lineage(item), previews=item.includePreview).steps
    ]


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
