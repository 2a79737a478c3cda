"""What a 3.x server can be asked, and its answers as columns, without neptune-query's data frames.

The requests are those of neptune-query 1.14.1 (``neptune_query/internal/retrieval``), the messages the protobuf classes
of neptune-api. What differs: numpy cuts points out of the answer's bytes, pages have a size of our choice, and many
runs share a request. Answers that cannot be read raise RefusedError.
"""

from __future__ import annotations

import json
import math
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from datetime import datetime
from typing import Any, BinaryIO, Final

from neptune_assets.schema import SERIES_TYPES, AttributeType
from neptune_assets.sources.live import ApiToken
from neptune_assets.sources.neptune3.connection import Connection, open_download
from neptune_assets.sources.neptune3.rows import (
    Attribute,
    FileReference,
    FloatPart,
    ListedRun,
    ObjectPart,
    Page,
    RefusedError,
    Request,
    RunAttributes,
)
from neptune_assets.sources.neptune3.settings import Neptune3Source
from neptune_assets.sources.neptune3.wire_points import Points, float_series
from neptune_assets.sources.times import moment_of

NAMES_OF_TYPES: Final = {
    AttributeType.FLOAT: "float",
    AttributeType.INT: "int",
    AttributeType.STRING: "string",
    AttributeType.BOOL: "bool",
    AttributeType.DATETIME: "datetime",
    AttributeType.STRING_SET: "stringSet",
    AttributeType.FLOAT_SERIES: "floatSeries",
    AttributeType.STRING_SERIES: "stringSeries",
    AttributeType.HISTOGRAM_SERIES: "histogramSeries",
    AttributeType.FILE: "fileRef",
    AttributeType.FILE_SERIES: "fileRefSeries",
}
TYPES: Final = {name: kind for kind, name in NAMES_OF_TYPES.items()}
_PROPERTIES: Final = {
    AttributeType.STRING_SERIES: "string_series_properties",
    AttributeType.HISTOGRAM_SERIES: "histogram_series_properties",
    AttributeType.FILE_SERIES: "file_ref_series_properties",
}
_SINGLE_PROPERTIES: Final = {
    "string": "string_properties",
    "int": "int_properties",
    "float": "float_properties",
    "bool": "bool_properties",
    "datetime": "datetime_properties",
    "stringSet": "string_set_properties",
    "fileRef": "file_ref_properties",
}
_NOT_DATA: Final = frozenset({"experimentState"})

LISTED: Final = (
    "sys/custom_run_id",
    "sys/id",
    "sys/creation_time",
    "sys/modification_time",
    "sys/archived",
    "sys/trashed",
    "sys/forking/parent",
    "sys/diagnostics/attributes/total_count",
    "sys/diagnostics/attributes/total_series_datapoints",
)


def listed_run(entry: Any) -> ListedRun:
    """Read one entry of a list of runs, which holds the attributes of :data:`LISTED` that the run has.

    An entry that does not say which run it is becomes a run with an empty ``sys_id``.
    """
    values = {attribute.name: _value(attribute) for attribute in entry.attributes}
    sys_id = str(values.get("sys/id") or "")
    modified = values.get("sys/modification_time")
    modified_at = _moment(modified)
    return ListedRun(
        run_id=str(values.get("sys/custom_run_id") or sys_id),
        sys_id=sys_id,
        created_at=_moment(values.get("sys/creation_time")),
        modified_at=modified_at,
        modified="" if modified is None or modified_at is not None else str(modified),
        archived=values.get("sys/archived") is True,
        trashed=values.get("sys/trashed") is True,
        parent=values.get("sys/forking/parent") or None,
        attributes=_count(values.get("sys/diagnostics/attributes/total_count")),
        points=_count(values.get("sys/diagnostics/attributes/total_series_datapoints")),
    )


def add_attributes(run: RunAttributes, attributes: Iterable[Any]) -> None:
    """Read attributes of a run; types this version does not know are kept by name."""
    for attribute in attributes:
        kind = TYPES.get(attribute.type)
        if kind is None:
            if attribute.type not in _NOT_DATA:
                run.unknown[attribute.name] = attribute.type
            continue
        if kind is AttributeType.FLOAT_SERIES:
            ends = attribute.float_series_properties
            last = ends.last_step if ends.HasField("last_step") else None
            run.attributes.append(Attribute(attribute.name, kind, None, last, ends.has_preview))
        elif kind in SERIES_TYPES:
            series = getattr(attribute, _PROPERTIES[kind])
            last = series.last_step if series.HasField("last_step") else None
            run.attributes.append(Attribute(attribute.name, kind, None, last))
        else:
            run.attributes.append(Attribute(attribute.name, kind, _value(attribute)))


def _value(attribute: Any) -> Any:
    """The value of a single attribute; None for series, and for a value that was not sent."""
    properties = _SINGLE_PROPERTIES.get(attribute.type)
    if properties is None or not attribute.HasField(properties):
        return None
    match attribute.type:
        case "string":
            return attribute.string_properties.value
        case "int":
            return attribute.int_properties.value
        case "float":
            return attribute.float_properties.value
        case "bool":
            return attribute.bool_properties.value
        case "datetime":
            return attribute.datetime_properties.value
        case "stringSet":
            return list(attribute.string_set_properties.value)
        case "fileRef":
            file = attribute.file_ref_properties
            return FileReference(file.path, file.sizeBytes, file.mimeType)
    return None


def object_value(value: Any) -> Any:
    """Read a point of a series: a string, a FileReference, or a histogram as (type, edges, values); None for others."""
    if value.HasField("stringValue"):
        return value.stringValue
    if value.HasField("fileRef"):
        return FileReference(value.fileRef.path, value.fileRef.sizeBytes, value.fileRef.mimeType)
    if not value.HasField("histogram"):
        return None
    histogram = value.histogram
    return (histogram.type, list(histogram.edges), list(histogram.values))


def _moment(milliseconds: Any) -> datetime | None:
    return moment_of(milliseconds) if isinstance(milliseconds, int) else None


def _count(value: Any) -> int:
    return max(0, value) if isinstance(value, int) else 0


def float_points(content: bytes) -> list[tuple[str, Points]]:
    """Read an answer with points of float series: request ids and points."""
    try:
        return float_series(content)
    except ValueError as error:
        raise RefusedError(f"The answer cannot be read: {error}.") from error


def json_of(content: bytes) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"The answer is not valid JSON: {error}.") from error
    if not isinstance(found, dict):
        raise RefusedError(f"The answer is not a JSON object but {found!r:.80}.")
    return found


@contextmanager
def understood() -> Iterator[None]:
    """Turn what goes wrong with JSON of another shape than was expected into a RefusedError."""
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise RefusedError(f"The answer cannot be understood: {type(error).__name__} {error!s:.200}.") from error


def text_of(value: Any) -> str:
    """A string that can be sent and kept; raises TypeError or ValueError for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a string")
    value.encode()
    return value


def parsed(message: Any, content: bytes) -> Any:
    """Read a protobuf message of a class."""
    from google.protobuf.message import DecodeError

    try:
        return message.FromString(content)
    except DecodeError as error:
        raise RefusedError(f"The answer cannot be read: {error}.") from error


def message(name: str) -> Any:
    """Return the class of a message by its name."""
    from neptune_api.proto.neptune_pb.api.v1.model import (
        attributes_pb2,
        leaderboard_entries_pb2,
        series_values_pb2,
    )

    for module in (leaderboard_entries_pb2, attributes_pb2, series_values_pb2):
        if hasattr(module, name):
            return getattr(module, name)
    raise KeyError(name)


_SEARCH: Final = "/api/leaderboard/v1/proto/leaderboard/entries/search/"
_VALUES: Final = "/api/leaderboard/v1/proto/leaderboard/attributes/query"
_DEFINITIONS: Final = "/api/leaderboard/v1/leaderboard/attributes/definitions/query"
_FLOATS: Final = "/api/leaderboard/v1/proto/attributes/series/float"
_OBJECTS: Final = "/api/leaderboard/v1/proto/attributes/series"
_PROJECTS: Final = "/api/backend/v1/projects"

_PAGE: Final = 10_000
_NAMES_BYTES: Final = 200_000
"""Attribute names in one request: neptune-query stays below 220,000 bytes."""
_TRIES: Final = 4
"""Attempts for a splittable request on HTTP 500; each half gets two."""
_EMPTY: Final = 100
"""Pages without points that a series may have one after the other before the series is given up."""
_GUESS: Final = 1_000.0
"""Points of a series, before any was read."""


class Client:
    """Asks one server. Every method raises :class:`RefusedError` for what will not heal.

    Methods may be called from several threads at a time. Those that take ``types`` take None for all.
    """

    def __init__(self, settings: Neptune3Source, token: ApiToken) -> None:
        self._settings = settings
        self._connection = Connection(settings, token)
        self._lock = threading.Lock()
        self._points_of_a_series = _GUESS

    def projects(self, workspace: str | None) -> list[str]:
        """Return the projects that the token may see, in one workspace or in all."""
        found: dict[str, None] = {}
        offset = 0
        while True:
            params = {"userRelation": "viewerOrHigher", "sortBy": "lastViewed", "offset": str(offset), "limit": "1000"}
            if workspace is not None:
                params["organizationIdentifier"] = workspace
            data = json_of(self._connection.get(_PROJECTS, params))
            with understood():
                names = [
                    f"{text_of(entry['organizationName'])}/{text_of(entry['name'])}"
                    for entry in data.get("entries") or ()
                ]
                total = int(data.get("matchingItemCount") or 0)
            new = [name for name in names if name not in found]
            found.update(dict.fromkeys(new))
            offset += len(names)
            # A server that knows no pages answers the same again.
            if not new or offset >= total:
                return sorted(name for name in found if workspace is None or name.startswith(f"{workspace}/"))

    def alive(self, project: str) -> None:
        """Ask for next to nothing, with patience. Raises RefusedError if that fails too."""
        body = {
            "projectIdentifiers": [project],
            "attributeNameFilter": {"mustMatchAny": [{"mustMatchRegexes": ["^sys/id$"]}]},
            "nextPage": {"limit": 1},
        }
        self._connection.post(_DEFINITIONS, body)

    def list_runs(self, project: str, query: Any = None) -> list[ListedRun]:
        """Return the runs of a project, the oldest first; one request for each ``runs_per_page``.

        ``query`` is a :class:`neptune_query.filters.Filter`, None for all.
        """
        limit = self._settings.runs_per_page
        runs: dict[tuple[str, str], ListedRun] = {}
        body: dict[str, Any] = {
            "attributeFilters": [{"path": name} for name in LISTED],
            "pagination": {"limit": limit, "offset": 0},
            "experimentLeader": False,
            "sorting": {"dir": "ascending", "sortBy": {"name": "sys/creation_time", "type": "datetime"}},
        }
        if query is not None:
            body["query"] = {"query": str(query._to_internal())}
        result = message("ProtoLeaderboardEntriesSearchResultDTO")
        while True:
            content = self._connection.post(_SEARCH, body, params={"projectIdentifier": project, "type": "run"})
            entries = parsed(result, content).entries
            before = len(runs)
            for entry in entries:
                run = listed_run(entry)
                runs[run.run_id, run.sys_id] = run
            if len(entries) < limit:
                return list(runs.values())
            if len(runs) == before:
                raise RefusedError(f"The server repeats a page of the list of runs, after {before:,} of them.")
            body["pagination"]["offset"] += limit

    def attributes(
        self,
        project: str,
        runs: Sequence[ListedRun],
        types: Sequence[str] | None,
        names: Sequence[str] | None = None,
    ) -> list[RunAttributes]:
        """Return what each run has, with the values of single attributes, in the order of ``runs``.

        With ``names``, attributes of these names only, whatever their types, and with less patience.
        """
        found = {run.sys_id: RunAttributes(run) for run in runs}
        body: dict[str, Any] = {**_scope(project, runs, types), "nextPage": {"limit": _PAGE}}
        if names is not None:
            body = {**_scope(project, runs, None), "attributeNamesFilter": list(names), "nextPage": {"limit": _PAGE}}
        result = message("ProtoQueryAttributesResultDTO")
        tries = _tries(again=names is not None)
        tokens: set[str] = set()
        while True:
            content = self._connection.post(_VALUES, body, params={"projectIdentifier": project}, tries_of_500=tries)
            answer = parsed(result, content)
            for entry in answer.entries:
                run = found.get(entry.experimentShortId)
                if run is not None:
                    add_attributes(run, entry.attributes)
            token = answer.nextPage.nextPageToken
            if not token:
                return list(found.values())
            body["nextPage"]["nextPageToken"] = _new(token, tokens)

    def definitions(
        self, project: str, runs: Sequence[ListedRun], types: Sequence[str] | None
    ) -> Mapping[str, Set[AttributeType]]:
        """Return the paths of all attributes of some runs, as ``list_attributes`` does, with their types."""
        body: dict[str, Any] = {
            "projectIdentifiers": [project],
            **_scope(project, runs, types),
            "nextPage": {"limit": _PAGE},
        }
        found: defaultdict[str, set[AttributeType]] = defaultdict(set)
        tokens: set[str] = set()
        while True:
            data = json_of(self._connection.post(_DEFINITIONS, body))
            with understood():
                entries = data.get("entries") or ()
                for entry in entries:
                    kind = TYPES.get(text_of(entry["type"]))
                    if kind is not None:
                        found[text_of(entry["name"])].add(kind)
                token = (data.get("nextPage") or {}).get("nextPageToken")
                if not token or len(entries) < _PAGE:
                    return found
                body["nextPage"]["nextPageToken"] = _new(text_of(token), tokens)

    def groups(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """Cut requests into groups; how many series go together depends on how long series were so far."""
        group: list[Request] = []
        size = 0
        for request in requests:
            length = len(request.path.encode("utf-8", "surrogatepass"))
            if group and (size + length > _NAMES_BYTES or len(group) >= self._series_together(request.type)):
                yield group
                group, size = [], 0
            group.append(request)
            size += length
        if group:
            yield group

    def page(self, project: str, requests: Sequence[Request], *, again: bool = False) -> Page:
        """Return the next points of series: float series only, or others only; ``again`` if these failed before."""
        if requests[0].type is AttributeType.FLOAT_SERIES:
            return self._float_page(project, requests, again)
        return self._object_page(project, requests, again)

    def download(self, project: str, run_id: str, path: str, step: float | None, reference: FileReference) -> BinaryIO:
        """Open a file for streaming; it is asked for again where the connection breaks."""
        return open_download(self._connection, project, reference)

    def _series_together(self, kind: AttributeType) -> int:
        if kind is not AttributeType.FLOAT_SERIES:
            return self._settings.series_per_page
        with self._lock:
            expected = self._points_of_a_series
        # Half as much again as expected, so that most series arrive whole.
        return max(1, min(self._settings.series_per_page, int(self._settings.points_per_page / (1.5 * expected + 1))))

    def _float_page(self, project: str, requests: Sequence[Request], again: bool) -> Page:
        limit = max(1, self._settings.points_per_page // len(requests))
        previews = self._settings.metric_previews
        body = {
            "requests": [
                {
                    "requestId": str(number),
                    "series": {**_series(project, request), "includePreview": previews},
                    **({} if request.after is None else {"afterStep": request.after}),
                }
                for number, request in enumerate(requests)
            ],
            "stepRange": {"from": None, "to": None},
            "order": "descending",
            "perSeriesPointsLimit": limit,
        }
        content = self._connection.post(_FLOATS, body, tries_of_500=_tries(again))
        parts: list[FloatPart] = []
        rest: list[Request] = []
        answered: set[str] = set()
        for request_id, points in float_points(content):
            request = _asked(requests, request_id, answered)
            if len(points):
                if request.after is not None and bool((points.step > float(request.after)).any()):
                    raise RefusedError("The server repeats points that it has sent before.")
                # Rising steps need no sorting later.
                rising = points.reversed()
                marks = (rising.preview, rising.completion) if previews and rising.preview.any() else (None, None)
                parts.append(FloatPart(request, rising.step, rising.time, rising.value, *marks))
            if len(points) >= limit:
                last = float(points.step[-1])
                if not math.isfinite(last) or (request.after is not None and last >= float(request.after)):
                    raise RefusedError(f"The server ends a page at the step {last}, from which nothing goes on.")
                rest.append(Request(request.run, request.path, request.type, last))
        self._learn(parts, [request for request in requests if request.after is None])
        return Page(parts, rest)

    def _learn(self, parts: Iterable[FloatPart], fresh: Sequence[Request]) -> None:
        if not fresh:
            return
        mean = sum(len(part.steps) for part in parts if part.request.after is None) / len(fresh)
        with self._lock:
            self._points_of_a_series = max(1.0, (self._points_of_a_series + mean) / 2)

    def _object_page(self, project: str, requests: Sequence[Request], again: bool) -> Page:
        body = {
            "requests": [
                {
                    "requestId": str(number),
                    "series": _series(project, request),
                    **(
                        {}
                        if request.after is None
                        else {"searchAfter": {"finished": False, "token": str(request.after)}}
                    ),
                }
                for number, request in enumerate(requests)
            ],
            "stepRange": {"from": None, "to": None},
            "order": "descending",
        }
        params = {"useDeprecatedStringFields": "false"}
        result = message("ProtoSeriesValuesResponseDTO")
        answer = parsed(result, self._connection.post(_OBJECTS, body, params=params, tries_of_500=_tries(again)))
        parts: list[ObjectPart] = []
        rest: list[Request] = []
        progress = False
        answered: set[str] = set()
        for series in answer.series:
            request = _asked(requests, series.requestId, answered)
            points = [
                (point.step, point.timestamp_millis, object_value(point.object)) for point in series.seriesValues.values
            ]
            if points:
                parts.append(ObjectPart(request, points))
            progress = progress or bool(points) or series.HasField("searchAfter")
            if series.HasField("searchAfter"):
                if not series.searchAfter.finished:
                    rest.append(_following(request, series.searchAfter.token, [point[0] for point in points]))
            elif not points:
                rest.append(request)
        # A server goes on naming series that it does not have: without progress there is nothing left.
        return Page(parts, rest if progress else ())


def _scope(project: str, runs: Sequence[ListedRun], types: Sequence[str] | None) -> dict[str, Any]:
    """The part of a request that says which runs and which types of attribute."""
    body: dict[str, Any] = {
        "experimentIdsFilter": [f"{project}/{run.sys_id}" for run in runs],
        "attributeNameFilter": {},
    }
    if types is not None:
        body["attributeFilter"] = [{"attributeType": NAMES_OF_TYPES[AttributeType(kind)]} for kind in types]
    return body


def _new(token: str, tokens: set[str]) -> str:
    """Remember the token of a next page. Raises RefusedError if it led to a page before."""
    if token in tokens:
        raise RefusedError("The server names a next page that it has sent before.")
    tokens.add(token)
    return token


def _asked(requests: Sequence[Request], request_id: str, answered: set[str]) -> Request:
    """Return the request that a series of an answer belongs to. Raises RefusedError if there is none left."""
    if not (request_id.isascii() and request_id.isdigit() and int(request_id) < len(requests)):
        raise RefusedError(f"The server answers a request {request_id!r:.40} that was not made.")
    if request_id in answered:
        raise RefusedError("The server answers the same request twice.")
    answered.add(request_id)
    return requests[int(request_id)]


def _following(request: Request, token: str, steps: Sequence[float]) -> Request:
    """Return the request for the next page of a series. Raises RefusedError if the last one led no further."""
    reached = request.reached
    if steps:
        lowest = min(steps)
        if reached is not None and not (lowest < reached and max(steps) <= reached):
            raise RefusedError("The server repeats points that it has sent before.")
        return Request(request.run, request.path, request.type, token, lowest)
    if token == request.after or request.empty >= _EMPTY:
        raise RefusedError("The server promises more points and sends none.")
    return Request(request.run, request.path, request.type, token, reached, request.empty + 1)


def _tries(again: bool) -> int:
    return 2 if again else _TRIES


def _series(project: str, request: Request) -> dict[str, Any]:
    return {
        "holder": {"identifier": f"{project}/{request.run.sys_id}", "type": "experiment"},
        "attribute": request.path,
        "lineage": "NONE",
        "lineageEntityType": "RUN",
    }
