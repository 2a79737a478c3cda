"""Reader of the operation log that neptune-client 2.x keeps on disk: numbered files of JSON records.

A folder holds ``data-<version>.log`` files, each named after its first record, and two counters,
``last_put_version`` and ``last_ack_version``. Records are ``{"obj": operation, "version": n, "at": seconds}`` with
versions from 1 and no gaps. Processes get killed and disks fail: what cannot be read is told, and reading goes on
behind it. Memory is bounded by the largest record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from neptune_assets.sources.files import open_regular

LOG_NAME: Final = re.compile(r"data-(\d{1,19})\.log", re.ASCII)

_CHUNK: Final = 1024 * 1024
_MAX_RECORD: Final = 512 * 1024 * 1024
"""No record is this long (the client stops at 32 MiB of image); what looks like one is garbage."""

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

_DECODER: Final = json.JSONDecoder(strict=False)
_SPACE: Final = re.compile(r"[ \t\r\n]*")


class Flaws(Protocol):
    """Who is told what is wrong with a log."""

    def lost(self, message: str) -> None:
        """Data is missing."""

    def noted(self, message: str) -> None:
        """Something to know; nothing that can be read is missing."""


class Entry(NamedTuple):
    """One record: its version, its time in epoch seconds if it has one, the operation, and where it lies."""

    version: int
    at: float | None
    operation: dict[str, Any]
    log: str
    offset: int


@dataclass(frozen=True, slots=True)
class Garbage:
    """Bytes ``start`` to ``end`` of a log file that hold no record; ``torn`` if the end cut one off there."""

    start: int
    end: int
    torn: bool = False


@dataclass(frozen=True, slots=True)
class Log:
    """The log in one folder."""

    folder: Path
    files: tuple[str, ...] = field(default=())
    """Names of the log files, in order of their numbers."""

    @classmethod
    def of(cls, folder: Path, names: tuple[str, ...]) -> Log:
        """Make the log of a folder with these file names; other files are passed over."""
        numbered = sorted((int(match[1]), name) for name in names if (match := LOG_NAME.fullmatch(name)))
        return cls(folder, tuple(name for _, name in numbered))

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
        last = 0
        torn = False
        for number, name in enumerate(self.files):
            for found in json_objects(self.folder / name, skim=skim):
                if isinstance(found, Garbage):
                    torn = found.torn and number == len(self.files) - 1
                    self._tell_garbage(name, found, torn, told)
                    continue
                offset, record = found
                entry = _entry(record, name, offset)
                if entry is None:
                    told.lost(f"{self.folder / name} holds no operation at byte {offset}; it is left out.")
                    continue
                if entry.version <= last:
                    told.lost(f"{self.folder / name} repeats version {entry.version} at byte {offset}; it is left out.")
                    continue
                if entry.version > last + 1:
                    self._tell_gap(last + 1, entry.version - 1, told)
                last = entry.version
                yield entry
        put = self.counter("last_put_version")
        if put is not None and put > last + (1 if torn else 0):
            told.lost(
                f"Operations {last + 1} to {put} of {self.folder} were logged but never reached the disk "
                "(the process was killed, or is still writing)."
            )

    def operation(self, name: str, offset: int) -> dict[str, Any] | None:
        """Read one operation again, at the place its :class:`Entry` told; None if there is none."""
        if name not in self.files:
            return None
        for found in json_objects(self.folder / name, offset):
            if isinstance(found, Garbage) or found[0] != offset:
                return None
            entry = _entry(found[1], name, offset)
            return entry.operation if entry else None
        return None

    def _tell_garbage(self, name: str, garbage: Garbage, torn: bool, told: Flaws) -> None:
        if torn:
            told.noted(
                f"{self.folder / name} ends in a record that was cut off at byte {garbage.start}; it is left out."
            )
        else:
            told.lost(
                f"{self.folder / name} cannot be read from byte {garbage.start} to {garbage.end}; "
                "the operations there are missing. Restore the file from a copy if there is one."
            )

    def _tell_gap(self, first: int, last: int, told: Flaws) -> None:
        acknowledged = self.counter("last_ack_version") or 0
        if first == 1 and acknowledged >= last:
            told.lost(
                f"Operations 1 to {last} of {self.folder} were acknowledged by the server and deleted from the disk; "
                "they are not in this recording. An export of the run may hold them."
            )
        else:
            told.lost(f"Operations {first} to {last} are missing in {self.folder}.")


class _Silent:
    def lost(self, message: str) -> None:
        """Told in an earlier pass."""

    def noted(self, message: str) -> None:
        """Told in an earlier pass."""


def _entry(record: Any, name: str, offset: int) -> Entry | None:
    """The record as an entry, or None if it is not one."""
    if not isinstance(record, dict):
        return None
    operation, version, at = record.get("obj"), record.get("version"), record.get("at")
    if not isinstance(operation, dict) or type(version) is not int or version < 1:
        return None
    if isinstance(at, bool) or not isinstance(at, int | float):
        at = None
    return Entry(version, at, operation, name, offset)


def json_objects(path: Path, start: int = 0, *, skim: bool = False) -> Iterator[tuple[int, Any] | Garbage]:
    """Yield the JSON objects of a file with their byte offsets, and the stretches between that are none.

    Objects may follow each other with or without line breaks and may hold raw control characters. The text is read as
    Latin-1, so that characters are bytes, and decoded as UTF-8 object by object. ``skim`` as in :meth:`Log.entries`.
    """
    with open_regular(path) as file:
        file.seek(start)
        text, base, ended = "", start, False
        position = 0
        bad: int | None = None
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
            if end:
                if bad is not None:
                    yield Garbage(bad, base + position)
                    bad = None
                yield base + position, value
                position = end
                continue
            if incomplete and not ended and len(text) - position < _MAX_RECORD:
                more = _read(file, max(_CHUNK, len(text) - position))
                ended = not more
                base += position
                text, position = text[position:] + more, 0
                continue
            following = text.find(_BEGINNING, position + 1)
            if following < 0 and incomplete and ended and bad is None:
                yield Garbage(base + position, base + len(text), torn=True)
                return
            bad = base + position if bad is None else bad
            if following < 0:  # the beginning of a record may itself be cut off by the end of the text
                following = len(text) if ended else max(position + 1, len(text) - len(_BEGINNING))
            position = following
        if bad is not None:
            yield Garbage(bad, base + len(text))


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
    """Decode the object at ``position``: (value, end, False), or (None, 0, True if more text may complete it)."""
    if text[position] != "{":
        # Disks leave blocks of NUL behind a power cut; more text never turns them into an object.
        return None, 0, not text[position:].strip("\0 \r\n\t")
    try:
        value, end = _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        cut_off = error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip()) - _NEAR_END
        return None, 0, cut_off
    except (ValueError, RecursionError):
        return None, 0, False
    if not text.isascii():
        written = text[position:end]
        if not written.isascii():
            try:
                value = json.loads(written.encode("latin-1").decode("utf-8"), strict=False)
            except (UnicodeDecodeError, ValueError, RecursionError):
                return None, 0, False
    return value, end, False
