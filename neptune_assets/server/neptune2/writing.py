"""Operations of a client applied to one run, inside one transaction of the store.

What the rules refuse (another type at the path, another point at a step, sets of strings elsewhere than in sys/) is
told as a text for each operation, as the hosted service did; everything else of the request is kept.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from neptune_assets.schema import MAX_STEP, MICROSTEPS, AttributeType
from neptune_assets.server.neptune2.containers import MODEL_VERSIONS
from neptune_assets.server.neptune2.file_values import extension_of_mime, mime_of_content
from neptune_assets.server.neptune2.filesets import selected
from neptune_assets.server.neptune2.operations import (
    Assign,
    ChangeSet,
    Clear,
    Configure,
    Delete,
    DeleteFiles,
    Log,
    Operation,
    Point,
)
from neptune_assets.server.neptune2.stored_filesets import delete_members, member_names, update_value
from neptune_assets.server.store.runs import SYSTEM_TYPES, bits_float, encode, file_value, to_json
from neptune_assets.server.store.writing import Problem, Problems

if TYPE_CHECKING:
    from neptune_assets.server.neptune2.resent import Resent
    from neptune_assets.server.store.files import ObjectStore
    from neptune_assets.server.store.runs import Run
    from neptune_assets.server.store.writing import Attribute, Operations, Writing

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
