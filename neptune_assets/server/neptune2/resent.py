"""Points without steps that come once more: from a client that was killed before it knew that they had arrived.

Its ``neptune sync`` sends what it kept in requests that are cut anew, so that none of them looks like the one that was
applied, and the server would give the points steps once more. What is there already is what such a session begins
with: the same times, to the millisecond, and the same values in the same order. A session that goes on from there has
sent all that could be there, and is not looked at again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

from neptune_assets.schema import AttributeType
from neptune_assets.server.neptune2.operations import Point
from neptune_assets.server.store.points import Attribute
from neptune_assets.server.store.values import float_bits

_REMEMBERED: Final = 20_000
_LOOKED_AT: Final = 10_000
"""Points of a series, from its end, among which those that come again are looked for: ten requests of a client."""

_STORED: Final = {
    AttributeType.FLOAT_SERIES: "SELECT time, bits FROM points",
    AttributeType.STRING_SERIES: "SELECT time, value FROM objects",
    AttributeType.FILE_SERIES: "SELECT time, (SELECT sha256 FROM files WHERE key = json_extract(value, '$.path'))"
    " FROM objects",
}


class Sessions:
    """Which sessions have sent something new to which run. After a restart of the server none has."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lock = threading.Lock()

    def known(self, run: str, session: str) -> bool:
        """True if the session has sent something new to the run."""
        with self._lock:
            return (run, session) in self._known

    def add(self, run: str, session: str) -> None:
        """Note that it has."""
        with self._lock:
            self._known[run, session] = None
            self._known.move_to_end((run, session))
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)


class Resent:
    """Takes out of one request the points that are there already."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._gone_on: set[int] = set()

    @property
    def all(self) -> bool:
        """True if nothing new was among the points."""
        return not self._gone_on

    def rest(self, attribute: Attribute, points: Sequence[Point]) -> Sequence[Point]:
        """Return the points that are not there yet. Points with steps are left to the rules for steps."""
        if attribute.id in self._gone_on:
            return points
        count = 0
        if points and all(point.step is None for point in points):
            count = self._count(attribute, [(point.time, _key(attribute.kind, point.value)) for point in points])
        if count < len(points):
            self._gone_on.add(attribute.id)
        return points[count:]

    def _count(self, attribute: Attribute, coming: Sequence[tuple[int, Any]]) -> int:
        """Return how many points, from the first on, lie side by side in what is stored."""
        query = f"{_STORED[attribute.kind]} WHERE attribute = ? ORDER BY step DESC LIMIT ?"
        last = self._connection.execute(query, (attribute.id, 1)).fetchone()
        if last is None or coming[0][0] > last[0]:
            return 0
        stored = [tuple(row) for row in self._connection.execute(query, (attribute.id, _LOOKED_AT))][::-1]
        best = 0
        for place, point in enumerate(stored):
            if point == coming[0]:
                same = 1
                while same < min(len(coming), len(stored) - place) and stored[place + same] == coming[same]:
                    same += 1
                best = max(best, same)
        return best


def _key(kind: AttributeType, value: Any) -> Any:
    if kind is AttributeType.FLOAT_SERIES:
        return float_bits(value)
    if kind is AttributeType.STRING_SERIES:
        return value
    try:
        return hashlib.sha256(base64.b64decode(value.get("data") or "", validate=True)).hexdigest()
    except (binascii.Error, TypeError, ValueError):
        return None
