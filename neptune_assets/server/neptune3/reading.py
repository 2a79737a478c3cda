"""Handlers for neptune-query: tables of runs and experiments, attribute definitions and attribute values."""

from __future__ import annotations

import base64
import functools
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import chain, groupby, islice
from mimetypes import guess_type
from types import MappingProxyType
from typing import Any, Final, TypeVar

from neptune_api.proto.neptune_pb.api.v1.model.attributes_pb2 import (
    ProtoNextPageDTO,
    ProtoQueryAttributesExperimentResultDTO,
    ProtoQueryAttributesResultDTO,
)
from neptune_api.proto.neptune_pb.api.v1.model.leaderboard_entries_pb2 import (
    ProtoAttributeDTO,
    ProtoAttributesDTO,
    ProtoLeaderboardEntriesSearchResultDTO,
)
from starlette.responses import JSONResponse, Response, StreamingResponse

from neptune_assets.errors import LakeError, UnknownProjectError
from neptune_assets.schema import MICROSTEPS, AttributeType
from neptune_assets.server.catalog.catalog import Catalog
from neptune_assets.server.catalog.search import (
    YOUNGEST,
    Alternative,
    Found,
    NameFilter,
    Place,
    Search,
    Value,
    definitions,
    search,
    values,
)
from neptune_assets.server.catalog.tables import Run
from neptune_assets.server.endpoints import PROTOBUF, ApiError, Call
from neptune_assets.server.nql import Operand, QueryError, QuerySyntaxError, parse

WIRE_TYPES: Final[Mapping[AttributeType, str]] = MappingProxyType(
    {
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
)
"""The protocol's words for types; file sets and artifacts, which are of 2.x, it has none for."""

TYPES: Final[Mapping[str, AttributeType]] = MappingProxyType({word: kind for kind, word in WIRE_TYPES.items()})


def attribute(value: Value) -> ProtoAttributeDTO:
    """Return the message of one attribute; its type must be one of :data:`WIRE_TYPES`."""
    kind, word = value.type, WIRE_TYPES[value.type]
    message = ProtoAttributeDTO(name=value.path, type=word)
    named = {"attribute_name": value.path, "attribute_type": word}
    if kind is AttributeType.FLOAT:
        _set(message.float_properties, named, value=value.number)
    elif kind is AttributeType.INT:
        _set(message.int_properties, named, value=value.whole)
    elif kind is AttributeType.STRING:
        _set(message.string_properties, named, value=value.text)
    elif kind is AttributeType.BOOL:
        _set(message.bool_properties, named, value=value.flag)
    elif kind is AttributeType.DATETIME:
        _set(message.datetime_properties, named, value=value.moment)
    elif kind is AttributeType.STRING_SET:
        _set(message.string_set_properties, named)
        message.string_set_properties.value.extend(value.members or ())
    elif kind is AttributeType.FLOAT_SERIES:
        _float_series(message, value, named)
    elif kind is AttributeType.STRING_SERIES:
        _set(message.string_series_properties, named, last_step=_step(value), last=value.text)
    elif kind is AttributeType.HISTOGRAM_SERIES:
        _set(message.histogram_series_properties, named, last_step=_step(value))
        if value.detail is not None:
            set_histogram(message.histogram_series_properties.last, json.loads(value.detail))
    elif kind is AttributeType.FILE:
        _set(message.file_ref_properties, named)
        set_file(message.file_ref_properties, json.loads(value.detail or "{}"))
    else:
        _set(message.file_ref_series_properties, named, last_step=_step(value))
        if value.detail is not None:
            set_file(message.file_ref_series_properties.last, json.loads(value.detail))
    return message


def set_file(message: Any, stored: Mapping[str, Any]) -> None:
    """Fill in a reference to a file from what the store or the lake keeps of it."""
    path = stored.get("path") or ""
    message.path = path
    message.sizeBytes = int(stored.get("size") or 0)
    # The lake does not keep what a file is; its name tells.
    message.mimeType = stored.get("mime_type") or guess_type(path)[0] or "application/octet-stream"


def set_histogram(message: Any, stored: Mapping[str, Any]) -> None:
    """Fill in a histogram."""
    message.type = stored.get("type") or "COUNTING"
    message.edges.extend(_number(edge) for edge in stored.get("edges") or ())
    message.values.extend(_number(count) for count in stored.get("values") or ())


def _float_series(message: ProtoAttributeDTO, value: Value, named: Mapping[str, str]) -> None:
    _set(
        message.float_series_properties,
        named,
        last_step=_step(value),
        last=value.number,
        min=value.least,
        max=value.greatest,
        average=value.mean,
        variance=value.variance,
        has_preview=value.previewed,
    )


def _set(message: Any, named: Mapping[str, str], **cells: Any) -> None:
    message.attribute_name = named["attribute_name"]
    message.attribute_type = named["attribute_type"]
    for name, cell in cells.items():
        if cell is not None:
            setattr(message, name, cell)


def _step(value: Value) -> float | None:
    return None if value.last_step is None else value.last_step / MICROSTEPS


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


_T = TypeVar("_T")
_MAX_STEP = 10**12


def reading(handler: Callable[[Call], Response]) -> Callable[[Call], Response]:
    """Let a handler answer queries that are wrong with 400 and say why."""

    @functools.wraps(handler)
    def answer(call: Call) -> Response:
        try:
            return handler(call)
        except QuerySyntaxError as error:
            raise ApiError(400, "BAD_REQUEST", str(error), title="Syntax error") from error
        except QueryError as error:
            raise ApiError(400, "BAD_REQUEST", str(error)) from error

    return answer


def field(body: Mapping[str, Any], name: str, kind: type[_T], default: _T) -> _T:
    """Return a field of a JSON object; null counts as missing. Raises ApiError if it has another type."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise ApiError(400, "BAD_REQUEST", f"{name} must be of type {kind.__name__}.")
    return value


def objects(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return a field that is a list of objects, empty if it is missing."""
    items = field(body, name, list, [])
    if not all(isinstance(item, dict) for item in items):
        raise ApiError(400, "BAD_REQUEST", f"{name} must hold objects.")
    return items


def texts(body: Mapping[str, Any], name: str) -> list[str]:
    """Return a field that is a list of strings, empty if it is missing."""
    items = field(body, name, list, [])
    if not all(isinstance(item, str) for item in items):
        raise ApiError(400, "BAD_REQUEST", f"{name} must hold strings.")
    return items


def step(body: Mapping[str, Any], name: str) -> float | None:
    """Return a field that is a step; None if it is missing."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ApiError(400, "BAD_REQUEST", f"{name} must be a number.")
    # Bounds beyond all steps keep their meaning.
    return float(max(-_MAX_STEP, min(_MAX_STEP, value)))


def first_from(value: float | None) -> int | None:
    """Return the first micro-step that, as the double that clients see, is not below a step; None for no bound."""
    if value is None:
        return None
    # Beyond 9e9 doubles are further apart than micro-steps: several of these look alike.
    found = round(Decimal(value) * MICROSTEPS)
    while (found - 1) / MICROSTEPS >= value:
        found -= 1
    while found / MICROSTEPS < value:
        found += 1
    return found


def last_to(value: float | None) -> int | None:
    """Return the last micro-step that, as the double that clients see, is not above a step; None for no bound."""
    if value is None:
        return None
    beyond = first_from(math.nextafter(value, math.inf))
    return None if beyond is None else beyond - 1


def split_identifier(identifier: str) -> tuple[str, str, bool]:
    """Return project, id, and whether it is the id that a user chose. Raises ApiError for anything else."""
    custom = identifier.startswith("CUSTOM/")
    parts = identifier.removeprefix("CUSTOM/").split("/", 2) if custom else identifier.split("/", 2)
    if len(parts) != 3:
        raise ApiError(400, "BAD_REQUEST", f"{identifier!r} names no run.")
    return f"{parts[0]}/{parts[1]}", parts[2], custom


def find_runs(catalog: Catalog, identifiers: Iterable[str]) -> dict[str, Run]:
    """Return the runs that identifiers name, those that there are. Projects are brought up to date.

    Raises UnknownProjectError if none of their projects is there.
    """
    wanted = {identifier: split_identifier(identifier) for identifier in identifiers}
    known_projects(catalog, {project for project, _, _ in wanted.values()})
    found = {}
    for identifier, (project, name, custom) in wanted.items():
        runs = catalog.runs(project)
        run = runs.by_id(name) if custom else runs.by_sys_id(name)
        if run is not None:
            found[identifier] = run
    return found


def known_projects(catalog: Catalog, projects: Iterable[str]) -> list[str]:
    """Bring projects up to date and return those that there are. Raises UnknownProjectError if there is none."""
    found: list[str] = []
    unknown: UnknownProjectError | None = None
    for project in sorted(set(projects)):
        try:
            catalog.refresh(project)
            found.append(project)
        except UnknownProjectError as error:
            unknown = error
    if unknown is not None and not found:
        raise unknown
    return found


def name_filter(body: Mapping[str, Any]) -> NameFilter:
    """Return which attributes a request means: ``attributeNamesFilter``, or expressions and types."""
    paths = texts(body, "attributeNamesFilter") if body.get("attributeNamesFilter") is not None else None
    alternatives = None
    names = field(body, "attributeNameFilter", dict, {})
    if names.get("mustMatchAny") is not None:
        alternatives = [
            Alternative(texts(item, "mustMatchRegexes"), texts(item, "mustNotMatchRegexes"))
            for item in objects(names, "mustMatchAny")
        ]
    types: set[AttributeType] = set(WIRE_TYPES)
    asked = objects(body, "attributeFilter")
    if asked:
        words = {field(item, "attributeType", str, "") for item in asked}
        types = {kind for word, kind in TYPES.items() if word in words}
    return NameFilter(paths, alternatives, types)


def page_limit(body: Mapping[str, Any], default: int) -> int:
    """Return how many items a page may have."""
    return max(0, field(field(body, "nextPage", dict, {}), "limit", int, default))


def page_token(body: Mapping[str, Any]) -> list[Any] | None:
    """Return what the token of the next page holds; None for the first page. Raises ApiError if it is not ours."""
    token = field(field(body, "nextPage", dict, {}), "nextPageToken", str, "")
    return read_token(token) if token else None


def make_token(*state: int | str) -> str:
    """Return a token that holds some state."""
    return base64.urlsafe_b64encode(json.dumps(state, separators=(",", ":")).encode()).decode()


def read_token(token: str) -> list[Any]:
    """Return the state in a token. Raises ApiError if it is not one of ours."""
    try:
        state = json.loads(base64.urlsafe_b64decode(token))
    except ValueError:
        state = None
    if not isinstance(state, list):
        raise ApiError(400, "BAD_REQUEST", "The token of the page is not of this server.")
    return state


_PAGE: Final = 10_000


@reading
def attribute_values(call: Call) -> Response:
    """Answer a page of values; the values of a run may go on in the next one."""
    body, catalog = call.json_object(), call.service.catalog
    project = call.query.get("projectIdentifier", "")
    catalog.refresh(project)
    if body.get("experimentIdsFilter") is None:
        runs = sorted(catalog.runs(project), key=lambda run: run.number)
    else:
        identifiers = texts(body, "experimentIdsFilter")
        runs = list({run.number: run for run in find_runs(catalog, identifiers).values()}.values())
    limit = max(1, min(_PAGE, page_limit(body, _PAGE)))
    state = page_token(body)
    found, place = values(
        catalog,
        call.service.series,
        runs,
        name_filter(body),
        after=None if state is None else _place(state),
        limit=limit,
    )
    answer = ProtoQueryAttributesResultDTO(
        entries=[
            ProtoQueryAttributesExperimentResultDTO(
                experimentId=run.uuid or run.run_id,
                experimentShortId=run.sys_id,
                attributes=[attribute(value) for value in group],
            )
            for run, group in groupby(found, lambda value: value.run)
        ],
        nextPage=ProtoNextPageDTO(limit=limit),
    )
    if place is not None:
        answer.nextPage.nextPageToken = make_token(place.run, place.path, place.type)
    return Response(answer.SerializeToString(), media_type=PROTOBUF)


def _place(state: list[object]) -> Place:
    if len(state) == 3:
        run, path, kind = state
        if isinstance(run, int) and isinstance(path, str) and isinstance(kind, str):
            return Place(run, path, kind)
    raise ApiError(400, "BAD_REQUEST", "The token of the page is not of this server.")


@reading
def attribute_definitions(call: Call) -> Response:
    """Answer a page of distinct names and types."""
    body, catalog = call.json_object(), call.service.catalog
    projects = known_projects(catalog, texts(body, "projectIdentifiers"))
    runs = None
    if body.get("experimentIdsFilter") is not None:
        runs = {run.number for run in find_runs(catalog, texts(body, "experimentIdsFilter")).values()}
    limit, state = page_limit(body, _PAGE), page_token(body)
    if state is not None and not (len(state) == 2 and all(isinstance(item, str) for item in state)):
        raise ApiError(400, "BAD_REQUEST", "The token of the page is not of this server.")
    after = None if state is None else (state[0], state[1])
    found = definitions(catalog, projects, name_filter(body), runs=runs, after=after, limit=limit)
    page: dict[str, Any] = {"limit": limit}
    if found and len(found) == limit:
        page["nextPageToken"] = make_token(*found[-1])
    entries = [{"name": path, "type": WIRE_TYPES[kind]} for path, kind in found]
    return JSONResponse({"entries": entries, "nextPage": page})


_log = logging.getLogger(__name__)
_MAX_PAGE: Final = 10_000
_VALUES_AT_ONCE: Final = 20_000
_IDENTITY: Final = ("sys/id", "sys/custom_run_id", "sys/name")
_AGGREGATES: Final = frozenset({"last", "min", "max", "average", "variance"})


@reading
def search_project(call: Call) -> Response:
    """Answer a table of one project; runs come with the attributes named, or all."""
    project = call.query.get("projectIdentifier", "")
    call.service.catalog.refresh(project)
    body = call.json_object()
    paths = [field(item, "path", str, "") for item in objects(body, "attributeFilters")]
    return _answer(call, _asked([project], body), paths or None)


@reading
def search_everywhere(call: Call) -> Response:
    """Answer a table over all projects; runs come with what names them."""
    return _answer(call, _asked(_readable(call.service.catalog), call.json_object()), list(_IDENTITY))


def _readable(catalog: Catalog) -> list[str]:
    """Bring all projects up to date; one that cannot be read does not keep the others from being found."""
    found = []
    for project in catalog.projects():
        try:
            catalog.refresh(project)
            found.append(project)
        except (LakeError, UnknownProjectError):
            _log.exception("Project %s is left out of a search over all projects.", project)
    return found


def _asked(projects: list[str], body: Mapping[str, Any]) -> Search:
    page = field(body, "pagination", dict, {})
    limit, offset = field(page, "limit", int, _MAX_PAGE), field(page, "offset", int, 0)
    if limit < 0 or offset < 0:
        raise ApiError(400, "BAD_REQUEST", "limit and offset must not be negative.")
    sorting = field(body, "sorting", dict, {})
    direction = field(sorting, "dir", str, "descending")
    return Search(
        projects=projects,
        query=parse(field(field(body, "query", dict, {}), "query", str, "")),
        heads=field(body, "experimentLeader", bool, False),
        sort=_sort(sorting),
        descending=direction != "ascending",
        limit=min(limit, _MAX_PAGE),
        offset=offset,
    )


def _sort(sorting: Mapping[str, Any]) -> Operand:
    by = field(sorting, "sortBy", dict, {})
    name = field(by, "name", str, "")
    if not name:
        return YOUNGEST
    # One client says the aggregate beside the attribute, another inside of it.
    aggregate = field(by, "aggregationMode", str, "") or field(sorting, "aggregationMode", str, "")
    return Operand(
        name,
        field(by, "type", str, "") or None,
        aggregate if aggregate in _AGGREGATES else None,  # type: ignore[arg-type]
    )


def _answer(call: Call, asked: Search, paths: list[str] | None) -> Response:
    found = search(call.service.catalog, call.service.series, asked)
    pieces = _pieces(call, found, paths)
    # What cannot be read at all is an error, not an answer that breaks off.
    first = [*islice(pieces, 2)]
    return StreamingResponse(chain(first, pieces), media_type=PROTOBUF)


def _pieces(call: Call, found: Found, paths: list[str] | None) -> Iterator[bytes]:
    """Yield serialized messages that are, one after the other, one message: a table may be too large for one piece."""
    yield ProtoLeaderboardEntriesSearchResultDTO(matching_item_count=found.total).SerializeToString()
    wanted = NameFilter(paths=paths, types=set(WIRE_TYPES))
    size = max(1, _VALUES_AT_ONCE // max(1, len(paths) if paths is not None else 200))
    for start in range(0, len(found.runs), size):
        runs = found.runs[start : start + size]
        cells, _ = values(call.service.catalog, call.service.series, runs, wanted)
        of_run = {run.number: list(group) for run, group in groupby(cells, lambda cell: cell.run)}
        entries = [_entry(run, of_run.get(run.number, [])) for run in runs]
        yield ProtoLeaderboardEntriesSearchResultDTO(entries=entries).SerializeToString()


def _entry(run: Run, cells: list[Value]) -> ProtoAttributesDTO:
    workspace, _, name = run.project.partition("/")
    return ProtoAttributesDTO(
        experiment_id=run.uuid or run.run_id,
        type="run",
        project_id=run.project,
        organization_id=workspace,
        project_name=name,
        organization_name=workspace,
        attributes=[attribute(cell) for cell in cells],
    )
