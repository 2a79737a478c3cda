"""Which attributes there are: names and types, of projects or of some runs."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import JSONResponse, Response

from neptune_assets.server.catalog.search import definitions
from neptune_assets.server.endpoints import ApiError, Call
from neptune_assets.server.neptune3.reading.requests import (
    find_runs,
    known_projects,
    make_token,
    name_filter,
    page_limit,
    page_token,
    reading,
    texts,
)
from neptune_assets.server.neptune3.reading.wire import WIRE_TYPES

_PAGE: Final = 10_000


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
