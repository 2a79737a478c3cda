"""Applies updates of a run, as neptune-scale sends them, to the store.

Points are gathered by attribute over the whole request and appended at its end, in one statement; an attribute's type
is settled when its path is first seen, so what comes first decides, as if all had been done one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from neptune_api.proto.neptune_pb.ingest.v1.ingest_pb2 import IngestCode

from neptune_assets.schema import MAX_STEP, MICROSTEPS, AttributeType
from neptune_assets.server.neptune3.statuses import Outcome
from neptune_assets.server.neptune3.wire_values import RefusedError, assigned, milliseconds, object_value
from neptune_assets.server.store.operations import Attribute, Operations, Problem, Problems
from neptune_assets.server.store.system import SYSTEM_TYPES
from neptune_assets.server.store.values import encode, float_bits
from neptune_assets.server.store.writing import Writing

MAX_PATH: Final = 1024
"""Bytes of UTF-8 that a path may have."""

_ADD: Final = 1
_REMOVE: Final = 2
_IN_ROW: Final = {"sys/name": "experiment", "sys/trashed": "trashed", "sys/archived": "archived"}
_READ_ONLY: Final = frozenset(SYSTEM_TYPES) - {*_IN_ROW, "sys/tags"}
_CODES: Final = {
    Problem.TYPE_CONFLICT: IngestCode.FIELD_TYPE_CONFLICTING,
    Problem.DUPLICATE_POINT: IngestCode.SERIES_POINT_DUPLICATE,
    Problem.STEP_NOT_INCREASING: IngestCode.SERIES_STEP_NON_INCREASING,
    Problem.PREVIEW_NOT_AFTER_LAST: IngestCode.SERIES_PREVIEW_STEP_NOT_AFTER_LAST_COMMITTED_STEP,
}
_SERIES: Final = {
    "string": AttributeType.STRING_SERIES,
    "histogram": AttributeType.HISTOGRAM_SERIES,
    "file_ref": AttributeType.FILE_SERIES,
}


class _Series:
    """Points of one series that this request brings; without an attribute, why they are refused."""

    __slots__ = ("attribute", "kind", "refused", "steps", "times", "values")

    def __init__(self, kind: AttributeType, attribute: Attribute | None, refused: int) -> None:
        self.kind = kind
        self.attribute = attribute
        self.refused = refused
        self.steps: list[int] = []
        self.times: list[int] = []
        self.values: list[Any] = []

    def next_step(self) -> int:
        """The step of a point that comes without one."""
        last = self.steps[-1] if self.steps else None if self.attribute is None else self.attribute.last_step
        return 0 if last is None else last + MICROSTEPS


class Snapshots:
    """Applies the updates of one request to one run, inside one transaction."""

    def __init__(self, writing: Writing, operations: Operations) -> None:
        self._writing = writing
        self._operations = operations
        self._series: dict[str, _Series] = {}
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
        for series in self._series.values():
            self._finish(series)
        return self.outcome

    def _append(self, snapshot: Any) -> None:
        append = snapshot.append
        step: int | None = None
        if snapshot.HasField("step"):
            where = snapshot.step
            step = where.whole * MICROSTEPS + where.micro
            wrong = (
                IngestCode.SERIES_STEP_TOO_LARGE
                if where.whole >= MAX_STEP
                else IngestCode.SERIES_STEP_INVALID
                if step < 0 or where.micro >= MICROSTEPS
                else IngestCode.OK
            )
            if wrong:
                self.outcome[wrong] += len(append)
                return
        time = milliseconds(snapshot.timestamp) if snapshot.HasField("timestamp") else self._writing.now
        if snapshot.HasField("preview") and snapshot.preview.is_preview:
            completion = snapshot.preview.completion_ratio
            for path, value in append.items():
                self._preview(path, value, step, time, completion)
            return
        known = self._series
        for path, value in append.items():
            kind = value.WhichOneof("value")
            if kind == "float64":
                series = known.get(path)
                if series is None or series.kind is not AttributeType.FLOAT_SERIES:
                    series = self._open(path, AttributeType.FLOAT_SERIES)
                series.steps.append(series.next_step() if step is None else step)
                series.times.append(time)
                series.values.append(value.float64)
            else:
                self._append_other(path, kind, value, step, time)

    def _append_other(self, path: str, kind: str | None, value: Any, step: int | None, time: int) -> None:
        if kind == "int64":
            series, found = self._open(path, AttributeType.FLOAT_SERIES), float(value.int64)
        elif kind in _SERIES:
            try:
                text = object_value(kind, value)
            except RefusedError as error:
                self.outcome[error.code] += 1
                return
            series, found = self._open(path, _SERIES[kind]), text
        else:
            self.outcome[IngestCode.FIELD_TYPE_UNSUPPORTED] += 1
            return
        series.steps.append(series.next_step() if step is None else step)
        series.times.append(time)
        series.values.append(found)

    def _open(self, path: str, kind: AttributeType) -> _Series:
        series = self._series.get(path)
        if series is not None and series.kind is kind:
            return series
        code = _path_problem(path)
        attribute = None if code else self._operations.attribute(path, kind)
        made = _Series(kind, attribute, code or IngestCode.FIELD_TYPE_CONFLICTING)
        if series is None:
            self._series[path] = made
            return made
        # The path is taken by a series of another type in this very request; only the refusal is counted.
        self.outcome[made.refused] += 1
        return _Series(kind, None, IngestCode.OK)

    def _finish(self, series: _Series) -> None:
        if series.attribute is None:
            if series.refused:
                self.outcome[series.refused] += len(series.steps)
        elif series.steps:
            append = (
                self._operations.append_floats
                if series.kind is AttributeType.FLOAT_SERIES
                else self._operations.append_objects
            )
            problems = append(series.attribute, series.steps, series.times, series.values)
            self._count(problems, len(series.steps))
            series.steps, series.times, series.values = [], [], []

    def _preview(self, path: str, value: Any, step: int | None, time: int, completion: float) -> None:
        kind = value.WhichOneof("value")
        if kind not in {"float64", "int64"}:
            self.outcome[IngestCode.FIELD_TYPE_UNSUPPORTED] += 1
            return
        series = self._open(path, AttributeType.FLOAT_SERIES)
        if series.attribute is None:
            self.outcome[series.refused] += 1
            return
        at = series.next_step() if step is None else step
        # Points of this request that came before the preview decide whether it is after the last one.
        self._finish(series)
        bits = float_bits(float(getattr(value, kind)))
        self._count(self._operations.preview(series.attribute, at, time, bits, float_bits(completion)), 1)

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
        if path in _IN_ROW:
            if kind is not SYSTEM_TYPES[path]:
                self.outcome[IngestCode.FIELD_TYPE_CONFLICTING] += 1
                return
            self._operations.run = self._writing.update_run(self._operations.run, **{_IN_ROW[path]: found})
            self.outcome[IngestCode.OK] += 1
            return
        self._count(self._operations.assign(path, kind, encode(kind, found)), 1)

    def _modify(self, path: str, change: Any) -> None:
        code = _path_problem(path)
        if code or change.WhichOneof("type") != "string":
            self.outcome[code or IngestCode.FIELD_TYPE_UNSUPPORTED] += 1
            return
        values = change.string.values
        self._count(
            self._operations.change_set(
                path,
                add=[name for name, what in values.items() if what == _ADD],
                remove=[name for name, what in values.items() if what == _REMOVE],
            ),
            1,
        )

    def _count(self, problems: Problems, total: int) -> None:
        for problem, count in problems.items():
            self.outcome[_CODES[problem]] += count
        self.outcome[IngestCode.OK] += total - problems.total()


def _path_problem(path: str) -> int:
    """The code of what is wrong with a path; 0 if nothing is."""
    if not path:
        return int(IngestCode.FIELD_PATH_EMPTY)
    if len(path) * 4 > MAX_PATH and len(path.encode("utf-8", "replace")) > MAX_PATH:
        return int(IngestCode.FIELD_PATH_EXCEEDS_SIZE_LIMIT)
    if path in _READ_ONLY:
        return int(IngestCode.FIELD_PATH_NON_WRITABLE)
    return 0
