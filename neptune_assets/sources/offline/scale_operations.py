"""Applies operations that neptune-scale recorded, one after the other, to the state of a run.

Belongs here: what each kind of operation means. Does not belong here: where operations come from.

Decisions. An int appended to a series becomes a float, as on the server. Previews are no points: they are counted, and
a series that ends in one says so in a note. A path may hold values of two types; the server would have refused the
second, here neither is lost. Several points of one step are all handed on: the lake decides. A second create operation
(a resumed run) changes nothing that the first one set.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from neptune_assets.schema import MICROSTEPS, AttributeType
from neptune_assets.sources.offline.state import RunState
from neptune_assets.sources.rows import is_time

_ADD: Final = 1
_REMOVE: Final = 2
_EXACT_INT: Final = 2**53
_PREVIEWS: Final = "previews_left_out"

_ATOMS: Final = {
    "float64": AttributeType.FLOAT,
    "int64": AttributeType.INT,
    "string": AttributeType.STRING,
    "bool": AttributeType.BOOL,
    "timestamp": AttributeType.DATETIME,
    "string_set": AttributeType.STRING_SET,
    "file_ref": AttributeType.FILE,
}


@lru_cache(maxsize=1)
def messages() -> tuple[Any, Any, type[Exception]]:
    """Neptune's message classes for creating and for updating a run, and the error that garbage raises."""
    from google.protobuf.message import DecodeError
    from neptune_api.proto.neptune_pb.ingest.v1.common_pb2 import Run, UpdateRunSnapshot

    return Run, UpdateRunSnapshot, DecodeError


class Operations:
    """Applies operations of one recording to ``state``; ``points`` False leaves series out (for inheritance)."""

    def __init__(self, state: RunState, *, points: bool = True) -> None:
        self._state = state
        self._points = points
        self._create, self._update, self._garbage = messages()
        self._previews: dict[str, tuple[int, Any]] = {}
        self._timeless: Counter[str] = Counter()
        self.created = False

    def create(self, sequence: int, blob: bytes) -> None:
        """Apply a create operation; garbage is reported and left out."""
        try:
            operation = self._create.FromString(blob)
        except self._garbage as error:
            self._unreadable(sequence, error)
            return
        self.created = True
        if operation.HasField("experiment_id"):
            self._first("sys/name", AttributeType.STRING, operation.experiment_id)
        if operation.HasField("creation_time"):
            created = milliseconds(operation.creation_time)
            if is_time(created):
                self._first("sys/creation_time", AttributeType.DATETIME, created)
            else:
                self._bad(sequence, f"no calendar has the creation time {created} ms", "sys/creation_time")
        if operation.HasField("fork_point"):
            fork = operation.fork_point
            self._first("sys/forking/parent", AttributeType.STRING, fork.parent_run_id)
            if fork.HasField("step"):
                step = (fork.step.whole * MICROSTEPS + fork.step.micro) / MICROSTEPS
                self._first("sys/forking/step", AttributeType.FLOAT, step)

    def update(self, sequence: int, blob: bytes, recorded: int) -> None:
        """Apply an update; garbage is reported and left out. ``recorded`` is when it was recorded, in epoch ms."""
        try:
            operation = self._update.FromString(blob)
        except self._garbage as error:
            self._unreadable(sequence, error)
            return
        append = operation.append
        if append:
            if self._points:
                self._append(sequence, operation, append, recorded)
        elif not operation.assign and not operation.modify_sets:
            self._empty(sequence, operation, len(blob))
            return
        if operation.assign:
            for path, value in operation.assign.items():
                self._assign(sequence, path, value)
        if operation.modify_sets:
            for path, change in operation.modify_sets.items():
                self._modify(sequence, path, change)

    def finish(self) -> None:
        """Tell about previews that no point replaced, and points whose time cannot be held."""
        for path, count in self._timeless.items():
            self._state.note(
                f"{count:,} points of {path!r} have a time that no calendar has; they are kept without it.", path
            )
        for path, (step, value) in self._previews.items():
            self._state.note(
                f"The series {path!r} ends in a preview ({value!r} at step {step / MICROSTEPS:g}) that was never "
                "committed. Previews are no points and are left out.",
                path,
                AttributeType.FLOAT_SERIES,
            )

    def _append(self, sequence: int, operation: Any, append: Any, recorded: int) -> None:
        if not operation.HasField("step"):
            self._bad(sequence, f"points of {_some(append)} have no step")
            return
        where = operation.step
        step = where.whole * MICROSTEPS + where.micro
        given = milliseconds(operation.timestamp) if operation.HasField("timestamp") else recorded
        time = given if is_time(given) else None
        if operation.HasField("preview") and operation.preview.is_preview:
            self._preview(append, step)
            return
        if time is None:
            self._timeless.update(append.keys())
        # Nearly all points are floats, and an operation holds many at one step: they are taken together.
        paths: list[str] = []
        floats: list[float] = []
        for path, value in append.items():
            kind = value.WhichOneof("value")
            if kind == "float64":
                paths.append(path)
                floats.append(value.float64)
            else:
                self._point(sequence, path, kind, value, step, time)
        if paths:
            try:
                self._state.rows.float_points(paths, step, time, floats)
            except ValueError as error:
                for path in paths:
                    self._bad(sequence, f"a point of {path!r} cannot be kept: {error}", path)
        if self._previews:
            for path in append:
                if path in self._previews and step >= self._previews[path][0]:
                    del self._previews[path]

    def _point(self, sequence: int, path: str, kind: str | None, value: Any, step: int, time: int | None) -> None:
        """Add one point of a series that does not hold floats, or an int to one that does."""
        point = self._state.rows.point
        try:
            if kind == "string":
                point(AttributeType.STRING_SERIES, path, step, time, value.string)
            elif kind == "histogram":
                point(AttributeType.HISTOGRAM_SERIES, path, step, time, _histogram(value.histogram))
            elif kind == "file_ref":
                point(AttributeType.FILE_SERIES, path, step, time, value.file_ref.path)
            elif kind == "int64":
                if abs(value.int64) > _EXACT_INT:
                    self._state.repair("ints_rounded_in_series")
                point(AttributeType.FLOAT_SERIES, path, step, time, float(value.int64))
            else:
                self._bad(sequence, f"{path!r} was appended {kind or 'nothing'}, which no series can hold", path)
        except ValueError as error:
            self._bad(sequence, f"a point of {path!r} cannot be kept: {error}", path)

    def _preview(self, append: Any, step: int) -> None:
        for path, value in append.items():
            kind = value.WhichOneof("value")
            self._previews[path] = (step, getattr(value, kind) if kind else None)
        self._state.repair(_PREVIEWS, len(append))

    def _assign(self, sequence: int, path: str, value: Any) -> None:
        kind = value.WhichOneof("value")
        attribute_type = _ATOMS.get(kind)
        if attribute_type is None:
            self._bad(sequence, f"{path!r} was assigned {kind or 'nothing'}, which no attribute can hold", path)
        elif kind == "timestamp":
            time = milliseconds(value.timestamp)
            if is_time(time):
                self._state.assign(path, attribute_type, time)
            else:
                self._bad(sequence, f"{path!r} was assigned {time} ms, a time that no calendar has", path)
        elif kind == "string_set":
            self._state.assign(path, attribute_type, list(value.string_set.values))
        elif kind == "file_ref":
            self._state.assign(path, attribute_type, value.file_ref.path)
        else:
            self._state.assign(path, attribute_type, getattr(value, kind))

    def _modify(self, sequence: int, path: str, change: Any) -> None:
        if change.WhichOneof("type") != "string":
            self._bad(sequence, f"{path!r} is changed as a set of a kind this version does not know", path)
            return
        values = change.string.values
        unknown = sorted({code for code in values.values() if code not in {0, _ADD, _REMOVE}})
        if unknown:
            self._bad(sequence, f"{path!r} is changed in a way this version does not know ({unknown[0]})", path)
        self._state.change_set(
            path,
            add=[name for name, code in values.items() if code == _ADD],
            remove=[name for name, code in values.items() if code == _REMOVE],
        )

    def _first(self, path: str, attribute_type: AttributeType, value: Any) -> None:
        present = self._state.assigned(path, attribute_type)
        if present is None:
            self._state.assign(path, attribute_type, value)
        elif present != value and path != "sys/creation_time":
            self._state.note(
                f"The run was resumed with {path} {value!r}; it keeps {present!r}, which it began with.",
                path,
                attribute_type,
            )

    def _empty(self, sequence: int, operation: Any, length: int) -> None:
        operation.DiscardUnknownFields()
        if operation.ByteSize() != length:
            self._bad(sequence, "it holds nothing that this version knows")

    def _unreadable(self, sequence: int, error: Exception) -> None:
        self._bad(sequence, f"it is no message of Neptune's ({error})")

    def _bad(self, sequence: int, what: str, path: str | None = None) -> None:
        self._state.error(f"Operation {sequence}: {what}. It is left out, the others are kept.", path)


def milliseconds(stamp: Any) -> int:
    """Epoch milliseconds of a protobuf Timestamp, rounded down.

    The client goes through a float, which turns .123 s into 122_999_906 ns: whole microseconds undo that first.
    """
    return int(stamp.seconds * 1000 + (stamp.nanos + 500) // 1_000 // 1_000)


def moment(milliseconds: int) -> datetime | None:
    """An aware UTC datetime, or None if Python has none so early or late."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _histogram(histogram: Any) -> tuple[str, list[float], list[float]]:
    kind = histogram.WhichOneof("values")
    if kind == "counts":
        return "COUNTING", list(histogram.bin_edges), [float(count) for count in histogram.counts.values]
    if kind == "densities":
        return "DENSITY", list(histogram.bin_edges), list(histogram.densities.values)
    raise ValueError("the histogram has neither counts nor densities")


def _some(append: Any) -> str:
    paths = sorted(append)
    return ", ".join(map(repr, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
