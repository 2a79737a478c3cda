"""Attributes of runs: asked for, of many runs in one request, and turned into values and what is still to be asked for.

A table without a choice of columns gives all that runs have, and costs a server far less than one request for each
run. How many runs are asked for at once follows from how many attributes they turn out to have, so that an answer
stays of a handy size. The protocol has no pages for the attributes of one run: one whose attributes the server fails
to give is asked for as a line of a table, whole, and then by the columns that the project has, fewer at a time where
that fails too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from neptune_assets.schema import AttributeType, Scope
from neptune_assets.sources.live import fetch_in_halves
from neptune_assets.sources.neptune2.connection import CallError, Calls, understood
from neptune_assets.sources.neptune2.listing import TYPES, Listed, any_id, table_page
from neptune_assets.sources.neptune2.values import Reference, milliseconds, real, texts, whole
from neptune_assets.sources.rows import check_value
from neptune_assets.sources.run_state import RunState
from neptune_assets.sources.values import text, truth

_FEW: Final = 8
"""Fewer runs than this are asked for one by one."""
_MOST: Final = 100
_ATTRIBUTES: Final = 20_000
"""Attributes that one answer may hold, as far as can be foreseen."""
_COLUMNS: Final = 1_000
"""Columns requested at once of a run that cannot be read whole."""
UNREAD: Final = "unread"
"""Key of an attribute of which only name and type are known; its value says why."""

Attributes = Sequence[Mapping[str, Any]]
_Found = Attributes | CallError


class AttributePages:
    """Gives runs with their attributes, in order; the next ones are asked for while these are read."""

    def __init__(
        self,
        calls: Calls,
        project_key: str,
        scope: Scope,
        runs: Sequence[Listed],
        pool: ThreadPoolExecutor,
        concurrency: int,
    ) -> None:
        """``pool`` has ``concurrency`` threads."""
        self._calls = calls
        self._project_key = project_key
        self._type = TYPES[scope]
        self._pool = pool
        self._concurrency = concurrency
        self._left = deque(runs)
        self._tables = len(runs) >= _FEW
        self._size = 1
        self._table: tuple[list[Listed], Future[dict[str, _Found]]] | None = None
        self._next: deque[tuple[Listed, _Found | Future[_Found]]] = deque()
        self._ask()

    @property
    def ready(self) -> bool:
        """True if there is a next run and :meth:`take` would neither wait nor raise."""
        answer = self._next[0][1] if self._next else self._table and self._table[1]
        if isinstance(answer, Future):
            return answer.done() and answer.exception() is None
        return bool(self._next)

    def take(self) -> tuple[Listed, Attributes | CallError] | None:
        """Take the next run with its attributes, or why the server does not give them; None after the last.

        Raises SourceError if the server no longer responds, or not to this token.
        """
        if not self._next and self._table is not None:
            self._unpack(*self._table)
        if not self._next:
            return None
        listed, found = self._next.popleft()
        self._ask()
        return listed, found.result() if isinstance(found, Future) else found

    def _ask(self) -> None:
        if not self._tables:
            while self._left and len(self._next) < self._concurrency:
                listed = self._left.popleft()
                self._next.append((listed, self._pool.submit(self._alone, listed)))
        elif self._left and self._table is None:
            group = [self._left.popleft() for _ in range(min(self._size, len(self._left)))]
            self._table = group, self._pool.submit(self._together, group)

    def _unpack(self, group: Sequence[Listed], answer: Future[dict[str, _Found]]) -> None:
        found = answer.result()
        self._table = None
        largest = max((len(each) for each in found.values() if not isinstance(each, CallError)), default=_ATTRIBUTES)
        self._size = max(2, min(_MOST, _ATTRIBUTES // max(1, largest)))
        for listed in group:
            # What a table lacks is requested by itself, which shows what is wrong with it.
            each = found[listed.key] if listed.key in found else self._pool.submit(self._alone, listed)
            self._next.append((listed, each))

    def _alone(self, listed: Listed) -> _Found:
        try:
            answer = self._calls.json("getExperimentAttributes", experimentId=listed.key)
        except CallError as error:
            if 400 <= error.status < 500:
                return error
            return self._by_columns(listed, error)
        found = answer.get("attributes") or []
        if not isinstance(found, list):
            return CallError(f"The server answers {found!r:.80} instead of its attributes.", hint="")
        return found

    def _by_columns(self, listed: Listed, failure: CallError) -> _Found:
        """Ask for a run as lines of tables, of fewer columns where the server fails."""
        try:
            whole = self._table_of([listed], None, tries=2).get(listed.key)
            if whole is not None:
                return whole
        except CallError:
            pass
        try:
            columns = self._columns()
        except CallError:
            return failure
        names = sorted({name for name, _ in columns})
        found: list[Mapping[str, Any]] = []

        def fetch(some: list[str]) -> str | None:
            try:
                found.extend(self._table_of([listed], some, tries=2).get(listed.key) or ())
            except CallError as error:
                return error.message
            return None

        groups = (names[start : start + _COLUMNS] for start in range(0, len(names), _COLUMNS))
        reasons = fetch_in_halves(groups, fetch, failure.message)
        unread = [{"name": name, "type": kind, UNREAD: reasons[name]} for name, kind in columns if name in reasons]
        if not found:
            return failure
        # How many names a server lists at once is not known: there may be more.
        return [*found, *unread, {"name": "", "type": "", UNREAD: failure.message}]

    def _columns(self) -> list[tuple[str, str]]:
        """Names and types of the attributes that any run of the project has, as far as the server lists them."""
        answer = self._calls.json(
            "searchLeaderboardAttributes",
            tries=2,
            projectIdentifier=self._project_key,
            type=[self._type],
            search="",
            params={},
        )
        with understood("the columns of the project"):
            return sorted({(text(entry["name"]), text(entry["type"])) for entry in answer.get("entries") or ()})

    def _together(self, group: Sequence[Listed]) -> dict[str, _Found]:
        if len(group) == 1:
            return {group[0].key: self._alone(group[0])}
        try:
            return dict(self._table_of(group, None))
        except CallError:
            return {}

    def _table_of(
        self, group: Sequence[Listed], columns: Sequence[str] | None, *, tries: int | None = None
    ) -> dict[str, Attributes]:
        """Return the attributes of some runs by key, those of some names or all, from one table."""
        answer = table_page(
            self._calls,
            self._project_key,
            self._type,
            any_id([listed.run_id for listed in group]),
            columns,
            limit=len(group),
            tries=tries,
        )
        with understood("a table of runs"):
            return {
                text(entry["experimentId"]): list(entry.get("attributes") or ())
                for entry in answer.get("entries") or ()
            }


_ATOMS: Final[Mapping[str, tuple[AttributeType, Callable[[Any], Any]]]] = {
    "float": (AttributeType.FLOAT, real),
    "int": (AttributeType.INT, whole),
    "bool": (AttributeType.BOOL, truth),
    "string": (AttributeType.STRING, text),
    "datetime": (AttributeType.DATETIME, milliseconds),
}
_SERIES: Final[Mapping[str, AttributeType]] = {
    "floatSeries": AttributeType.FLOAT_SERIES,
    "stringSeries": AttributeType.STRING_SERIES,
    "imageSeries": AttributeType.FILE_SERIES,
}
_STATES: Final[Mapping[str, str]] = {"running": "Active", "idle": "Inactive"}
"""States of a run in the words that the client shows."""
_COMMIT: Final[Mapping[str, str]] = {
    "commitId": "commit_id",
    "message": "message",
    "authorName": "author_name",
    "authorEmail": "author_email",
}


@dataclass(slots=True)
class Contents:
    """What a run holds besides single values: series to read, and attributes whose values take a call of their own."""

    series: list[tuple[str, AttributeType]] = field(default_factory=list)
    sets: list[str] = field(default_factory=list)
    """String sets whose strings are not in the answer."""
    artifacts: list[tuple[str, str]] = field(default_factory=list)
    """Path and hash."""


class AttributeReader:
    """Sorts out the attributes of one run; values go into ``state``."""

    def __init__(self, state: RunState, key: str, project_key: str) -> None:
        self._state = state
        self._key = key
        self._project_key = project_key
        self.contents = Contents()
        self._known: dict[tuple[str, str], str] = {}
        self._taken = 0

    def take(self, attribute: Mapping[str, Any]) -> None:
        """Take one attribute. What cannot be understood becomes an error of the run and leaves the others alone."""
        path, kind = (attribute.get("name"), attribute.get("type")) if isinstance(attribute, Mapping) else (None, None)
        if not isinstance(path, str) or not isinstance(kind, str):
            self._state.error(f"The server describes an attribute without a name or a type: {attribute!r:.200}.")
            return
        if UNREAD in attribute:
            self._unread(path, kind, str(attribute[UNREAD]))
            return
        described = repr(attribute)
        first = self._known.setdefault((path, kind), described)
        if len(self._known) == self._taken:
            if first != described:
                self._state.error(f"The server sends two values of {path!r} ({kind}); the first is kept.", path)
            return
        self._taken += 1
        properties = attribute.get(f"{kind}Properties") or {}
        try:
            self._take(path, kind, properties)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            self._state.error(f"What the server says of {path!r} ({kind}) cannot be understood: {error!s:.200}.", path)

    def _unread(self, path: str, kind: str, reason: str) -> None:
        """Report an attribute that the server fails to give; points of series are asked for all the same."""
        if not path:
            self._state.error(
                f"The server does not give its attributes at once ({reason}) It was read by the names that the server "
                "lists for the project; whether the run has others is unknown. Materialize again later."
            )
        elif kind in _SERIES:
            self._request(path, _SERIES[kind], self.contents.series, (path, _SERIES[kind]))
        elif kind in _ATOMS and not self._state.rows.wants(_ATOMS[kind][0], path):
            return
        else:
            self._state.error(f"{path!r} ({kind}) could not be read: {reason}", path)

    def _take(self, path: str, kind: str, properties: Mapping[str, Any]) -> None:
        state = self._state
        if kind in _ATOMS:
            attribute_type, convert = _ATOMS[kind]
            self._assign(path, attribute_type, convert, properties.get("value"))
        elif kind == "experimentState":
            value = properties.get("value")
            self._assign(path, AttributeType.STRING, text, _STATES.get(value, value) if value is not None else None)
        elif kind == "stringSet":
            if properties.get("values") is None:
                self._request(path, AttributeType.STRING_SET, self.contents.sets, path)
            else:
                state.assign(path, AttributeType.STRING_SET, texts(properties["values"]))
        elif kind in _SERIES:
            self._request(path, _SERIES[kind], self.contents.series, (path, _SERIES[kind]))
        elif kind == "file":
            extension, size = properties.get("ext") or "", properties.get("size")
            reference = Reference(
                "file", self._key, path, extension=text(extension), size=-1 if size is None else whole(size)
            )
            state.assign(path, AttributeType.FILE, str(reference))
        elif kind == "fileSet":
            size = properties.get("size")
            reference = Reference("file_set", self._key, path, size=-1 if size is None else whole(size))
            state.assign(path, AttributeType.FILE_SET, str(reference))
        elif kind == "artifact":
            if state.rows.wants(AttributeType.ARTIFACT, path):
                self._artifact(path, properties.get("hash"))
        elif kind == "gitRef":
            self._git(path, properties)
        elif kind == "notebookRef":
            state.note(f"{path!r} names a notebook kept on the server; the lake has no place for it.", path)
        else:
            state.note(f"{path!r} is of type {kind!r}, which is not known here; it is left out.", path)

    def _assign(self, path: str, kind: AttributeType, convert: Callable[[Any], Any], value: Any) -> None:
        if value is None:
            self._state.note(f"{path!r} has no value on the server.", path, kind)
        else:
            self._state.assign(path, kind, convert(value))

    def _request(self, path: str, kind: AttributeType, items: list[Any], item: Any) -> None:
        if self._state.rows.wants(kind, path):
            check_value("string_value", path)
            items.append(item)

    def _artifact(self, path: str, digest: Any) -> None:
        if not digest:
            self._state.note(f"{path!r} is an artifact that tracks no files yet.", path, AttributeType.ARTIFACT)
            return
        reference = Reference("artifact", self._project_key, path, place=text(digest))
        self._state.assign(path, AttributeType.ARTIFACT, str(reference))
        self.contents.artifacts.append((path, digest))

    def _git(self, path: str, properties: Mapping[str, Any]) -> None:
        """Git information becomes values below its path, named as neptune-scale names them."""
        for name, kind, value in git_values(properties):
            self._state.assign(f"{path}/{name}", kind, value)


def git_values(properties: Mapping[str, Any]) -> Iterator[tuple[str, AttributeType, Any]]:
    """Names, types and values of what the server knows of a run's git repository; what it does not know is left out."""
    commit = properties.get("commit") or {}
    for key, name in _COMMIT.items():
        if commit.get(key) is not None:
            yield f"commit/{name}", AttributeType.STRING, text(commit[key])
    if commit.get("commitDate") is not None:
        yield "commit/commit_date", AttributeType.DATETIME, milliseconds(commit["commitDate"])
    if properties.get("currentBranch") is not None:
        yield "branch", AttributeType.STRING, text(properties["currentBranch"])
    if properties.get("remotes") is not None:
        yield "remotes", AttributeType.STRING_SET, texts(properties["remotes"])
    if properties.get("repositoryDirty") is not None:
        yield "dirty", AttributeType.BOOL, truth(properties["repositoryDirty"])
