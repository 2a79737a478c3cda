"""Handlers for neptune-query: pages of float, text, histogram and file series, and series in buckets for charts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
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
    ProtoPointValueDTO,
    ProtoSeriesValuesDTO,
    ProtoSeriesValuesResponseDTO,
    ProtoSeriesValuesSearchAfterDTO,
    ProtoSeriesValuesSingleSeriesResponseDTO,
    ProtoTimeseriesBucketsDTO,
    TimeseriesBucket,
    TimeseriesBuckets,
)
from starlette.responses import Response, StreamingResponse

from neptune_assets.protobuf_columns import (
    FIXED32,
    FIXED64,
    LENGTH_DELIMITED,
    VARINT,
    field_bytes,
    field_tag,
    varint,
    varint_rows,
    varint_width,
)
from neptune_assets.schema import MICROSTEPS, AttributeType
from neptune_assets.server.catalog.catalog import Catalog
from neptune_assets.server.catalog.search import NameFilter, values
from neptune_assets.server.catalog.search import ends as catalog_ends
from neptune_assets.server.catalog.tables import Run
from neptune_assets.server.endpoints import PROTOBUF, ApiError, Call
from neptune_assets.server.neptune3.reading import (
    field,
    find_runs,
    first_from,
    last_to,
    make_token,
    objects,
    read_token,
    reading,
    set_file,
    set_histogram,
    step,
)
from neptune_assets.server.series import Bucket, FloatPoints, Lineage, ObjectPoint, SeriesReader, Window, step_doubles


@dataclass(frozen=True, slots=True)
class SeriesRequest:
    """One series that is asked for; ``body`` is the request as it came."""

    id: str
    run: Run
    path: str
    lineage: Lineage
    previews: bool
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SeriesRequests:
    """All series of a request, runs together, with bounds that hold for all of them."""

    series: list[SeriesRequest]
    window: Window
    descending: bool


def series_requests(call: Call) -> SeriesRequests:
    """Read a request for series; those of runs that are not there are left out."""
    body = call.json_object()
    asked = objects(body, "requests")
    holders = [field(field(item, "series", dict, {}), "holder", dict, {}) for item in asked]
    identifiers = [field(holder, "identifier", str, "") for holder in holders]
    runs = find_runs(call.service.catalog, identifiers)
    found = []
    for item, identifier in zip(asked, identifiers, strict=True):
        run, series = runs.get(identifier), field(item, "series", dict, {})
        if run is not None:
            found.append(
                SeriesRequest(
                    id=field(item, "requestId", str, ""),
                    run=run,
                    path=field(series, "attribute", str, ""),
                    lineage=lineage_of(series.get("lineage") != "NONE", series.get("lineageEntityType") != "RUN"),
                    previews=field(series, "includePreview", bool, False),
                    body=item,
                )
            )
    steps = field(body, "stepRange", dict, {})
    limit = body.get("perSeriesPointsLimit")
    # Some clients share a total out among the series and send what the division gives.
    if limit is not None and (not isinstance(limit, int | float) or isinstance(limit, bool) or not 0 <= limit < 2**31):
        raise ApiError(400, "BAD_REQUEST", "perSeriesPointsLimit must be a positive number.")
    limit = None if limit is None else int(limit)
    descending = field(body, "order", str, "ascending") == "descending"
    # The lake holds the series of a run together: asked one after the other, they are decoded once.
    found.sort(key=lambda item: (item.run.number, item.path))
    return SeriesRequests(
        found, Window(first_from(step(steps, "from")), last_to(step(steps, "to")), limit, descending), descending
    )


def lineage_of(full: bool, experiment: bool) -> Lineage:
    """Return how far back a request goes."""
    if full:
        return Lineage.FULL
    return Lineage.EXPERIMENT if experiment else Lineage.OWN


_REQUEST_ID, _SERIES, _TOTAL, _VALUES = 1, 2, 1, 2
_BLOCK: Final = 65_536
"""Points that are encoded at a time."""


def float_series_message(request_id: str, points: FloatPoints, *, descending: bool) -> Iterator[bytes]:
    """Yield field ``series`` of ``ProtoFloatSeriesValuesResponseDTO`` with one series, in pieces of bounded size."""
    size = _point_size(points)
    total = field_tag(_TOTAL, VARINT) + varint(len(points)) if len(points) else b""
    body = len(total) + len(points) * (2 + size)
    inner = field_bytes(_REQUEST_ID, request_id.encode()) + field_tag(_SERIES, LENGTH_DELIMITED) + varint(body)
    yield field_tag(1, LENGTH_DELIMITED) + varint(len(inner) + body) + inner + total
    starts = range(0, len(points), _BLOCK)
    for start in reversed(starts) if descending else starts:
        yield _encoded(points.slice(start, start + _BLOCK), size, descending=descending)


def _point_size(points: FloatPoints) -> int:
    """Return how many bytes every point takes."""
    return 1 + varint_width(points.times) + 9 + 9 + 5 + (2 if points.previews is not None else 0)


def _encoded(points: FloatPoints, size: int, *, descending: bool) -> bytes:
    """Return the points as repeated field ``values`` of ``ProtoFloatSeriesValuesDTO``."""
    count = len(points)
    order = slice(None, None, -1) if descending else slice(None)
    width = size - 1 - 9 - 9 - 5 - (2 if points.previews is not None else 0)
    out = np.empty((count, 2 + size), np.uint8)
    out[:, 0] = _VALUES << 3 | LENGTH_DELIMITED
    out[:, 1] = size
    out[:, 2] = 1 << 3 | VARINT
    out[:, 3 : 3 + width] = varint_rows(points.times[order], width)
    place = 3 + width
    for tag, doubles in ((2, step_doubles(points.steps[order])), (3, points.values[order])):
        out[:, place] = tag << 3 | FIXED64
        out[:, place + 1 : place + 9] = np.ascontiguousarray(doubles, "<f8").view(np.uint8).reshape(count, 8)
        place += 9
    ratios = np.ones(count, "<f4")
    if points.previews is not None:
        completion = points.previews[order]
        final = np.isnan(completion)
        out[:, place] = 4 << 3 | VARINT
        out[:, place + 1] = ~final
        place += 2
        ratios = np.where(final, np.float32(1), completion).astype("<f4")
    out[:, place] = 5 << 3 | FIXED32
    out[:, place + 1 : place + 5] = ratios.view(np.uint8).reshape(count, 4)
    return out.tobytes()


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


_PAGE_POINTS: Final = 10_000
_PAGE_BYTES: Final = 8 << 20
_FIRST_BLOCK: Final = 16
_OBJECT_SERIES: Final = frozenset(
    {AttributeType.STRING_SERIES, AttributeType.HISTOGRAM_SERIES, AttributeType.FILE_SERIES}
)
_DONE: Final = "done"


@reading
def object_series(call: Call) -> Response:
    """Answer a page. Series that are not there are left out; those that had no room come without ``searchAfter``."""
    asked = series_requests(call)
    kinds = _kinds(call, asked)
    page = _Page(call.service.series, asked, deprecated=call.query.get("useDeprecatedStringFields") == "true")
    answers = [page.series(item, kind) for item in asked.series if (kind := kinds.get((item.run.number, item.path)))]
    return Response(ProtoSeriesValuesResponseDTO(series=answers).SerializeToString(), media_type=PROTOBUF)


def _kinds(call: Call, asked: SeriesRequests) -> dict[tuple[int, str], AttributeType]:
    runs = list({item.run.number: item.run for item in asked.series}.values())
    paths = {item.path for item in asked.series}
    found, _ = values(
        call.service.catalog, call.service.series, runs, NameFilter(paths, types=_OBJECT_SERIES), complete=False
    )
    return {(value.run.number, value.path): value.type for value in found}


class _Page:
    def __init__(self, reader: SeriesReader, asked: SeriesRequests, *, deprecated: bool) -> None:
        self._reader = reader
        self._asked = asked
        self._deprecated = deprecated
        self._points = _PAGE_POINTS
        self._bytes = _PAGE_BYTES

    def series(self, item: SeriesRequest, kind: AttributeType) -> ProtoSeriesValuesSingleSeriesResponseDTO:
        """Return what of a series fits into the page."""
        answer = ProtoSeriesValuesSingleSeriesResponseDTO(requestId=item.id)
        holder = answer.string_series if self._deprecated else answer.seriesValues
        holder.SetInParent()
        if self._points <= 0 or self._bytes <= 0:
            return answer
        step, count = _progress(item)
        finished = False
        while not finished and self._points > 0 and self._bytes > 0:
            wanted = self._block(holder)
            cap = self._asked.window.limit
            if cap is not None:
                wanted = min(wanted, cap - count)
            if wanted <= 0:
                finished = True
                break
            points = self._reader.objects(item.run, item.path, kind, self._window(step, wanted), item.lineage)
            sent = 0
            for point in reversed(points) if self._asked.descending else points:
                if self._bytes <= 0:
                    break
                self._add(holder, point, kind)
                step, sent = point.step, sent + 1
            count += sent
            finished = sent == len(points) < wanted
        answer.searchAfter.CopyFrom(
            ProtoSeriesValuesSearchAfterDTO(
                finished=finished, token=_DONE if finished or step is None else make_token(step, count)
            )
        )
        return answer

    def _block(self, holder: ProtoSeriesValuesDTO) -> int:
        """Return how many points to read next: few at first, then as many as probably have room."""
        if not holder.values:
            return min(_FIRST_BLOCK, self._points)
        used = (_PAGE_BYTES - self._bytes) / max(1, _PAGE_POINTS - self._points)
        return max(1, min(self._points, int(self._bytes / max(1.0, used))))

    def _window(self, step: int | None, limit: int) -> Window:
        window = Window(self._asked.window.low, self._asked.window.high, limit, self._asked.descending)
        if step is None:
            return window
        return window.narrowed(None, step - 1) if self._asked.descending else window.narrowed(step + 1, None)

    def _add(self, holder: ProtoSeriesValuesDTO, point: ObjectPoint, kind: AttributeType) -> None:
        message: ProtoPointValueDTO = holder.values.add()
        message.timestamp_millis = point.time
        message.step = point.step / MICROSTEPS
        message.completion_ratio = 1.0
        if kind is AttributeType.HISTOGRAM_SERIES:
            set_histogram(message.object.histogram, point.value)
        elif kind is AttributeType.FILE_SERIES:
            set_file(message.object.fileRef, point.value)
        elif self._deprecated:
            message.value = point.value or ""
        else:
            message.object.stringValue = point.value or ""
        self._points -= 1
        self._bytes -= message.ByteSize()


def _progress(item: SeriesRequest) -> tuple[int | None, int]:
    """Return the step that the last page ended with, and how many points were sent so far."""
    token = field(field(item.body, "searchAfter", dict, {}), "token", str, "")
    if not token:
        return None, 0
    state = read_token(token)
    if len(state) != 2 or not all(isinstance(number, int) for number in state):
        raise ApiError(400, "BAD_REQUEST", "The token of the page is not of this server.")
    return state[0], state[1]


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
