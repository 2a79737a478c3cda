"""Projects, and the runs, models and model versions of a project, listed whole, however many there are.

A table is paged by offset, and offsets end at 10,000. What follows is asked for by ``sys/id``, which no two share:
where pages are divided by a time, as the client does by default, whatever shares the time at the border is lost. The
number that the server counts must come out; where it does not, the table is read again in slices of creation time.
Queries (NQL) only narrow what is listed; every filter is applied again, by the same code as for the other sources.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from neptune_assets.errors import SourceError, UnknownProjectError
from neptune_assets.schema import Scope
from neptune_assets.settings import RunFilter
from neptune_assets.sources.neptune2.connection import CallError, Calls, understood
from neptune_assets.sources.neptune2.values import EPOCH, milliseconds, sent, whole
from neptune_assets.sources.times import moment_of
from neptune_assets.sources.values import printable, text

_IDS_IN_QUERY: Final = 100
"""Up to this many run ids are asked for by name; more are picked from a listing of all."""

EVERYTHING: Final = ""


def listing_query(runs: RunFilter, scope: Scope, query: str | None) -> str:
    """The query for one project's runs, models or model versions; a user's own query is about runs only."""
    parts = []
    if not runs.trashed:
        parts.append("(`sys/trashed`:bool = false)")
    for name, operator, moment in (
        ("sys/creation_time", ">=", runs.created_since),
        ("sys/creation_time", "<", runs.created_until),
        ("sys/modification_time", ">=", runs.modified_since),
        ("sys/modification_time", "<", runs.modified_until),
    ):
        if moment is not None:
            parts.append(f"(`{name}`:datetime {operator} {_text(_utc(moment))})")
    if runs.ids is not None and runs.ids_file is None and 0 < len(runs.ids) <= _IDS_IN_QUERY:
        parts.append(any_id(runs.ids))
    if query is not None and scope is Scope.RUNS:
        # In parentheses, which the client's own functions leave out: AND binds tighter than OR.
        parts.append(f"({query})")
    return both(*parts)


def any_id(run_ids: Sequence[str]) -> str:
    """Only these ids."""
    return f"({' OR '.join(f'(`sys/id`:string = {_text(run_id)})' for run_id in run_ids)})"


def after(run_id: str) -> str:
    """Only what comes after this id."""
    return f"(`sys/id`:string > {_text(run_id)})"


def created_between(since: int, until: int) -> str:
    """Only what was created at or after one time and before another, in epoch milliseconds."""
    return both(
        f"(`sys/creation_time`:datetime >= {_text(_of_milliseconds(since))})",
        f"(`sys/creation_time`:datetime < {_text(_of_milliseconds(until))})",
    )


def both(*parts: str) -> str:
    """All of several queries at once; empty ones count for nothing."""
    return " AND ".join(part for part in parts if part)


def _text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _utc(text: str) -> str:
    moment = datetime.fromisoformat(text)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return _written(moment)


def _of_milliseconds(milliseconds: int) -> str:
    return _written(datetime.fromtimestamp(milliseconds // 1000, UTC).replace(microsecond=milliseconds % 1000 * 1000))


def _written(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


_PAGE: Final = 500
_ARGUMENTS: Final[Mapping[str, Any]] = {"userRelation": "viewerOrHigher", "sortBy": ["lastViewed"]}
_NAMED: Final = 20
"""Projects that an error names."""


@dataclass(frozen=True, slots=True)
class Project:
    """One project: its name, what the server calls it inside, and whether its objects are of the kind read here."""

    name: str
    key: str


def list_projects(calls: Calls, workspace: str | None) -> list[str]:
    """Names of all projects the user may see, sorted; of one workspace if it is given."""
    arguments = {**_ARGUMENTS, **({} if workspace is None else {"organizationIdentifier": workspace})}
    try:
        answer = calls.json("listProjects", **arguments)
        with understood("projects"):
            names = set(_names(answer))
            # One answer holds all projects, as the client believes, or some server's idea of a page.
            while len(names) < int(answer.get("matchingItemCount") or answer.get("totalItemCount") or 0):
                before = len(names)
                answer = calls.json("listProjects", limit=_PAGE, offset=before, **arguments)
                names |= set(_names(answer))
                if len(names) == before:
                    break
    except CallError as error:
        where = "" if workspace is None else f" of workspace {workspace!r}"
        raise SourceError(
            f"The projects{where} cannot be listed: {error.message}",
            hint="Check source.neptune2.workspace, and that the API token's user may see it.",
        ) from error
    return sorted(name for name in names if workspace is None or name.startswith(f"{workspace}/"))


def open_project(calls: Calls, name: str) -> Project:
    """Look a project up. Raises UnknownProjectError, with the names of those there are, if it is not there."""
    try:
        answer = calls.json("getProject", projectIdentifier=name)
    except CallError as error:
        if error.status not in {403, 404, 400}:
            raise
        raise unknown_project(calls, name) from error
    with understood(f"project {name!r}"):
        version, key = int(answer.get("version") or 2), sent(text(answer["id"]))
    if version < 2:
        raise SourceError(
            f"Project {name!r} was never moved to Neptune 2.x, so no client of it can read the project.",
            hint="Leave it out with filters.projects.exclude.",
        )
    return Project(name, key)


def unknown_project(calls: Calls, name: str) -> UnknownProjectError:
    """Return the error that names the projects there are; some servers only say in a listing that there is none."""
    try:
        known = list_projects(calls, None)
    except SourceError:
        known = []
    more = " ..." if len(known) > _NAMED else ""
    return UnknownProjectError(
        f"The server has no project {name!r}, or the API token's user may not see it.",
        hint=f"Check its spelling; it has: {', '.join(known[:_NAMED])}{more}." if known else "Check its spelling.",
    )


def _names(answer: Mapping[str, Any]) -> list[str]:
    return [
        f"{sent(text(project['organizationName']))}/{sent(text(project['name']))}"
        for project in answer.get("entries") or ()
    ]


TYPES: Final[Mapping[Scope, str]] = {Scope.RUNS: "run", Scope.MODELS: "model", Scope.MODEL_VERSIONS: "modelVersion"}
"""What the server calls each kind."""
MAX_OFFSET: Final = 10_000
"""Tables cannot be paged further than this by offset."""
_COLUMNS: Final = ("sys/id", "sys/creation_time", "sys/modification_time", "sys/trashed", "sys/size")
_BEGINNING: Final = 1_400_000_000_000
"""Epoch milliseconds before the first run of any server."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of a table: the run's id, what the server calls it inside, and its mark of change."""

    run_id: str
    key: str
    mark: str
    created_at: datetime | None = None
    modified_at: datetime | None = None
    trashed: bool = False
    size: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """All lines by id, in order; ``counted`` is how many the server says there are, if that is more.

    ``odd`` says what is wrong with lines that name no run, or one that another line has named.
    """

    runs: Mapping[str, Listed]
    counted: int | None = None
    odd: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Found:
    """What was listed so far."""

    runs: dict[str, Listed] = field(default_factory=dict)
    odd: set[str] = field(default_factory=set)

    def take(self, entry: Any) -> Listed | None:
        """Take a line of the table; None if it names no run."""
        try:
            listed = _listed(entry)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            self.odd.add(f"a line that names no run ({type(error).__name__} {error!s:.100})")
            return None
        first = self.runs.setdefault(listed.run_id, listed)
        if first.key != listed.key:
            self.odd.add(f"the id {listed.run_id!r} for two runs, of which {listed.key!r} is not read")
        else:
            self.runs[listed.run_id] = listed
        return listed


class Table:
    """The table of one project and kind."""

    def __init__(self, calls: Calls, project_key: str, scope: Scope, page: int) -> None:
        self._calls = calls
        self._project_key = project_key
        self._type = TYPES[scope]
        self._page_size = min(page, MAX_OFFSET)

    def read(self, query: str = EVERYTHING) -> Listing:
        """List everything that matches. Raises as :meth:`Calls.json` does."""
        found = _Found()
        expected = self._sweep(query, found)
        if expected is not None and len(found.runs) < expected:
            expected = self._count(query)
            if len(found.runs) < expected:
                _LOG.warning("Listed %d of %d by id; listing again by creation time.", len(found.runs), expected)
                since, until = _BEGINNING, self._end()
                self._slices(query, since, until, self._count(both(query, created_between(since, until))), found)
        runs = dict(sorted(found.runs.items()))
        short = expected is not None and len(runs) < expected
        return Listing(runs, expected if short else None, frozenset(found.odd))

    def _sweep(self, query: str, found: _Found) -> int | None:
        """Add all that match, in order of ids; return the server's count of them."""
        counted: int | None = None
        border = EVERYTHING
        seen: set[str] = set()
        while True:
            offset = 0
            last: str | None = None
            while offset < MAX_OFFSET:
                answer = self._ask(both(query, border), min(self._page_size, MAX_OFFSET - offset), offset)
                entries = answer.get("entries") or []
                if not isinstance(entries, list):
                    found.odd.add(f"something that is not a table ({entries!r:.80})")
                    entries = []
                if counted is None:
                    counted = _counted(answer)
                for entry in entries:
                    listed = found.take(entry)
                    if listed is not None:
                        seen.add(listed.run_id)
                        last = listed.run_id
                offset += len(entries)
                if not entries or (counted is not None and len(seen) >= counted):
                    return counted
            if last is None or after(last) == border:
                return counted
            border = after(last)

    def _slices(self, query: str, since: int, until: int, count: int, found: _Found) -> None:
        """Add all that were created between two times, halving the time until the offsets suffice.

        ``count`` is how many the server says they are.
        """
        if not count:
            return
        middle = (since + until) // 2
        if count >= MAX_OFFSET and until - since > 1:
            halves = [(since, middle), (middle, until)]
            counts = [self._count(both(query, created_between(*half))) for half in halves]
            # A server whose halves are more than the whole does not look at times: they lead nowhere.
            if sum(counts) <= count:
                for half, each in zip(halves, counts, strict=True):
                    self._slices(query, *half, each, found)
                return
        self._sweep(both(query, created_between(since, until)), found)

    def _count(self, query: str) -> int:
        return _counted(self._ask(query, 0, 0)) or 0

    def _end(self) -> int:
        return (datetime.now(EPOCH.tzinfo) + timedelta(days=2) - EPOCH) // timedelta(milliseconds=1)

    def _ask(self, query: str, limit: int, offset: int) -> Mapping[str, Any]:
        return table_page(self._calls, self._project_key, self._type, query, _COLUMNS, limit=limit, offset=offset)


def table_page(
    calls: Calls,
    project_key: str,
    kind: str,
    query: str,
    columns: Sequence[str] | None,
    *,
    limit: int,
    offset: int = 0,
    tries: int | None = None,
) -> Mapping[str, Any]:
    """Some lines of the table of a project in order of ids, with some columns or, for None, all that runs have."""
    answer: Mapping[str, Any] = calls.json(
        "searchLeaderboardEntries",
        tries=tries,
        projectIdentifier=project_key,
        type=[kind],
        params={
            "sorting": {"dir": "ascending", "aggregationMode": "none", "sortBy": {"name": "sys/id", "type": "string"}},
            **({} if columns is None else {"attributeFilters": [{"path": column} for column in columns]}),
            "query": {"query": query},
            "pagination": {"limit": limit, "offset": offset},
        },
    )
    return answer


def _counted(answer: Mapping[str, Any]) -> int | None:
    """How many lines the server counts; None if it does not say."""
    try:
        return max(0, whole(answer.get("matchingItemCount")))
    except TypeError:
        return None


def _listed(entry: Mapping[str, Any]) -> Listed:
    values = dict(_values(entry))
    run_id = values.get("sys/id")
    key = sent(text(entry["experimentId"]))
    modified = values.get("sys/modification_time")
    # A server that gives no time of change gives no mark but all there is to see.
    mark = modified if isinstance(modified, str) else json.dumps(values, sort_keys=True)
    return Listed(
        run_id=printable(run_id) if isinstance(run_id, str) and run_id else key,
        key=key,
        mark=hashlib.blake2b(mark.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest(),
        created_at=_time(values.get("sys/creation_time")),
        modified_at=_time(modified),
        trashed=values.get("sys/trashed") is True,
        size=_size(values.get("sys/size")),
    )


def _values(entry: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for attribute in entry.get("attributes") or ():
        properties = attribute.get(f"{attribute.get('type')}Properties") or {}
        yield text(attribute.get("name")), properties.get("value")


def _time(value: Any) -> datetime | None:
    try:
        return moment_of(milliseconds(value))
    except (TypeError, ValueError):
        return None


def _size(value: Any) -> int:
    try:
        return max(0, whole(value))
    except TypeError:
        return 0
