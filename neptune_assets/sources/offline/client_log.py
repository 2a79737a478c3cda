"""The operation log of neptune-client 2.x: numbered files of JSON records, and what their operations do.

A folder holds ``data-<version>.log`` files, each named after its first record, and two counters,
``last_put_version`` and ``last_ack_version``. Records are ``{"obj": operation, "version": n, "at": seconds}`` with
versions from 1 and no gaps. Processes get killed and disks fail: what cannot be read is reported, and reading goes on
behind it. Memory is bounded by the largest record.

A delete or clear follows points that it takes back, and points are too many to keep. So a first pass
(:class:`Plan`) keeps attributes only: their values, and for every series the place in the order of operations from
which its points count. The second pass (:class:`Points`) hands on the points behind that place.
"""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from neptune_assets.schema import MICROSTEPS, AttributeType
from neptune_assets.sources.files import open_regular
from neptune_assets.sources.rows import is_time
from neptune_assets.sources.values import micro_step, scaled, text, truth


def path_of(operation: dict[str, Any]) -> str | None:
    """The attribute's path, its segments joined with slashes; None if the operation has none."""
    segments = operation.get("path")
    if not isinstance(segments, list):
        return None
    try:
        return _joined(tuple(segments))
    except TypeError:
        return None


@lru_cache(maxsize=10_000)
def _joined(segments: tuple[str, ...]) -> str | None:
    return "/".join(filter(None, segments)) or None


def milliseconds(seconds: float) -> int:
    """Epoch seconds as whole milliseconds, rounded half to even in decimal; raises ValueError if not finite."""
    return scaled(seconds, 1_000)


def real(value: Any) -> float:
    """A number as a float; raises TypeError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.80} is not a number")
    return float(value)


def whole(value: Any) -> int:
    """A whole number; raises TypeError for anything else, true and false included."""
    if type(value) is not int:
        raise TypeError(f"{value!r:.80} is not a whole number")
    return value


def moment(value: Any) -> int:
    """Epoch milliseconds as a whole number; TypeError or ValueError if they are none."""
    return scaled(value, 1)


def texts(values: Iterable[Any]) -> list[str]:
    """A list of strings; raises TypeError for anything else."""
    if isinstance(values, str):
        raise TypeError(f"{values!r:.80} is not a list")
    return [text(value) for value in values]


def tracked_entry(item: Any) -> tuple[str, str | None]:
    """Location and destination of a tracked file; TypeError or ValueError if it is not such a pair."""
    location, destination = item
    return text(location), None if destination is None else text(destination)


def described(item: Any) -> bool:
    """True if a logged image has a name or a description."""
    value = item.get("value") if isinstance(item, dict) else None
    return isinstance(value, dict) and bool(value.get("name") or value.get("description"))


ASSIGN: Final[dict[str, tuple[AttributeType, Callable[[Any], Any]]]] = {
    "AssignFloat": (AttributeType.FLOAT, real),
    "AssignInt": (AttributeType.INT, whole),
    "AssignBool": (AttributeType.BOOL, truth),
    "AssignString": (AttributeType.STRING, text),
    "AssignDatetime": (AttributeType.DATETIME, moment),
}
"""Operations that assign one value: the type of attribute, and what makes the value or raises."""


LOG_NAME: Final = re.compile(r"data-(\d{1,19})\.log", re.ASCII)

_CHUNK: Final = 1024 * 1024
_FILE: Final = 2**48
"""More bytes than a log file has: places of records in the files of one log are counted in these."""
_FIRST: Final = -62_135_596_800
_LAST: Final = 253_402_300_800
"""Epoch seconds of the years 1 and 10,000."""
_JUMP: Final = 1_000_000
"""Versions that one gap may hold for what came before and behind it to be kept in one array."""
MAX_RECORD: Final = 64 * 1024 * 1024
"""No record is longer (the client stops at 32 MiB of image, 44 MB as base64): the default of the setting."""

_BEGINNING: Final = '{"obj"'
"""How the client begins a record; quotes inside strings are escaped, so this never lies inside one."""

_NEAR_END: Final = 12
"""An error this near to the end of the text may be a literal (``-Infinity``) or an escape that is cut off."""

_POINTS: Final = re.compile(
    r'\{"obj": \{"type": "(Log(?:Floats|Strings))", "path": (\["[ -!#-\[\]-~]*"(?:, "[ -!#-\[\]-~]*")*\]), '
    r'"values": \[[^\n]*\]\}, "version": (\d{1,18}), "at": (\d+\.\d+)\}(?=\n)',
    re.ASCII,
)
"""A line as the client writes it for points, with plain ASCII segments in its path."""

_TOO_DEEP: Final = -1
_DECODER: Final = json.JSONDecoder(strict=False)
_SPACE: Final = re.compile(r"[ \t\r\n]*")


class Flaws(Protocol):
    """Who is told what is wrong with a log."""

    def lost(self, message: str) -> None:
        """Data is missing."""

    def noted(self, message: str) -> None:
        """Something to know; nothing that can be read is missing."""


class Entry(NamedTuple):
    """One record: its version, its time in epoch seconds if it has one, the operation, and where it is."""

    version: int
    at: float | None
    operation: dict[str, Any]
    log: str
    offset: int
    place: int
    """Grows with the order of records in the log. Versions do not: processes that were forked count on their own."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """Bytes ``start`` to ``end`` of a log file that hold no record; ``torn`` if the end cut one off there.

    ``long`` is True if they begin like a record that is longer than allowed.
    """

    start: int
    end: int
    torn: bool = False
    long: bool = False


@dataclass(frozen=True, slots=True)
class Log:
    """The log in one folder."""

    folder: Path
    files: tuple[str, ...] = field(default=())
    """Names of the log files, in order of their numbers."""
    max_record: int = MAX_RECORD
    """Bytes of the largest record that is read; a multiple of it is what reading takes of memory."""

    @classmethod
    def of(cls, folder: Path, names: tuple[str, ...], max_record: int = MAX_RECORD) -> Log:
        """Make the log of a folder with these file names; other files are passed over."""
        numbered = sorted((int(match[1]), name) for name in names if (match := LOG_NAME.fullmatch(name)))
        return cls(folder, tuple(name for _, name in numbered), max_record)

    def counter(self, name: str) -> int | None:
        """The number in a counter file; an empty file is 0, None if there is no such file or no number in it."""
        try:
            with open_regular(self.folder / name) as file:
                text = file.read(32).decode("ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        if not text:
            return 0
        return int(text) if text.isdecimal() else None

    def entries(self, flaws: Flaws | None = None, *, skim: bool = False) -> Iterator[Entry]:
        """Yield the records in order of their versions; tell ``flaws`` what is missing.

        With ``skim``, operations that log points may come without their values, which is several times as fast.
        Raises OSError if a file cannot be read.
        """
        told = flaws or _Silent()
        seen = _Versions()
        repeated = 0
        torn = False
        for number, name in enumerate(self.files):
            for found in json_objects(self.folder / name, skim=skim, max_record=self.max_record):
                if isinstance(found, Garbage):
                    torn = found.torn and number == len(self.files) - 1
                    self._tell_garbage(name, found, torn, told)
                    continue
                offset, record, mark = found
                entry = _entry(record, number, name, offset)
                if entry is None:
                    told.lost(f"{self.folder / name} holds no operation at byte {offset}; it is left out.")
                    continue
                if not seen.expects(entry.version):
                    if not seen.marked:
                        seen.mark_all(self._marks(entry.place))
                    if not seen.differs(entry.version, mark):
                        repeated += 1
                        continue
                seen.add(entry.version, mark)
                yield entry
        for first, last in seen.missing:
            self._tell_gap(first, last, told)
        if repeated:
            told.noted(
                f"{self.folder} holds {repeated} records a second time, byte for byte, as processes that were forked "
                "leave them; they are passed over."
            )
        put = self.counter("last_put_version")
        if put is not None and put > seen.last + (1 if torn else 0):
            if (self.counter("last_ack_version") or 0) >= put:
                self._tell_gap(seen.last + 1, put, told)
            else:
                told.lost(
                    f"Operations {seen.last + 1} to {put} of {self.folder} were logged but never reached the disk "
                    "(the process was killed, or is still writing)."
                )

    def _marks(self, until: int) -> Iterator[tuple[int, int]]:
        """Version and mark of every record before a place."""
        for number, name in enumerate(self.files):
            for found in json_objects(self.folder / name, skim=True, max_record=self.max_record):
                if isinstance(found, Garbage):
                    continue
                entry = _entry(found[1], number, name, found[0])
                if entry is not None:
                    if entry.place >= until:
                        return
                    yield entry.version, found[2]

    def operation(self, name: str, offset: int) -> dict[str, Any] | None:
        """Read one operation again, at the place its :class:`Entry` told; None if there is none."""
        if name not in self.files:
            return None
        for found in json_objects(self.folder / name, offset, max_record=self.max_record):
            if isinstance(found, Garbage) or found[0] != offset:
                return None
            entry = _entry(found[1], 0, name, offset)
            return entry.operation if entry else None
        return None

    def _tell_garbage(self, name: str, garbage: Garbage, torn: bool, told: Flaws) -> None:
        if torn:
            told.noted(
                f"{self.folder / name} ends in a record that was cut off at byte {garbage.start}; it is left out."
            )
        elif garbage.long:
            told.lost(
                f"{self.folder / name} has a record of more than {self.max_record:,} bytes at byte {garbage.start}; it "
                "is left out. Raise source.offline.record_mb to read it."
            )
        else:
            told.lost(
                f"{self.folder / name} cannot be read from byte {garbage.start} to {garbage.end}; "
                "the operations there are missing. Restore the file from a copy if there is one."
            )

    def _tell_gap(self, first: int, last: int, told: Flaws) -> None:
        acknowledged = self.counter("last_ack_version") or 0
        if acknowledged >= last:
            told.lost(
                f"Operations {first} to {last} of {self.folder} were acknowledged by the server and deleted here; "
                "they are not in this recording. An export of the run may hold them."
            )
        else:
            told.lost(f"Operations {first} to {last} are missing in {self.folder}.")


class _Versions:
    """The versions a log has had so far: which are missing, and what they held once one comes again.

    Processes that were forked write into one log. What their parent had not yet written out is there several times,
    and what they log themselves has versions that the parent uses too.
    """

    def __init__(self) -> None:
        self.last = 0
        self.missing: list[tuple[int, int]] = []
        self.marked = False
        self._marks = array("q")
        self._others: dict[int, set[int]] = {}

    def expects(self, version: int) -> bool:
        """True if the version was not there yet."""
        return version > self.last or self._gap(version) is not None

    def mark_all(self, marks: Iterable[tuple[int, int]]) -> None:
        """Keep what all versions so far held: 8 bytes each, and only for logs that repeat one."""
        self.marked = True
        for version, mark in marks:
            self._keep(version, mark)

    def differs(self, version: int, mark: int) -> bool:
        """True if no record with this version had the same bytes."""
        first = self._marks[version] if version < len(self._marks) else None
        return mark != first and mark not in self._others.get(version, ())

    def add(self, version: int, mark: int) -> None:
        """Take in a record."""
        if self.marked:
            self._keep(version, mark)
        if version > self.last:
            if version > self.last + 1:
                self.missing.append((self.last + 1, version - 1))
            self.last = version
        elif (number := self._gap(version)) is not None:
            first, last = self.missing[number]
            parts = ((first, version - 1), (version + 1, last))
            self.missing[number : number + 1] = [part for part in parts if part[0] <= part[1]]

    def _gap(self, version: int) -> int | None:
        """Which of the missing stretches holds a version."""
        number = bisect_right(self.missing, version, key=lambda part: part[0]) - 1
        return number if number >= 0 and version <= self.missing[number][1] else None

    def _keep(self, version: int, mark: int) -> None:
        known = len(self._marks)
        if known <= version < known + _JUMP:
            self._marks.extend(array("q", (0,)) * (version - known))
            self._marks.append(mark)
        else:
            self._others.setdefault(version, set()).add(mark)


class _Silent:
    def lost(self, message: str) -> None:
        """Told in an earlier pass."""

    def noted(self, message: str) -> None:
        """Told in an earlier pass."""


def _entry(record: Any, number: int, name: str, offset: int) -> Entry | None:
    """The record as an entry, or None if it is not one."""
    if not isinstance(record, dict):
        return None
    operation, version, at = record.get("obj"), record.get("version"), record.get("at")
    if not isinstance(operation, dict) or type(version) is not int or version < 1:
        return None
    if not isinstance(operation.get("type"), str):
        return None
    if isinstance(at, bool) or not isinstance(at, int | float) or not _FIRST <= at < _LAST:
        at = None
    return Entry(version, at, operation, name, offset, number * _FILE + offset)


def json_objects(
    path: Path, start: int = 0, *, skim: bool = False, max_record: int = MAX_RECORD
) -> Iterator[tuple[int, Any, int] | Garbage]:
    """Yield the JSON objects of a file with their byte offsets and a hash of their bytes, and the stretches between.

    Objects may follow each other with or without line breaks and may hold raw control characters. The text is read as
    Latin-1, so that characters are bytes, and decoded as UTF-8 object by object. ``skim`` as in :meth:`Log.entries`.
    """
    with open_regular(path) as file:
        file.seek(start)
        text, base, ended = "", start, False
        position = 0
        bad: int | None = None
        long = False
        while True:
            position = _after_space(text, position)
            if position == len(text):
                if ended:
                    break
                base += position
                text, position = _read(file, _CHUNK), 0
                ended = not text
                continue
            value, end, incomplete = (_skim(text, position) if skim else None) or _decode(text, position)
            if end > 0:
                if bad is not None:
                    yield Garbage(bad, base + position, long=long)
                    bad, long = None, False
                yield base + position, value, hash(text[position:end])
                position = end
                continue
            long = long or (incomplete and not ended and len(text) - position >= max_record)
            if incomplete and not ended and len(text) - position < max_record:
                more = _read(file, min(max(_CHUNK, len(text) - position), max_record))
                ended = not more
                base += position
                text, position = text[position:] + more, 0
                continue
            if end == _TOO_DEEP:  # looking for a record inside it would take its depth for each of its levels
                following = text.find("\n", position)
                bad = base + position if bad is None else bad
                position = len(text) if following < 0 else following
                continue
            following = text.find(_BEGINNING, position + 1)
            if following < 0 and incomplete and ended and bad is None:
                yield Garbage(base + position, base + len(text), torn=text[position] == "{")
                return
            bad = base + position if bad is None else bad
            if following < 0:  # the beginning of a record may itself be cut off by the end of the text
                following = len(text) if ended else max(position + 1, len(text) - len(_BEGINNING))
            position = following
        if bad is not None:
            yield Garbage(bad, base + len(text), long=long)


def _skim(text: str, position: int) -> tuple[Any, int, bool] | None:
    """A record of points without the points, in the shape of :func:`_decode`; None for any other record."""
    match = _POINTS.match(text, position)
    if match is None or text.find(_BEGINNING, position + 1, match.end()) >= 0:
        return None
    kind, path, version, at = match.groups()
    record = {"obj": {"type": kind, "path": _segments(path)}, "version": int(version), "at": float(at)}
    return record, match.end(), False


@lru_cache(maxsize=10_000)
def _segments(path: str) -> Any:
    return json.loads(path)


def _read(file: Any, size: int) -> str:
    return str(file.read(size), "latin-1")


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _decode(text: str, position: int) -> tuple[Any, int, bool]:
    """Decode the object at ``position``: (value, end, False), or (None, 0, True if more text may complete it).

    The end is :data:`_TOO_DEEP` for what is nested too deeply.
    """
    if text[position] != "{":
        # Disks leave blocks of NUL behind a power cut; more text never turns them into an object.
        return None, 0, not text[position:].strip("\0 \r\n\t")
    try:
        value, end = _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        cut_off = error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip()) - _NEAR_END
        return None, 0, cut_off
    except RecursionError:
        return None, _TOO_DEEP, False
    except ValueError:
        return None, 0, False
    if not text.isascii():
        written = text[position:end]
        if not written.isascii():
            try:
                value = json.loads(written.encode("latin-1").decode("utf-8"), strict=False)
            except (UnicodeDecodeError, ValueError, RecursionError):
                return None, 0, False
    return value, end, False


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
