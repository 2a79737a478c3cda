"""Tables of runs and experiments: which match, in which order, with the attributes asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from itertools import chain, groupby, islice
from typing import Any, Final

from neptune_api.proto.neptune_pb.api.v1.model.leaderboard_entries_pb2 import (
    ProtoAttributesDTO,
    ProtoLeaderboardEntriesSearchResultDTO,
)
from starlette.responses import Response, StreamingResponse

from neptune_assets.errors import LakeError, UnknownProjectError
from neptune_assets.server.catalog.catalog import Catalog
from neptune_assets.server.catalog.search import YOUNGEST, Found, NameFilter, Search, Value, search, values
from neptune_assets.server.catalog.tables import Run
from neptune_assets.server.endpoints import PROTOBUF, ApiError, Call
from neptune_assets.server.neptune3.reading.requests import field, objects, reading
from neptune_assets.server.neptune3.reading.wire import WIRE_TYPES, attribute
from neptune_assets.server.nql import Operand, parse

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
