"""Reader of the operation log that neptune-client 2.x keeps on disk: numbered files of JSON records.

A folder holds ``data-<version>.log`` files, each named after its first record, and two counters,
``last_put_version`` and ``last_ack_version``. Records are ``{"obj": operation, "version": n, "at": seconds}`` with
versions from 1 and no gaps. Processes get killed and disks fail: what cannot be read is told, and reading goes on
behind it. Memory is bounded by the largest record.
"""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from neptune_assets.sources.files import open_regular

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
