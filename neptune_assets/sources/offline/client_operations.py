"""What the operations of neptune-client 2.x do: a first pass that plans a run, and the points of a second.

A delete or clear comes after points that it takes back, and points are too many to keep. So the first pass
(:class:`Plan`) keeps attributes only: their values, and for every series the place in the order of operations from
which its points count. The second pass (:class:`Points`) hands on the points behind that place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from neptune_assets.schema import MICROSTEPS, AttributeType
from neptune_assets.sources.offline.client_log import Entry
from neptune_assets.sources.offline.client_values import (
    ASSIGN,
    described,
    milliseconds,
    path_of,
    real,
    texts,
    tracked_entry,
)
from neptune_assets.sources.rows import is_time
from neptune_assets.sources.values import micro_step, scaled, text

ContainerKey = tuple[str, str]
"""Type and uuid of a container, as in the names of its folders."""

Order = tuple[float, int, int]
"""Place of an operation among all of its container: time, number of the execution, place in its log. It stays what it
is if operations before it turn out to be unreadable."""

SERIES: Final = {
    "LogFloats": AttributeType.FLOAT_SERIES,
    "LogStrings": AttributeType.STRING_SERIES,
    "LogImages": AttributeType.FILE_SERIES,
}
_UNITS: Final = (1_000, 1_000_000, 1_000_000_000)
_FROM: Final = 1_400_000_000
_UNTIL: Final = 4_102_444_800
"""Times from 2014 to 2100 in milli-, micro- or nanoseconds: as seconds they would be after the year 10,000."""
_CLEAR_SERIES: Final = {
    "ClearFloatLog": AttributeType.FLOAT_SERIES,
    "ClearStringLog": AttributeType.STRING_SERIES,
    "ClearImageLog": AttributeType.FILE_SERIES,
}
COPIED: Final = {
    "Float": AttributeType.FLOAT,
    "Integer": AttributeType.INT,
    "Boolean": AttributeType.BOOL,
    "String": AttributeType.STRING,
    "Datetime": AttributeType.DATETIME,
}
"""Classes of the client whose values can be copied from one object to another."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A single file: the place of the record that uploaded it."""

    execution: int
    log: str
    offset: int
    operation: dict[str, Any]
    at: float | None


@dataclass(frozen=True, slots=True)
class SetChange:
    """One change of a file set: patterns of files added, or members deleted."""

    execution: int
    globs: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()


@dataclass(slots=True)
class Tracked:
    """An artifact: what it tracks, as (execution, location, destination or None), or the bare hash it was assigned."""

    entries: list[tuple[int, str, str | None]] = field(default_factory=list)
    hash: str | None = None


@dataclass(frozen=True, slots=True)
class Copied:
    """A value still to be fetched from another container, as it was at ``at``."""

    container: ContainerKey
    path: str
    kind: AttributeType
    at: float | None


@dataclass(slots=True)
class SeriesPlan:
    """A series: the points of operations at the place ``first`` and behind it count."""

    first: Order
    described: int = 0
    """Images that have a name or a description."""


class Plan:
    """The attributes of a container after its operations, points aside.

    ``keys`` are the names the container goes by. ``fault(message, path)`` is told of operations that make no sense;
    they are left out. ``attributes`` maps a path to its values by type: plain values, a dict with the members of a
    string set as keys, or one of the classes above.
    """

    def __init__(self, keys: frozenset[ContainerKey], fault: Callable[[str, str | None], None]) -> None:
        self.keys = keys
        self.attributes: dict[str, dict[AttributeType, Any]] = {}
        self.configured: set[str] = set()
        """Float series with a configured range or unit, which the lake has no place for."""
        self._fault = fault

    def get(self, path: str, kind: AttributeType) -> Any:
        """The value of an attribute now, or None."""
        return self.attributes.get(path, {}).get(kind)

    def apply(self, order: Order, execution: int, entry: Entry) -> None:
        """Apply one operation; ``order`` is its place among all operations of the container."""
        operation = entry.operation
        kind = operation.get("type")
        path = path_of(operation)
        if path is None:
            self._fault(f"An operation of type {kind!r} at byte {entry.offset} of {entry.log} has no path.", None)
            return
        try:
            if not self._apply(str(kind), path, operation, order, execution, entry):
                self._fault(
                    f"{path!r} has an operation of type {kind!r}, which this version does not know; it is left out. "
                    "Please report it.",
                    path,
                )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            self._fault(
                f"Operation {entry.version} ({kind}) on {path!r} cannot be used: "
                f"{type(error).__name__} {error}. It is left out.",
                path,
            )

    def _apply(
        self, kind: str, path: str, operation: dict[str, Any], order: Order, execution: int, entry: Entry
    ) -> bool:
        if kind in SERIES:
            series: SeriesPlan = self._attribute(path, SERIES[kind], lambda: SeriesPlan(order))
            if kind == "LogImages":
                series.described += sum(map(described, operation["values"]))
        elif kind in ASSIGN:
            attribute_type, convert = ASSIGN[kind]
            self.attributes.setdefault(path, {})[attribute_type] = convert(operation["value"])
        elif kind in _CLEAR_SERIES:
            # The series stays, empty, and its points count from here.
            self.attributes.setdefault(path, {})[_CLEAR_SERIES[kind]] = SeriesPlan(order)
        elif kind == "ConfigFloatSeries":
            if any(operation.get(name) is not None for name in ("min", "max", "unit")):
                self.configured.add(path)
        elif kind == "AddStrings":
            self._attribute(path, AttributeType.STRING_SET, dict).update(dict.fromkeys(texts(operation["values"])))
        elif kind == "RemoveStrings":
            members = self._attribute(path, AttributeType.STRING_SET, dict)
            for item in texts(operation["values"]):
                members.pop(item, None)
        elif kind == "ClearStringSet":
            self.attributes.setdefault(path, {})[AttributeType.STRING_SET] = {}
        elif kind in {"UploadFile", "UploadFileContent"}:
            slim = {name: value for name, value in operation.items() if name != "file_content"}
            upload = Upload(execution, entry.log, entry.offset, slim, entry.at)
            self.attributes.setdefault(path, {})[AttributeType.FILE] = upload
        elif kind == "UploadFileSet":
            self._upload_set(path, operation, execution)
        elif kind == "DeleteFiles":
            deleted = SetChange(execution, deleted=tuple(texts(operation["file_paths"])))
            self._attribute(path, AttributeType.FILE_SET, list).append(deleted)
        elif kind == "TrackFilesToArtifact":
            tracked: Tracked = self._attribute(path, AttributeType.ARTIFACT, Tracked)
            tracked.entries.extend((execution, *tracked_entry(item)) for item in operation["entries"])
        elif kind == "AssignArtifact":
            self.attributes.setdefault(path, {})[AttributeType.ARTIFACT] = Tracked(hash=text(operation["hash"]))
        elif kind == "ClearArtifact":
            self.attributes.setdefault(path, {})[AttributeType.ARTIFACT] = Tracked()
        elif kind == "CopyAttribute":
            self._copy(path, operation, entry)
        elif kind == "DeleteAttribute":
            self.attributes.pop(path, None)
            self.configured.discard(path)
        else:
            return False
        return True

    def _attribute(self, path: str, kind: AttributeType, make: Callable[[], Any]) -> Any:
        values = self.attributes.setdefault(path, {})
        if kind not in values:
            values[kind] = make()
        return values[kind]

    def _upload_set(self, path: str, operation: dict[str, Any], execution: int) -> None:
        globs = tuple(texts(operation["file_globs"]))
        if str(operation.get("reset", "False")) != "False":
            self.attributes.setdefault(path, {})[AttributeType.FILE_SET] = [SetChange(execution, globs)]
        elif globs:  # an empty upload creates nothing; the client writes one for runs without source files
            self._attribute(path, AttributeType.FILE_SET, list).append(SetChange(execution, globs))

    def _copy(self, path: str, operation: dict[str, Any], entry: Entry) -> None:
        kind = COPIED.get(operation["source_attr_name"])
        source = path_of({"path": operation["source_path"]})
        if kind is None or source is None:
            raise ValueError(f"attributes of type {operation['source_attr_name']!r} cannot be copied")
        container = (text(operation["container_type"]), text(operation["container_id"]))
        value: Any = Copied(container, source, kind, entry.at)
        if container in self.keys:
            value = self.get(source, kind)
            if value is None:
                raise ValueError(f"there is no {kind} {source!r} to copy at that point")
        self.attributes.setdefault(path, {})[kind] = value


class Points:
    """The points of a plan's series, operation by operation.

    ``point(kind, path, step, milliseconds, value)`` takes them: steps in micro-steps, times in epoch milliseconds.
    ``image(entry_place, index, value)`` turns the value of an image into a reference and raises ValueError if it holds
    no image. ``fault`` is told of points that make no sense; they are left out. ``numbered`` counts points that were
    recorded without a step: they follow the point before them, from 0.
    """

    def __init__(
        self,
        plan: Plan,
        point: Callable[[AttributeType, str, int, int | None, Any], None],
        image: Callable[[int, Entry, str, int, Any], str],
        fault: Callable[[str, str | None], None],
    ) -> None:
        self._plan = plan
        self._point = point
        self._image = image
        self._fault = fault
        self._last: dict[tuple[str, AttributeType], int] = {}
        self.numbered = 0
        self.rescaled: Counter[str] = Counter()
        """Points by path whose times were in another unit than seconds."""
        self.timeless: Counter[str] = Counter()
        """Points by path whose times are none; they are kept without."""

    def apply(self, order: Order, execution: int, entry: Entry) -> None:
        """Hand on the points of one operation, if it has any that count."""
        operation = entry.operation
        kind = SERIES.get(operation.get("type", ""))
        path = path_of(operation) if kind is not None else None
        if kind is None or path is None:
            return
        series = self._plan.get(path, kind)
        values = operation.get("values")
        if not isinstance(series, SeriesPlan) or order < series.first:
            return
        if not isinstance(values, list):
            self._fault(f"Operation {entry.version} on {path!r} has no list of values. It is left out.", path)
            return
        key = (path, kind)
        last = self._last.get(key, -MICROSTEPS)
        for index, item in enumerate(values):
            try:
                given = item.get("step")
                step = last + MICROSTEPS if given is None else micro_step(given)
                self.numbered += given is None
                last = step
                ts = item.get("ts")
                time = self._time(path, entry.at if ts is None else ts)
                self._point(kind, path, step, time, self._value(kind, path, execution, entry, index, item["value"]))
            except (AttributeError, KeyError, TypeError, ValueError, OverflowError, ArithmeticError) as error:
                self._fault(
                    f"Point {index} of operation {entry.version} on {path!r} cannot be kept: {error}. It is left out.",
                    path,
                )
        self._last[key] = last

    def _time(self, path: str, seconds: Any) -> int | None:
        """Epoch milliseconds of a point's time; None if it has none that a calendar holds."""
        if seconds is None:
            return None
        try:
            if is_time(time := milliseconds(seconds)):
                return time
            for factor in _UNITS:
                if _FROM <= seconds / factor < _UNTIL:
                    self.rescaled[path] += 1
                    return scaled(seconds / factor, 1_000)
        except (TypeError, ValueError, ArithmeticError):
            pass
        self.timeless[path] += 1
        return None

    def _value(self, kind: AttributeType, path: str, execution: int, entry: Entry, index: int, value: Any) -> Any:
        if kind is AttributeType.FLOAT_SERIES:
            return real(value)
        if kind is AttributeType.STRING_SERIES:
            return text(value)
        return self._image(execution, entry, path, index, value)
