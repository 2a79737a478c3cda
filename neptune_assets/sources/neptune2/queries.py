"""Queries in Neptune's query language (NQL) for what filters can leave to the server.

The server only narrows what is listed; every filter is applied to the listing again, by the same code as for the other
sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from neptune_assets.schema import Scope
from neptune_assets.settings import RunFilter

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
