"""Applies updates of a run, as neptune-scale sends them, to the store.

Points are gathered over the whole request and written at its end, in one statement. An attribute's type is settled when
its path is first seen, and of two points at one step the first stays, as if all had been done one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from neptune_api.proto.neptune_pb.ingest.v1.ingest_pb2 import IngestCode

from neptune_assets.schema import MAX_STEP, MICROSTEPS, AttributeType
from neptune_assets.server.neptune3.statuses import Outcome
from neptune_assets.server.neptune3.wire_values import RefusedError, assigned, milliseconds, object_value
from neptune_assets.server.store.runs import SYSTEM_TYPES, encode, float_bits
from neptune_assets.server.store.writing import Attribute, Operations, Problem, Problems, Writing

MAX_PATH: Final = 1024
"""Bytes of UTF-8 that a path may have."""

_ADD: Final = 1
_REMOVE: Final = 2
_IN_ROW: Final = {"sys/name": "experiment", "sys/trashed": "trashed", "sys/archived": "archived"}
_READ_ONLY: Final = frozenset(SYSTEM_TYPES) - {*_IN_ROW, "sys/tags"}
_CODES: Final = {
    Problem.TYPE_CONFLICT: IngestCode.FIELD_TYPE_CONFLICTING,
    Problem.DUPLICATE_POINT: IngestCode.SERIES_POINT_DUPLICATE,
    Problem.STEP_TAKEN: IngestCode.SERIES_STEP_NON_INCREASING,
    Problem.PREVIEW_NOT_AFTER_LAST: IngestCode.SERIES_PREVIEW_STEP_NOT_AFTER_LAST_COMMITTED_STEP,
}
_SERIES: Final = {
    "string": AttributeType.STRING_SERIES,
    "histogram": AttributeType.HISTOGRAM_SERIES,
    "file_ref": AttributeType.FILE_SERIES,
}
# Plain ints: the enum looks its members up on every use.
_OK: Final = int(IngestCode.OK)
_TYPE_CONFLICT: Final = int(IngestCode.FIELD_TYPE_CONFLICTING)
_UNSUPPORTED: Final = int(IngestCode.FIELD_TYPE_UNSUPPORTED)
_TOO_LARGE: Final = int(IngestCode.SERIES_STEP_TOO_LARGE)
_STEP_INVALID: Final = int(IngestCode.SERIES_STEP_INVALID)


class _Objects:
    """Points of one series of strings, histograms or files that this request brings."""

    __slots__ = ("attribute", "steps", "times", "values")

    def __init__(self, attribute: Attribute) -> None:
        self.attribute = attribute
        self.steps: list[int] = []
        self.times: list[int] = []
        self.values: list[str] = []


class Snapshots:
    """Applies the updates of one request to one run, inside one transaction."""

    def __init__(self, writing: Writing, operations: Operations) -> None:
        self._writing = writing
        self._operations = operations
        self._floats: dict[str, Attribute] = {}
        self._objects: dict[str, _Objects] = {}
        self.outcome = Outcome()

    def apply(self, snapshots: Iterable[Any]) -> Outcome:
        """Apply them in order and return how many operations ended in which way."""
        for snapshot in snapshots:
            if snapshot.append:
                self._append(snapshot)
            if snapshot.assign:
                for path, value in snapshot.assign.items():
                    self._assign(path, value)
            if snapshot.modify_sets:
                for path, change in snapshot.modify_sets.items():
                    self._modify(path, change)
        late, refused = self._writing.points.settle()
        self._count(refused)
        if late:
            self.outcome[_OK] += late
            self._writing.touch(self._operations.run)
        for objects in self._objects.values():
            self._count(
                self._operations.append_objects(objects.attribute, objects.steps, objects.times, objects.values),
                len(objects.steps),
            )
        return self.outcome

    def _append(self, snapshot: Any) -> None:
        append = snapshot.append
        try:
            time = milliseconds(snapshot.timestamp) if snapshot.HasField("timestamp") else self._writing.now
        except RefusedError as error:
            self.outcome[error.code] += len(append)
            return
        step: int | None = None
        if snapshot.HasField("step"):
            where = snapshot.step
            step = where.whole * MICROSTEPS + where.micro
            if where.whole >= MAX_STEP or where.micro >= MICROSTEPS or step < 0:
                self.outcome[_TOO_LARGE if where.whole >= MAX_STEP else _STEP_INVALID] += len(append)
                return
        if snapshot.HasField("preview") and snapshot.preview.is_preview:
            completion = float_bits(snapshot.preview.completion_ratio)
            for path, value in append.items():
                self._preview(path, value, step, time, completion)
        elif step is None:
            for path, value in append.items():
                self._append_one(path, value, None, time)
        else:
            self._append_step(append, step, time)

    def _append_step(self, append: Any, step: int, time: int) -> None:
        """Append values of many attributes at one step. Nearly all there is to do is done here, so it is in a hurry."""
        points = self._writing.points
        attributes, values = points.attributes, points.values
        before = len(attributes)
        known = self._floats
        others = []
        for path, value in append.items():
            if value.WhichOneof("value") != "float64":
                others.append((path, value))
                continue
            attribute = known.get(path) or self._float_series(path)
            if attribute is None:
                continue
            last = attribute.last_step
            if last is None or step > last:
                attribute.last_step = step
                attributes.append(attribute.id)
                values.append(value.float64)
            else:
                points.late(attribute, step, time, value.float64)
        taken = len(attributes) - before
        points.steps.extend([step] * taken)
        points.times.extend([time] * taken)
        if taken:
            self.outcome[_OK] += taken
            self._writing.touch(self._operations.run)
        for path, value in others:
            self._append_one(path, value, step, time)

    def _append_one(self, path: str, value: Any, step: int | None, time: int) -> None:
        """Append one point of any kind; without a step it comes a whole step after the last one."""
        kind = value.WhichOneof("value")
        if kind in {"float64", "int64"}:
            attribute = self._floats.get(path) or self._float_series(path)
            if attribute is not None:
                last, number = attribute.last_step, float(getattr(value, kind))
                at = _next_step(last) if step is None else step
                if last is None or at > last:
                    self._count(self._operations.append_floats(attribute, [at], [time], [number]), 1)
                else:
                    self._writing.points.late(attribute, at, time, number)
            return
        try:
            text = object_value(kind, value)
        except RefusedError as error:
            self.outcome[error.code] += 1
            return
        objects = self._object_series(path, _SERIES[kind])
        if objects is not None:
            last = objects.steps[-1] if objects.steps else objects.attribute.last_step
            objects.steps.append(_next_step(last) if step is None else step)
            objects.times.append(time)
            objects.values.append(text)

    def _float_series(self, path: str) -> Attribute | None:
        """The series at this path; None, and counted, if points cannot go there."""
        attribute = self._series(path, AttributeType.FLOAT_SERIES)
        if attribute is not None:
            self._floats[path] = attribute
        return attribute

    def _object_series(self, path: str, kind: AttributeType) -> _Objects | None:
        found = self._objects.get(path)
        if found is not None and found.attribute.kind is kind:
            return found
        attribute = self._series(path, kind)
        if attribute is None:
            return None
        self._objects[path] = _Objects(attribute)
        return self._objects[path]

    def _series(self, path: str, kind: AttributeType) -> Attribute | None:
        code = _path_problem(path)
        attribute = None if code else self._operations.attribute(path, kind)
        if attribute is None:
            self.outcome[code or _TYPE_CONFLICT] += 1
        return attribute

    def _preview(self, path: str, value: Any, step: int | None, time: int, completion: int) -> None:
        kind = value.WhichOneof("value")
        if kind not in {"float64", "int64"}:
            self.outcome[_UNSUPPORTED] += 1
            return
        attribute = self._floats.get(path) or self._float_series(path)
        if attribute is not None:
            at = _next_step(attribute.last_step) if step is None else step
            bits = float_bits(float(getattr(value, kind)))
            self._count(self._operations.preview(attribute, at, time, bits, completion), 1)

    def _assign(self, path: str, value: Any) -> None:
        code = _path_problem(path)
        if code:
            self.outcome[code] += 1
            return
        try:
            kind, found = assigned(value)
        except RefusedError as error:
            self.outcome[error.code] += 1
            return
        if path not in _IN_ROW:
            self._count(self._operations.assign(path, kind, encode(kind, found)), 1)
        elif kind is not SYSTEM_TYPES[path]:
            self.outcome[_TYPE_CONFLICT] += 1
        else:
            self._operations.run = self._writing.update_run(self._operations.run, **{_IN_ROW[path]: found})
            self.outcome[_OK] += 1

    def _modify(self, path: str, change: Any) -> None:
        code = _path_problem(path)
        if code or change.WhichOneof("type") != "string":
            self.outcome[code or _UNSUPPORTED] += 1
            return
        values = change.string.values
        refused = self._operations.change_set(
            path,
            add=[name for name, what in values.items() if what == _ADD],
            remove=[name for name, what in values.items() if what == _REMOVE],
        )
        self._count(refused, 1)

    def _count(self, problems: Problems, total: int | None = None) -> None:
        """Count what was refused; of ``total`` operations the others went well."""
        for problem, count in problems.items():
            self.outcome[_CODES[problem]] += count
        if total is not None:
            self.outcome[_OK] += total - problems.total()


def _next_step(last: int | None) -> int:
    return 0 if last is None else last + MICROSTEPS


def _path_problem(path: str) -> int:
    """The code of what is wrong with a path; 0 if nothing is."""
    if not path:
        return int(IngestCode.FIELD_PATH_EMPTY)
    if len(path) * 4 > MAX_PATH and len(path.encode("utf-8", "replace")) > MAX_PATH:
        return int(IngestCode.FIELD_PATH_EXCEEDS_SIZE_LIMIT)
    if path in _READ_ONLY:
        return int(IngestCode.FIELD_PATH_NON_WRITABLE)
    return 0
