"""Attributes of many runs in one request: a table without a choice of columns gives all that runs have.

One request for a run costs a server far more than a line of a table. How many runs are asked for at once follows from
how many attributes they turn out to have, so that an answer stays of a handy size.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

from neptune_assets.schema import Scope
from neptune_assets.sources.neptune2.calls import Calls
from neptune_assets.sources.neptune2.errors import CallError
from neptune_assets.sources.neptune2.listing import TYPES, Listed
from neptune_assets.sources.neptune2.queries import any_id

_FEW: Final = 8
"""Fewer runs than this are asked for one by one."""
_MOST: Final = 100
_ATTRIBUTES: Final = 20_000
"""Attributes that one answer may hold, as far as can be foreseen."""

Attributes = Sequence[Mapping[str, Any]]


class AttributePages:
    """Gives the attributes of runs that are read in a known order. Safe to use from many threads."""

    def __init__(self, calls: Calls, project_key: str, scope: Scope, runs: Sequence[Listed]) -> None:
        self._calls = calls
        self._project_key = project_key
        self._type = TYPES[scope]
        self._ahead = list(runs) if len(runs) >= _FEW and calls.tables_tell_all else []
        self._next = 0
        self._size = 1
        self._held: dict[str, Attributes] = {}
        self._lock = threading.Lock()

    def of(self, listed: Listed) -> Attributes:
        """All attributes of a run. Raises CallError if the server does not give them."""
        found = self._from_table(listed) if self._ahead else None
        if found is None:
            found = self._calls.json("getExperimentAttributes", experimentId=listed.key).get("attributes") or []
        return found

    def _from_table(self, listed: Listed) -> Attributes | None:
        """Attributes from a table, which is asked for when its first run's turn comes; None if it lacks the run."""
        with self._lock:
            # Runs are asked for in order, so whatever is needed now is held or comes next.
            if listed.key not in self._held and self._next < len(self._ahead):
                group = self._ahead[self._next : self._next + self._size]
                self._next += len(group)
                if len(group) == 1 and self._size == 1:
                    return self._measured(listed)
                self._ask(group)
            return self._held.pop(listed.key, None)

    def _measured(self, listed: Listed) -> Attributes:
        found: Attributes = self._calls.json("getExperimentAttributes", experimentId=listed.key).get("attributes") or []
        self._size = _fitting(len(found))
        return found

    def _ask(self, group: Sequence[Listed]) -> None:
        try:
            answer = self._calls.json(
                "searchLeaderboardEntries",
                projectIdentifier=self._project_key,
                type=[self._type],
                params={
                    "sorting": {
                        "dir": "ascending",
                        "aggregationMode": "none",
                        "sortBy": {"name": "sys/id", "type": "string"},
                    },
                    "query": {"query": any_id([listed.run_id for listed in group])},
                    "pagination": {"limit": len(group), "offset": 0},
                },
            )
        except CallError:
            return  # each run is asked for by itself, and tells what is wrong with it
        entries = answer.get("entries") or ()
        self._held.update((str(entry["experimentId"]), entry.get("attributes") or []) for entry in entries)
        self._size = _fitting(max((len(entry.get("attributes") or []) for entry in entries), default=_ATTRIBUTES))


def _fitting(attributes: int) -> int:
    return max(2, min(_MOST, _ATTRIBUTES // max(1, attributes)))
