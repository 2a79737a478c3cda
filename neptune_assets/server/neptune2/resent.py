"""Points without steps that come once more, so that the server would give them steps once more.

Two kinds of clients send them. One was killed before it knew that they had arrived: its ``neptune sync`` sends what it
kept in requests that are cut anew, so that none of them looks like the one that was applied. The other recorded them
several times: a process that forks workers leaves the records that were in its buffer in its log again and again, and
``neptune sync`` sends all of them in one session.

What is there already are points side by side with the same times, to the millisecond, and the same values in the same
order. They are looked for where a session begins, and where it goes back in time; a block that came again may be cut
into several requests. Points of one millisecond that are equal in value are taken for new ones.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import gt
from typing import Any, Final

from neptune_assets.schema import AttributeType
from neptune_assets.server.neptune2.operations import Point
from neptune_assets.server.store.runs import float_bits
from neptune_assets.server.store.writing import Attribute

_REMEMBERED: Final = 20_000
_LOOKED_AT: Final = 10_000
"""Points of a series, from its end, among which those that come again are looked for: ten requests of a client."""

_STORED: Final = {
    AttributeType.FLOAT_SERIES: "SELECT time, bits FROM points",
    AttributeType.STRING_SERIES: "SELECT time, value FROM objects",
    AttributeType.FILE_SERIES: "SELECT time, (SELECT sha256 FROM files WHERE key = json_extract(value, '$.path'))"
    " FROM objects",
}


@dataclass(frozen=True, slots=True)
class Session:
    """What a session has sent to a run: whether anything was new, and where it is in blocks that are there already."""

    gone_on: bool = False
    cursors: Mapping[int, int] = field(default_factory=dict)
    """By series, how many of the points that are there come after those that were sent last."""


class Sessions:
    """What is known of sessions by run. After a restart of the server all of them begin again."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], Session] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, run: str, session: str) -> Session:
        """Return what is known of a session."""
        with self._lock:
            return self._known.get((run, session), Session())

    def put(self, run: str, session: str, known: Session) -> None:
        """Note what a request has added to it."""
        with self._lock:
            self._known[run, session] = known
            self._known.move_to_end((run, session))
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)


class Resent:
    """Takes out of one request the points that are there already."""

    def __init__(self, connection: sqlite3.Connection, session: Session) -> None:
        self._connection = connection
        self._begins = not session.gone_on
        self._cursors = dict(session.cursors)
        self._new: set[int] = set()

    @property
    def session(self) -> Session:
        """What is known of the session after this request."""
        return Session(not self._begins or bool(self._new), self._cursors)

    def rest(self, attribute: Attribute, points: Sequence[Point]) -> Sequence[Point]:
        """Return the points that are not there yet. Points with steps are left to the rules for steps."""
        begins = self._begins and attribute.id not in self._new
        if not points or not all(point.step is None for point in points):
            self._new.add(attribute.id)
            return points
        coming = [(point.time, _key(attribute.kind, point.value)) for point in points]
        cursor = self._cursors.pop(attribute.id, None)
        if not (begins or cursor is not None or self._goes_back(attribute, coming)):
            self._new.add(attribute.id)
            return points
        known = self._stored(attribute)
        places: dict[tuple[int, Any], list[int]] = {}
        for place, point in enumerate(known):
            places.setdefault(point, []).append(place)
        kept: list[Point] = []
        index = 0
        # Where the block that the last request ended with goes on.
        on = None if cursor is None else max(0, len(known) - cursor)
        while index < len(coming):
            starts: Sequence[int] = ()
            if on is not None and on < len(known) and known[on] == coming[index]:
                starts = (on,)
            elif known and (
                coming[index][0] < known[-1][0] or (begins and index == 0 and coming[0][0] == known[-1][0])
            ):
                starts = places.get(coming[index], ())
            count, start = _longest(known, starts, coming, index)
            on = None
            if count:
                index, on = index + count, start + count
                continue
            places.setdefault(coming[index], []).append(len(known))
            known.append(coming[index])
            kept.append(points[index])
            index += 1
        if on is not None and on < len(known):
            self._cursors[attribute.id] = len(known) - on
        if kept:
            self._new.add(attribute.id)
        return kept

    def again(self, attribute: Attribute, points: Sequence[Point]) -> None:
        """Note that the very same request came again, with these points: the next one may go on where it ends."""
        coming = [(point.time, _key(attribute.kind, point.value)) for point in points]
        known = self._stored(attribute)
        count, start = _longest(known, range(len(known)), coming, 0)
        self._cursors.pop(attribute.id, None)
        if count and start + count < len(known):
            self._cursors[attribute.id] = len(known) - start - count

    def _goes_back(self, attribute: Attribute, coming: Sequence[tuple[int, Any]]) -> bool:
        times = [time for time, _ in (*self._stored(attribute, 1), *coming)]
        return any(map(gt, times, times[1:]))

    def _stored(self, attribute: Attribute, count: int = _LOOKED_AT) -> list[tuple[int, Any]]:
        query = f"{_STORED[attribute.kind]} WHERE attribute = ? ORDER BY step DESC LIMIT ?"
        return [tuple(row) for row in self._connection.execute(query, (attribute.id, count))][::-1]


def _longest(
    known: Sequence[tuple[int, Any]], starts: Iterable[int], coming: Sequence[tuple[int, Any]], index: int
) -> tuple[int, int]:
    """Return how many points from an index on are those from one of the starts on, and from which."""
    best = (0, 0)
    for start in starts:
        count = 0
        while (
            index + count < len(coming) and start + count < len(known) and coming[index + count] == known[start + count]
        ):
            count += 1
        best = max(best, (count, start))
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
