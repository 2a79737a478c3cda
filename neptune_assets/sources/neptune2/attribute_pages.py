"""Attributes of many runs in one request: a table without a choice of columns gives all that runs have.

One request for a run costs a server far more than a line of a table. How many runs are asked for at once follows from
how many attributes they turn out to have, so that an answer stays of a handy size.

The protocol has no pages for the attributes of one run. A run whose attributes the server fails to give is asked for as
a line of a table, whole, and then by the columns that the project has, fewer at a time where that fails too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from neptune_assets.schema import Scope
from neptune_assets.sources.neptune2.calls import Calls
from neptune_assets.sources.neptune2.errors import CallError, understood
from neptune_assets.sources.neptune2.listing import TYPES, Listed
from neptune_assets.sources.neptune2.queries import any_id
from neptune_assets.sources.values import text

_FEW: Final = 8
"""Fewer runs than this are asked for one by one."""
_MOST: Final = 100
_ATTRIBUTES: Final = 20_000
"""Attributes that one answer may hold, as far as can be foreseen."""
_COLUMNS: Final = 1_000
"""Columns asked for at once of a run that does not come whole."""
_MOST_FAILURES: Final = 200
_FIRST_FAILURES: Final = 20
"""Requests for columns that may fail for one run, and before any succeeds; then the rest is given up."""
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
        """Take the next run with its attributes, or why the server does not give them; None if there is no more.

        Raises SourceError if the server does not answer any more, or not to this token.
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
            # What a table lacks is asked for by itself, and tells what is wrong with it.
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
        waiting = deque(names[start : start + _COLUMNS] for start in range(0, len(names), _COLUMNS))
        found: list[Mapping[str, Any]] = []
        unread: list[Mapping[str, Any]] = []
        failures = 0
        while waiting:
            some = waiting.popleft()
            reason = f"given up after {failures} requests that failed, the first with: {failure.message}"
            if failures < (_MOST_FAILURES if found else _FIRST_FAILURES):
                try:
                    found.extend(self._table_of([listed], some, tries=2).get(listed.key) or ())
                    continue
                except CallError as error:
                    failures += 1
                    reason = error.message
                    if len(some) > 1:
                        waiting.extend((some[: len(some) // 2], some[len(some) // 2 :]))
                        continue
            wanted = set(some)
            unread.extend({"name": name, "type": kind, UNREAD: reason} for name, kind in columns if name in wanted)
        if not found:
            return failure
        # How many names a server tells at once is not known: there may be more.
        return [*found, *unread, {"name": "", "type": "", UNREAD: failure.message}]

    def _columns(self) -> list[tuple[str, str]]:
        """Names and types of the attributes that any run of the project has, as far as the server tells them."""
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
        answer = self._calls.json(
            "searchLeaderboardEntries",
            tries=tries,
            projectIdentifier=self._project_key,
            type=[self._type],
            params={
                "sorting": {
                    "dir": "ascending",
                    "aggregationMode": "none",
                    "sortBy": {"name": "sys/id", "type": "string"},
                },
                **({} if columns is None else {"attributeFilters": [{"path": column} for column in columns]}),
                "query": {"query": any_id([listed.run_id for listed in group])},
                "pagination": {"limit": len(group), "offset": 0},
            },
        )
        with understood("a table of runs"):
            return {
                text(entry["experimentId"]): list(entry.get("attributes") or ())
                for entry in answer.get("entries") or ()
            }
