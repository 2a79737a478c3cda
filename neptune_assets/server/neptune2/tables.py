"""Tables of runs, models and versions: a query, a column to sort by, and pages that together hold every row once.

The order of a table is found once, when a client begins to read it, and kept while it pages: rows that come or change
meanwhile neither push others out of a page nor into the next one.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from neptune_assets.server.catalog.search import Alternative, NameFilter, Search, definitions, search, values
from neptune_assets.server.neptune2.attributes import PING, STATE, WIRE_TYPES, alive_since, attributes_of
from neptune_assets.server.neptune2.containers import TYPES, uuid_of
from neptune_assets.server.neptune2.errors import BadRequestError, QueryTextError
from neptune_assets.server.neptune2.git import GIT, is_git
from neptune_assets.server.neptune2.keyset import MAX_OFFSET, comparable, continued
from neptune_assets.server.nql import And, Comparison, Exists, Node, Not, Operand, Operator, Or, QueryError, parse

if TYPE_CHECKING:
    from neptune_assets.server.catalog.tables import Run
    from neptune_assets.server.neptune2.lake_artifacts import LakeArtifacts
    from neptune_assets.server.neptune2.series_pages import SeriesPages
    from neptune_assets.server.service import Service

_LISTINGS: Final = 64
_LISTING_SECONDS: Final = 3600
_EVERYTHING: Final = 2**31
_ALIASES: Final = {"integer": "int", "boolean": "bool"}
_ALWAYS: Final = (
    ("sys/creation_time", "datetime"),
    ("sys/id", "string"),
    ("sys/modification_time", "datetime"),
    ("sys/name", "string"),
    ("sys/ping_time", "datetime"),
    (STATE, "experimentState"),
    ("sys/tags", "stringSet"),
    ("sys/trashed", "bool"),
)
"""Columns that every table has, also one without rows: the client refuses to sort by what is not listed."""


@dataclass(frozen=True, slots=True)
class Table:
    """Which rows in which order; ``sort`` is the column's name and type."""

    project_id: str
    scope: str
    query: str
    sort: tuple[str, str]
    descending: bool


@dataclass(slots=True)
class _Listing:
    """The rows of a table in order, and the places where clients begin anew, by the last value before each."""

    numbers: list[int]
    version: int
    made: float
    places: dict[str | int | float, int] = field(default_factory=dict)


class Tables:
    """Serves pages of tables; any number of threads may use it."""

    def __init__(self, service: Service, artifacts: LakeArtifacts, series: SeriesPages) -> None:
        self._service = service
        self._artifacts = artifacts
        self._series = series
        self._listings: OrderedDict[Table, _Listing] = OrderedDict()
        self._guard = threading.Lock()

    def page(self, table: Table, offset: int, limit: int, columns: Sequence[str] | None) -> dict[str, Any]:
        """Return a page and the number of rows. Raises QueryTextError for a query that is none."""
        self._service.catalog.refresh(table.project_id)
        listing, start = self._place(table, offset, limit)
        begin = start + offset
        runs = self._runs(table, listing.numbers[begin : begin + limit])
        if runs and begin + limit - start == MAX_OFFSET:
            # From here on the client asks by value.
            value = self._sort_value(table, runs[-1])
            if value is not None:
                with self._guard:
                    listing.places[value] = begin + limit
        return {
            "matchingItemCount": len(listing.numbers) - start,
            "totalItemCount": len(listing.numbers),
            "entries": self._entries(table, runs, columns),
        }

    def columns(self, project_id: str, scope: str, text: str) -> list[dict[str, str]]:
        """Return name and type of every column whose name has `text` in it."""
        catalog = self._service.catalog
        catalog.refresh(project_id)
        wanted = NameFilter(alternatives=[Alternative(must=[re.escape(text)])]) if text else NameFilter()
        found = {pair for pair in _ALWAYS if text in pair[0]}
        for path, kind in definitions(catalog, [project_id], wanted, scope=scope):
            if is_git(path):
                found.add((GIT, "gitRef"))
            elif kind in WIRE_TYPES and path != STATE and not path.startswith("sys/diagnostics/"):
                found.add((path, WIRE_TYPES[kind]))
        return [{"name": name, "type": kind} for name, kind in sorted(found)]

    def _place(self, table: Table, offset: int, limit: int) -> tuple[_Listing, int]:
        """Return the rows that a request is about, and where its offsets count from."""
        if limit == 0:
            return self._list(table), 0
        with self._guard:
            known = self._listings.get(table)
            if known is None:
                on = continued(table.query, table.sort[0])
                before = None if on is None else self._listings.get(replace(table, query=on.query))
                if on is not None and before is not None and on.value in before.places:
                    return before, before.places[on.value]
        if known is None or (offset == 0 and known.version != self._service.catalog.version(table.project_id)):
            return self._list(table), 0
        return known, 0

    def _list(self, table: Table) -> _Listing:
        catalog = self._service.catalog
        version = catalog.version(table.project_id)
        asked = Search(
            [table.project_id],
            query=_parsed(table.query),
            scope=table.scope,
            sort=Operand(table.sort[0], _ALIASES.get(table.sort[1], table.sort[1])),
            descending=table.descending,
            limit=_EVERYTHING,
            trash=True,
        )
        try:
            found = search(catalog, self._service.series, asked)
        except QueryError as error:
            raise QueryTextError(str(error)) from error
        listing = _Listing([run.number for run in found.runs], version, time.monotonic())
        with self._guard:
            self._listings.pop(table, None)
            self._listings[table] = listing
            for old in [key for key, item in self._listings.items() if listing.made - item.made > _LISTING_SECONDS]:
                del self._listings[old]
            while len(self._listings) > _LISTINGS:
                self._listings.popitem(last=False)
        return listing

    def _runs(self, table: Table, numbers: Sequence[int]) -> list[Run]:
        runs = self._service.catalog.runs(table.project_id, table.scope)
        found = (runs.by_number(number) for number in numbers)
        return [run for run in found if run is not None]

    def _sort_value(self, table: Table, run: Run) -> str | int | float | None:
        name, kind = table.sort
        for entry in self._entries(table, [run], [name]):
            for attribute in entry["attributes"]:
                return comparable(kind, attribute[f"{attribute['type']}Properties"].get("value"))
        return None

    def _entries(self, table: Table, runs: Sequence[Run], columns: Sequence[str] | None) -> list[dict[str, Any]]:
        if not runs:
            return []
        wanted = NameFilter() if columns is None else NameFilter(paths=_paths(columns))
        found, _ = values(self._service.catalog, self._service.series, runs, wanted)
        by_run: dict[int, list[Any]] = {run.number: [] for run in runs}
        for value in found:
            by_run[value.run.number].append(value)
        shown = None if columns is None else set(columns)
        entries = []
        for run in runs:
            if columns is None:
                self._series.expect(run, by_run[run.number])
            attributes = [
                item for item in attributes_of(run, by_run[run.number]) if shown is None or item["name"] in shown
            ]
            self._artifacts.complete(run, attributes)
            entries.append({"experimentId": uuid_of(run), "type": TYPES[run.scope], "attributes": attributes})
        return entries


def table_of(project_id: str, scope: str, body: Mapping[str, Any]) -> Table:
    """Return the table that a request is about. Raises BadRequestError for what cannot be understood."""
    sorting, query = body.get("sorting") or {}, body.get("query") or {}
    by = sorting.get("sortBy") or {}
    try:
        return Table(
            project_id,
            scope,
            str(query.get("query") or ""),
            (str(by.get("name") or "sys/creation_time"), str(by.get("type") or "datetime")),
            sorting.get("dir") != "ascending",
        )
    except AttributeError as error:
        raise BadRequestError(f"The request is not one for a table: {error}.") from error


def _paths(columns: Sequence[str]) -> list[str]:
    """Return what must be read to show these columns."""
    found = {*columns, PING}
    if GIT in found:
        found.update(f"{GIT}/{name}" for name in ("branch", "remotes", "dirty"))
        found.update(
            f"{GIT}/commit/{name}" for name in ("commit_id", "message", "author_name", "author_email", "commit_date")
        )
    return sorted(found)


def _parsed(text: str) -> Node | None:
    try:
        node = parse(text)
    except QueryError as error:
        raise QueryTextError(str(error)) from error
    return None if node is None else _rewritten(node)


def _rewritten(node: Node) -> Node:
    """Replace what the catalog does not hold: a run's state is a matter of its last sign of life."""
    if isinstance(node, Not):
        return Not(_rewritten(node.inner))
    if isinstance(node, And):
        return And(tuple(_rewritten(part) for part in node.parts))
    if isinstance(node, Or):
        return Or(tuple(_rewritten(part) for part in node.parts))
    operand = node.operand
    if operand.path == STATE and operand.type in ("experimentState", "string", None):
        if isinstance(node, Exists):
            return Exists(Operand("sys/id", "string"))
        if node.operator is Operator.EQUAL:
            since = datetime.fromtimestamp(alive_since() / 1000, UTC).isoformat()
            alive = Comparison(Operand(PING, "datetime"), Operator.GREATER, since)
            return alive if node.value.lower() in ("running", "active") else Not(alive)
    if operand.type in _ALIASES:
        return replace(node, operand=replace(operand, type=_ALIASES[operand.type]))
    return node
