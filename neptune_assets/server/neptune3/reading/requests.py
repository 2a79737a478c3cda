"""What requests have in common: JSON fields with types, identifiers of runs, tokens of pages, errors of queries."""

from __future__ import annotations

import base64
import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, TypeVar

from starlette.responses import Response

from neptune_assets.errors import UnknownProjectError
from neptune_assets.schema import MICROSTEPS, AttributeType
from neptune_assets.server.catalog.catalog import Catalog
from neptune_assets.server.catalog.search import Alternative, NameFilter
from neptune_assets.server.catalog.tables import Run
from neptune_assets.server.endpoints import ApiError, Call
from neptune_assets.server.neptune3.reading.wire import TYPES, WIRE_TYPES
from neptune_assets.server.nql import QueryError, QuerySyntaxError

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
