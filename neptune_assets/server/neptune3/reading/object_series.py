"""Points of series of strings, histograms and files: pages bounded by points and bytes, with tokens to go on."""

from __future__ import annotations

from typing import Final

from neptune_api.proto.neptune_pb.api.v1.model.series_values_pb2 import (
    ProtoPointValueDTO,
    ProtoSeriesValuesDTO,
    ProtoSeriesValuesResponseDTO,
    ProtoSeriesValuesSearchAfterDTO,
    ProtoSeriesValuesSingleSeriesResponseDTO,
)
from starlette.responses import Response

from neptune_assets.schema import MICROSTEPS, AttributeType
from neptune_assets.server.catalog.search import NameFilter, values
from neptune_assets.server.endpoints import PROTOBUF, ApiError, Call
from neptune_assets.server.neptune3.reading.requests import field, make_token, read_token, reading
from neptune_assets.server.neptune3.reading.series_requests import SeriesRequest, SeriesRequests, series_requests
from neptune_assets.server.neptune3.reading.wire import set_file, set_histogram
from neptune_assets.server.series import ObjectPoint, SeriesReader, Window

_PAGE_POINTS: Final = 10_000
_PAGE_BYTES: Final = 8 << 20
_FIRST_BLOCK: Final = 16
_SERIES: Final = frozenset({AttributeType.STRING_SERIES, AttributeType.HISTOGRAM_SERIES, AttributeType.FILE_SERIES})
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
    found, _ = values(call.service.catalog, call.service.series, runs, NameFilter(paths, types=_SERIES), complete=False)
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
