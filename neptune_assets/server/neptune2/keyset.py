"""The condition by which a client goes on where its offsets end, told apart from what a user asks.

Clients page with offsets below 10,000. Then they add ``AND (`<sort column>`:<type> > "<last value>")`` to the query and
begin at offset 0 again, in both directions with ``>`` (version 1) or with ``<`` when descending (version 2). Taken at
its word, the condition loses runs that tie with the last value, and descending version 1 never ends. Here it is taken
for what it means: the place where the last page ended.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from neptune_assets.server.neptune2.attributes import moment_of

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
