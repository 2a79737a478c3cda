"""Runs, models and model versions of a project, listed whole, however many there are.

A table is paged by offset, and offsets end at 10,000. What follows is asked for by ``sys/id``, which no two share:
where pages are divided by a time, as the client does by default, whatever shares the time at the border is lost. The
number that the server counts must come out; where it does not, the table is read again in slices of creation time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from neptune_assets.schema import Scope
from neptune_assets.sources.neptune2.calls import Calls
from neptune_assets.sources.neptune2.queries import EVERYTHING, after, both, created_between
from neptune_assets.sources.neptune2.values import EPOCH, milliseconds, sent, whole
from neptune_assets.sources.times import moment_of
from neptune_assets.sources.values import printable, text

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
        answer: Mapping[str, Any] = self._calls.json(
            "searchLeaderboardEntries",
            projectIdentifier=self._project_key,
            type=[self._type],
            params={
                "sorting": {
                    "dir": "ascending",
                    "aggregationMode": "none",
                    "sortBy": {"name": "sys/id", "type": "string"},
                },
                "attributeFilters": [{"path": column} for column in _COLUMNS],
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
