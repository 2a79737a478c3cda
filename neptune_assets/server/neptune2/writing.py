"""Operations of a client applied to one run, inside one transaction of the store.

What the rules refuse (another type at the path, another point at a step, sets of strings elsewhere than in sys/) is
told as a text for each operation, as the hosted service did; everything else of the request is kept.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import gt
from typing import TYPE_CHECKING, Any, Final

from neptune_assets.schema import MAX_STEP, MICROSTEPS, AttributeType
from neptune_assets.server.neptune2.containers import MODEL_VERSIONS
from neptune_assets.server.neptune2.filesets import (
    delete_members,
    extension_of_mime,
    member_names,
    mime_of_content,
    selected,
    update_value,
)
from neptune_assets.server.neptune2.responses import BadRequestError
from neptune_assets.server.store.runs import SYSTEM_TYPES, bits_float, encode, file_value, float_bits, to_json
from neptune_assets.server.store.writing import Attribute, Problem, Problems
from neptune_assets.sources.values import micro_step

if TYPE_CHECKING:
    from neptune_assets.server.store.files import ObjectStore
    from neptune_assets.server.store.runs import Run
    from neptune_assets.server.store.writing import Operations, Writing


@dataclass(frozen=True, slots=True)
class Assign:
    """Give a single-value attribute its value: a Python value, datetimes as whole milliseconds."""

    path: str
    type: AttributeType
    value: Any


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a series. `step` is in millionths, None where the server is to number it; `time` in milliseconds."""

    step: int | None
    time: int
    value: Any


@dataclass(frozen=True, slots=True)
class Log:
    """Append values to a series (floats, strings, or images as mappings of data, name and description)."""

    path: str
    type: AttributeType
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Clear:
    """Empty an attribute of this type, but keep it."""

    path: str
    type: AttributeType


@dataclass(frozen=True, slots=True)
class Configure:
    """Say how a float series is to be drawn: bounds and unit, each may be None."""

    path: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChangeSet:
    """Add strings to a set of strings, or take them away."""

    path: str
    values: Sequence[str]
    add: bool


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove an attribute; one that is not there is no mistake."""

    path: str


@dataclass(frozen=True, slots=True)
class DeleteFiles:
    """Take files (or directories with all that is in them) out of a file set."""

    path: str
    files: Sequence[str]


Operation = Assign | Log | Clear | Configure | ChangeSet | Delete | DeleteFiles

_ASSIGN: Final[Mapping[str, tuple[AttributeType, str]]] = {
    "assignFloat": (AttributeType.FLOAT, "value"),
    "assignInt": (AttributeType.INT, "value"),
    "assignBool": (AttributeType.BOOL, "value"),
    "assignString": (AttributeType.STRING, "value"),
    "assignDatetime": (AttributeType.DATETIME, "valueMilliseconds"),
    "assignArtifact": (AttributeType.ARTIFACT, "hash"),
}
_LOG: Final[Mapping[str, AttributeType]] = {
    "logFloats": AttributeType.FLOAT_SERIES,
    "logStrings": AttributeType.STRING_SERIES,
    "logImages": AttributeType.FILE_SERIES,
}
_CLEAR: Final[Mapping[str, AttributeType]] = {
    "clearFloatSeries": AttributeType.FLOAT_SERIES,
    "clearStringSeries": AttributeType.STRING_SERIES,
    "clearImageSeries": AttributeType.FILE_SERIES,
    "clearStringSet": AttributeType.STRING_SET,
    "clearArtifact": AttributeType.ARTIFACT,
}
_MAX_TIME: Final = 253_402_300_799_999
"""The last millisecond of the year 9999."""


def parse_operations(body: Any) -> list[Operation]:
    """Return the operations of a request body. Raises BadRequestError that names the first item that is wrong."""
    if not isinstance(body, list):
        raise BadRequestError("A list of operations is expected.")
    return [_operation(index, item) for index, item in enumerate(body)]


def _operation(index: int, item: Any) -> Operation:
    if not isinstance(item, dict) or not isinstance(item.get("path"), str) or not item["path"]:
        raise BadRequestError(f"Operation {index} has no path.")
    path: str = item["path"]
    names = [name for name in item if name != "path"]
    if len(names) != 1 or not isinstance(item[names[0]], dict):
        raise BadRequestError(f"Operation {index} ({path!r}) must hold exactly one operation.")
    name, body = names[0], item[names[0]]
    where = f"Operation {index} ({name} of {path!r})"
    if name in _ASSIGN:
        kind, field = _ASSIGN[name]
        return Assign(path, kind, _value(where, kind, body.get(field)))
    if name in _LOG:
        return Log(path, _LOG[name], [_point(where, _LOG[name], entry) for entry in _list(where, body, "entries")])
    if name in _CLEAR:
        return Clear(path, _CLEAR[name])
    if name == "configFloatSeries":
        return Configure(path, {key: body.get(key) for key in ("min", "max", "unit")})
    if name in ("insertStrings", "removeStrings"):
        return ChangeSet(path, _strings(where, body, "values"), add=name == "insertStrings")
    if name == "deleteAttribute":
        return Delete(path)
    if name == "deleteFiles":
        return DeleteFiles(path, _strings(where, body, "filePaths"))
    raise BadRequestError(f"{where} is not an operation that this server knows.")


def _value(where: str, kind: AttributeType, value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is AttributeType.FLOAT and number:
        return _float(where, value)
    if kind is AttributeType.INT and number and float(value).is_integer() and -(2**63) <= value < 2**63:
        return int(value)
    if kind is AttributeType.DATETIME and number and math.isfinite(value) and abs(value) <= _MAX_TIME:
        return int(value)
    if (kind is AttributeType.BOOL and isinstance(value, bool)) or (
        kind in (AttributeType.STRING, AttributeType.ARTIFACT) and isinstance(value, str)
    ):
        return value
    raise BadRequestError(f"{where} has no value of type {kind.value}.")


def _float(where: str, value: Any) -> float:
    try:
        return float(value)
    except (OverflowError, ValueError, TypeError):
        raise BadRequestError(f"{where} has a value that is not a valid number.") from None


def _point(where: str, kind: AttributeType, entry: Any) -> Point:
    if not isinstance(entry, dict):
        raise BadRequestError(f"{where} has a point that is not a JSON object.")
    value, step, time = entry.get("value"), entry.get("step"), entry.get("timestampMilliseconds")
    if kind is AttributeType.FLOAT_SERIES:
        value = _value(where, AttributeType.FLOAT, value)
    elif not isinstance(value, str if kind is AttributeType.STRING_SERIES else dict):
        raise BadRequestError(f"{where} holds a point without a value of its type.")
    if isinstance(time, bool) or not isinstance(time, (int, float)) or not abs(time) <= _MAX_TIME:
        raise BadRequestError(f"{where} holds a point without a time.")
    return Point(None if step is None else _step(where, step), int(time), value)


def _step(where: str, step: Any) -> int:
    if isinstance(step, bool) or not isinstance(step, (int, float)) or not abs(step) < MAX_STEP:
        raise BadRequestError(f"{where} has an invalid step (must be a number below 10^12).")
    return micro_step(step)


def _list(where: str, body: Mapping[str, Any], field: str) -> list[Any]:
    values = body.get(field)
    if not isinstance(values, list):
        raise BadRequestError(f"{where} has no list of {field}.")
    return values


def _strings(where: str, body: Mapping[str, Any], field: str) -> list[str]:
    values = _list(where, body, field)
    if not all(isinstance(value, str) for value in values):
        raise BadRequestError(f"In {where}, field {field} must hold strings only.")
    return values


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


STAGES: Final = ("none", "staging", "production", "archived")
_SETS: Final = frozenset({"sys/tags", "sys/group_tags"})
_WRITABLE: Final = frozenset({"sys/name", "sys/tags"})
_OWN: Final = frozenset(SYSTEM_TYPES) - _WRITABLE | {"sys/size", "sys/owner", "sys/model_id", "sys/state"}
"""Attributes that only the server makes."""


class Application:
    """Applies operations to one run; ``errors`` are the texts of what was refused.

    ``resent`` takes out points without steps that may have come before.
    """

    def __init__(self, writing: Writing, run: Run, objects: ObjectStore, resent: Resent | None = None) -> None:
        self._writing = writing
        self._run = run
        self._objects = objects
        self._operations: Operations = writing.operations(run)
        self._resent = resent
        self.errors: list[str] = []

    def apply(self, operations: Sequence[Operation]) -> None:
        """Apply operations in order."""
        for operation in operations:
            if operation.path in _OWN:
                self.errors.append(f"Attribute {operation.path} is made by the server and cannot be changed.")
            else:
                self._apply(operation)

    def look_again(self, operations: Sequence[Operation]) -> None:
        """Apply nothing, as the very same operations were applied; note where in their series they are."""
        for operation in operations:
            if isinstance(operation, Log) and self._operations.kind(operation.path) is operation.type:
                attribute = self._operations.attribute(operation.path, operation.type)
                if attribute is not None and self._resent is not None:
                    self._resent.again(attribute, operation.points)

    def assign(self, path: str, kind: AttributeType, value: Any) -> bool:
        """Set a single value; False (and an error more) if the path holds another type."""
        if self._operations.assign(path, kind, encode(kind, value)):
            self._conflict(path, kind)
            return False
        return True

    def assign_if_new(self, path: str, kind: AttributeType, value: Any) -> bool:
        """Set a single value if there is none yet; False (and an error more) if the path holds another type."""
        if path in _OWN:
            self.errors.append(f"Attribute {path} is made by the server and cannot be changed.")
            return False
        if self._operations.kind(path) is kind:
            return True
        return self.assign(path, kind, value)

    def grow(self, size: int) -> None:
        """Count bytes that were added to the run (or taken from it, if negative) in sys/size."""
        row = self._writing.connection.execute(
            "SELECT value FROM attributes WHERE run = ? AND path = 'sys/size'", (self._run.id,)
        ).fetchone()
        before = 0.0 if row is None or row[0] is None else bits_float(int(row[0]))
        self._operations.assign("sys/size", AttributeType.FLOAT, encode(AttributeType.FLOAT, max(0.0, before + size)))

    def _apply(self, operation: Operation) -> None:
        if isinstance(operation, Assign):
            self._assign(operation)
        elif isinstance(operation, Log):
            self._log(operation)
        elif isinstance(operation, Clear):
            self._clear(operation)
        elif isinstance(operation, Configure):
            config = {key: value for key, value in operation.config.items() if value is not None}
            if self._operations.assign(operation.path, AttributeType.FLOAT_SERIES, to_json(config)):
                self._conflict(operation.path, AttributeType.FLOAT_SERIES)
        elif isinstance(operation, ChangeSet):
            self._change_set(operation)
        elif isinstance(operation, Delete):
            self._operations.delete(operation.path)
        else:
            self._delete_files(operation)

    def _assign(self, operation: Assign) -> None:
        value = operation.value
        if operation.path == "sys/stage" and (self._run.scope != MODEL_VERSIONS or value not in STAGES):
            self.errors.append(f"The stage of a model version is one of {', '.join(STAGES)}, not {value!r}.")
            return
        if operation.type is AttributeType.ARTIFACT:
            value = {"hash": value}
        self.assign(operation.path, operation.type, value)
        if operation.path == "sys/name" and self._run.generation == "3":
            self._run = self._writing.update_run(self._run, experiment=value)

    def _log(self, operation: Log) -> None:
        attribute = self._operations.attribute(operation.path, operation.type)
        if attribute is None:
            self._conflict(operation.path, operation.type)
            return
        coming = operation.points if self._resent is None else self._resent.rest(attribute, operation.points)
        points = list(_numbered(coming, attribute.last_step))
        if any(abs(point.step or 0) >= MAX_STEP * MICROSTEPS for point in points):
            self.errors.append(f"Steps of {operation.path} leave the range that can be kept.")
            return
        steps, times = [point.step or 0 for point in points], [point.time for point in points]
        if operation.type is AttributeType.FLOAT_SERIES:
            problems = self._operations.append_floats(attribute, steps, times, [point.value for point in points])
        elif operation.type is AttributeType.STRING_SERIES:
            problems = self._operations.append_objects(attribute, steps, times, [point.value for point in points])
        else:
            problems = Problems()
            for point in points:
                problems += self._log_image(operation.path, attribute, point)
        refused = problems[Problem.STEP_TAKEN]
        if refused:
            # The very same point again is a request sent again: nobody needs to hear of it.
            self.errors.append(
                f"{refused} of {len(points)} points of {operation.path} were left out: their steps hold other points."
            )

    def _log_image(self, path: str, attribute: Attribute, point: Point) -> Problems:
        try:
            content = base64.b64decode(point.value.get("data") or "", validate=True)
        except (binascii.Error, TypeError, ValueError):
            self.errors.append(f"An image of {path} is not in base64; it is kept without content.")
            content = b""
        step = point.step or 0
        mime = mime_of_content(content) or "image/png"
        key = f"{self._run.uuid}/{path}/{step / MICROSTEPS:.6f}.{extension_of_mime(mime)}"
        about = {name: point.value[name] for name in ("name", "description") if point.value.get(name)}
        value = to_json({**file_value(key, len(content), mime), **about})
        there = self._writing.connection.execute(
            "SELECT value, (SELECT sha256 FROM files WHERE key = ?) AS sha256 FROM objects"
            " WHERE attribute = ? AND step = ?",
            (key, attribute.id, step),
        ).fetchone()
        if there is not None:
            # Its bytes must not take the place of those that are there.
            same = tuple(there) == (value, hashlib.sha256(content).hexdigest())
            return Problems({Problem.DUPLICATE_POINT if same else Problem.STEP_TAKEN: 1})
        incoming = self._objects.receive()
        try:
            incoming.write(content)
            stored = incoming.keep()
        finally:
            incoming.drop()
        self._writing.put_file(key, stored.sha256, stored.size, mime)
        self.grow(stored.size)
        return self._operations.append_objects(attribute, [step], [point.time], [value])

    def _clear(self, operation: Clear) -> None:
        kind = self._operations.kind(operation.path)
        if kind is None:
            return
        if kind is not operation.type:
            self._conflict(operation.path, operation.type)
        elif kind is AttributeType.ARTIFACT:
            # Without a hash there is no artifact: the client asks for it and takes what it tracks next for a new one.
            self._operations.delete(operation.path)
        else:
            self._operations.clear(operation.path)

    def _change_set(self, operation: ChangeSet) -> None:
        if operation.path not in _SETS:
            places = " and ".join(sorted(_SETS))
            self.errors.append(f"Sets of strings are kept at {places} only, not at {operation.path}.")
        elif self._operations.change_set(
            operation.path,
            add=operation.values if operation.add else (),
            remove=() if operation.add else operation.values,
        ):
            self._conflict(operation.path, AttributeType.STRING_SET)

    def _delete_files(self, operation: DeleteFiles) -> None:
        kind = self._operations.kind(operation.path)
        if kind is not AttributeType.FILE_SET:
            self.errors.append(f"There is no file set at {operation.path}.")
            return
        attribute = self._operations.attribute(operation.path, kind)
        if attribute is not None:
            connection = self._writing.connection
            gone = selected(member_names(connection, attribute.id), operation.files)
            self.grow(-delete_members(connection, attribute.id, gone))
            update_value(self._operations, operation.path, connection, attribute.id)

    def _conflict(self, path: str, kind: AttributeType) -> None:
        found = self._operations.kind(path)
        held = "inherits another type" if found is None else f"is of type {found.value}"
        self.errors.append(f"Attribute {path} {held}, so it cannot take a value of type {kind.value}.")


def _numbered(points: Sequence[Point], last: int | None) -> Iterator[Point]:
    """Give points without a step the one after the last, from 0."""
    for point in points:
        step = point.step
        if step is None:
            step = 0 if last is None else last + MICROSTEPS
            point = Point(step, point.time, point.value)
        last = step if last is None else max(last, step)
        yield point


def needs_numbers(operations: Sequence[Operation]) -> bool:
    """True if the server is to number a point: sent twice, such a request would count twice."""
    return any(isinstance(item, Log) and any(point.step is None for point in item.points) for item in operations)


def answer_of(errors: Sequence[str]) -> list[dict[str, str]]:
    """Return the answer to operations, or what is remembered of it."""
    return [{"errorDescription": text} for text in errors]


def remember(writing: Writing, run: Run, digest: str, answer: list[dict[str, str]]) -> None:
    """Keep the answer to a request that must not be applied twice.

    What is older than an hour before the one before it is forgotten: a client sends again what came last, however long
    the server was away.
    """
    writing.connection.execute(
        "DELETE FROM requests WHERE run = :run AND at < (SELECT max(at) FROM requests WHERE run = :run) - 3600000",
        {"run": run.id},
    )
    writing.connection.execute(
        "INSERT INTO requests (run, digest, at, answer) VALUES (?, ?, ?, ?)",
        (run.id, digest, writing.now, json.dumps(answer)),
    )


def remembered(writing: Writing, run: Run, digest: str) -> list[dict[str, str]] | None:
    """Return the answer that the same request was given, if it is remembered."""
    row = writing.connection.execute(
        "SELECT answer FROM requests WHERE run = ? AND digest = ?", (run.id, digest)
    ).fetchone()
    return None if row is None else json.loads(row[0])
