"""Attributes as the 2.x protocol writes them, and tables of runs, models and versions in pages.

The order of a table is found once, when a client begins to read it, and kept while it pages: rows that arrive or change
meanwhile move no other row, so that all pages together hold every row once.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from neptune_assets.schema import MICROSTEPS, AttributeType
from neptune_assets.server.catalog.search import Alternative, NameFilter, Search, definitions, search, values
from neptune_assets.server.neptune2.containers import GIT, PROJECT, RUNS, TYPES, git_properties, is_git, uuid_of
from neptune_assets.server.neptune2.filesets import download_name, extension_of
from neptune_assets.server.neptune2.responses import BadRequestError, QueryTextError
from neptune_assets.server.nql import And, Comparison, Exists, Node, Not, Operand, Operator, Or, QueryError, parse

if TYPE_CHECKING:
    from neptune_assets.server.catalog.search import Value
    from neptune_assets.server.catalog.tables import Run
    from neptune_assets.server.neptune2.artifacts import LakeArtifacts
    from neptune_assets.server.neptune2.series import SeriesPages
    from neptune_assets.server.service import Service

WIRE_TYPES: Final[Mapping[AttributeType, str]] = {
    AttributeType.FLOAT: "float",
    AttributeType.INT: "int",
    AttributeType.BOOL: "bool",
    AttributeType.STRING: "string",
    AttributeType.DATETIME: "datetime",
    AttributeType.STRING_SET: "stringSet",
    AttributeType.FLOAT_SERIES: "floatSeries",
    AttributeType.STRING_SERIES: "stringSeries",
    AttributeType.FILE_SERIES: "imageSeries",
    AttributeType.FILE: "file",
    AttributeType.FILE_SET: "fileSet",
    AttributeType.ARTIFACT: "artifact",
}
STATE: Final = "sys/state"
PING: Final = "sys/ping_time"
ALIVE_SECONDS: Final = 45
"""A run is running while its last sign of life is younger than this: clients give one every ten seconds."""

_PROJECT_SYS: Final = frozenset(
    f"sys/{name}"
    for name in (
        "creation_time",
        "group_tags",
        "id",
        "modification_time",
        "monitoring_time",
        "name",
        "ping_time",
        "running_time",
        "size",
        "tags",
        "visibility",
        "description",
    )
)
_EPOCH: Final = datetime(1970, 1, 1)

Attribute = dict[str, Any]


def visible(run: Run, path: str) -> bool:
    """True if a 2.x client is shown this attribute: what only 3.x knows of is not."""
    if not path.startswith("sys/"):
        return True
    if run.scope == PROJECT:
        return path in _PROJECT_SYS
    if path == "sys/custom_run_id":
        return run.scope == RUNS and run.run_id != run.sys_id
    return path != "sys/archived" and not path.startswith("sys/diagnostics/")


def attribute(name: str, kind: str, properties: Mapping[str, Any]) -> Attribute:
    """Return one attribute in the protocol's form."""
    named = {"attributeName": name, "attributeType": kind, **properties}
    return {"name": name, "type": kind, f"{kind}Properties": named}


def attributes_of(run: Run, values: Iterable[Value]) -> list[Attribute]:
    """Return the attributes of one run. Its sign of life must be among the values for its state to be right."""
    found: list[Attribute] = []
    git: dict[str, Any] = {}
    ping: int | None = None
    for value in values:
        if value.path == PING:
            ping = value.moment
        if value.path == STATE or not visible(run, value.path):
            continue
        if is_git(value.path):
            git[value.path] = _plain(value)
            continue
        made = attribute_of(value)
        if made is not None:
            found.append(made)
    if git:
        found.append(attribute(GIT, "gitRef", git_properties(git)))
    found.append(attribute(STATE, "experimentState", {"value": state_of(ping)}))
    return found


def attribute_of(value: Value) -> Attribute | None:
    """Return one attribute; None if the protocol has no form for it."""
    kind = WIRE_TYPES.get(value.type)
    return None if kind is None else attribute(value.path, kind, properties(value))


def properties(value: Value) -> dict[str, Any]:
    """Return the properties of a value by its type."""
    kind = value.type
    if kind is AttributeType.FLOAT_SERIES:
        return {
            "last": value.number,
            "lastStep": _step(value.last_step),
            "min": value.least,
            "max": value.greatest,
            "average": value.mean,
            "variance": value.variance,
        }
    if kind is AttributeType.STRING_SERIES:
        return {"last": value.text, "lastStep": _step(value.last_step)}
    if kind is AttributeType.FILE_SERIES:
        return {"lastStep": _step(value.last_step)}
    if kind is AttributeType.STRING_SET:
        return {"values": value.members or []}
    if kind in (AttributeType.FILE, AttributeType.FILE_SET, AttributeType.ARTIFACT):
        detail = detail_of(value)
        if kind is AttributeType.ARTIFACT:
            return {"hash": detail.get("hash", "")}
        if kind is AttributeType.FILE_SET:
            return {"size": detail.get("size", 0)}
        extension = extension_of(detail)
        return {"name": download_name(value.path, extension), "ext": extension, "size": detail.get("size", 0)}
    return {"value": iso(value.moment) if kind is AttributeType.DATETIME else _plain(value)}


def detail_of(value: Value) -> dict[str, Any]:
    """Return what the catalog keeps of a file, file set or artifact."""
    found = json.loads(value.detail) if value.detail else {}
    return found if isinstance(found, dict) else {}


def state_of(ping: int | None) -> str:
    """Return the state of a run whose last sign of life was at `ping` (milliseconds)."""
    return "running" if ping is not None and ping > alive_since() else "idle"


def alive_since() -> int:
    """Return the time in milliseconds after which running runs gave a sign of life."""
    return time.time_ns() // 1_000_000 - ALIVE_SECONDS * 1000


def iso(moment: int | None) -> str | None:
    """Return a time as the client parses it, ``2024-01-31T12:00:00.000Z``; None for those that no calendar holds."""
    if moment is None:
        return None
    try:
        return (_EPOCH + timedelta(milliseconds=moment)).isoformat(timespec="milliseconds") + "Z"
    except OverflowError:
        return None


def moment_of(text: str) -> int | None:
    """Return the milliseconds of a time in ISO 8601; None for anything else."""
    try:
        time_of = datetime.fromisoformat(text)
    except ValueError:
        return None
    return round((time_of if time_of.tzinfo else time_of.replace(tzinfo=UTC)).timestamp() * 1000)


def _plain(value: Value) -> Any:
    return {
        AttributeType.FLOAT: value.number,
        AttributeType.INT: value.whole,
        AttributeType.BOOL: value.flag,
        AttributeType.STRING: value.text,
        AttributeType.DATETIME: value.moment,
        AttributeType.STRING_SET: value.members,
    }.get(value.type)


def _step(step: int | None) -> float | None:
    return None if step is None else step / MICROSTEPS


MAX_OFFSET: Final = 10_000
"""Where clients begin anew."""

_CONDITION: Final = re.compile(r"\(`(?P<name>[^`]*)`:(?P<type>\w+) (?P<operator>[<>]) \"(?P<value>.*)\"\)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Continued:
    """A query without the client's condition, and the value in it, in a form that can be compared."""

    query: str
    value: str | int | float


def continued(query: str, sort_name: str) -> Continued | None:
    """Return what a query that ends with a client's condition on the sort column consists of; None for any other."""
    start = query.rfind(f"(`{sort_name}`:")
    if start < 0:
        return None
    before, rest = query[:start], query[start:]
    if before:
        # `(<the query> AND <the condition>)`
        if not (before.startswith("(") and before.endswith(" AND ") and rest.endswith("))")):
            return None
        before, rest = before[1 : -len(" AND ")], rest[:-1]
    match = _CONDITION.fullmatch(rest)
    if match is None or match["name"] != sort_name:
        return None
    value = comparable(match["type"], match["value"])
    return None if value is None else Continued(before, value)


def comparable(kind: str, value: object) -> str | int | float | None:
    """Return a value as it can be compared across the ways that clients write it; None for what cannot be one."""
    if value is None:
        return None
    text = str(value)
    try:
        if kind == "datetime":
            return moment_of(text)
        if kind in ("int", "integer"):
            return int(text)
        if kind == "float":
            return float(text)
    except ValueError:
        return None
    return text.lower() if kind in ("bool", "boolean") else text


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
