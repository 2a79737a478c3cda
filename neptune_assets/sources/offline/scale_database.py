"""Opens SQLite files that neptune-scale wrote, without changing one byte beside or inside them.

SQLite itself writes when it opens a database in WAL mode: it makes ``-wal`` and ``-shm`` files and folds the first into
the database on closing. A killed process leaves all its data in ``-wal``. So a database without ``-wal`` is opened as
immutable, and one with ``-wal`` is copied, both files, to a private directory and opened there. ``-shm`` is never
copied: SQLite rebuilds it from ``-wal``.

A copy taken from under a live process is consistent if the database did not change while it was copied (only folding
the ``-wal`` in changes it) and the ``-wal`` did not start anew meanwhile (its header tells); what is appended to
``-wal`` in between is simply not read yet.
"""

from __future__ import annotations

import shutil
import sqlite3
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from neptune_assets.errors import SourceError
from neptune_assets.scratch import ScratchDirectory

_TRIES: Final = 8
_WAL_HEADER: Final = 32
_TICK_NS: Final = 30_000_000
"""File times advance in ticks; a database written to this recently is not copied before the tick is over."""
_LONGEST_VALUE: Final = 64 * 1024 * 1024
"""Bytes of the longest value read. The client limits an operation to about 2 MiB."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Sizes and times (ns) of the database and of its ``-wal`` and ``-journal``; zeros where there is none."""

    main: tuple[int, int]
    wal: tuple[int, int]
    journal: tuple[int, int]

    @property
    def lone(self) -> bool:
        """True if all data is in the database itself."""
        return self.wal[0] == 0 and self.journal[0] == 0

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return self.main[0] + self.wal[0] + self.journal[0]

    @property
    def modified_ns(self) -> int:
        """The latest time of any of the files."""
        return max(self.main[1], self.wal[1], self.journal[1])


def file_facts(path: Path) -> FileFacts:
    """Look at the files of a database. Raises OSError if the database itself is not there."""
    status = path.stat()
    return FileFacts(
        (status.st_size, status.st_mtime_ns), _facts(_beside(path, "-wal")), _facts(_beside(path, "-journal"))
    )


@contextmanager
def open_in_place(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the database alone, whatever ``-wal`` holds, without locks and without writing anything.

    Right for all data only while :attr:`FileFacts.lone` is true before and after. Raises sqlite3.Error.
    """
    connection = _connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1")
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def open_snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """Open everything a database holds: in place if that is all in one file, otherwise from a private copy.

    Raises SourceError if a live process keeps changing it, OSError and sqlite3.Error as they come.
    """
    if file_facts(path).lone:
        with open_in_place(path) as connection:
            yield connection
        return
    with ScratchDirectory("recording") as scratch:
        copy = scratch / "copy.sqlite3"
        _copy(path, copy)
        connection = _connect(f"{copy.as_uri()}?mode=rw")
        try:
            yield connection
        finally:
            connection.close()


def writer(path: Path) -> int | None:
    """Process id of a live process that has the database open, or None if there is none or it cannot be told.

    Asks the kernel about locks without taking any. Only Linux is asked; elsewhere the answer is None.
    """
    if sys.platform != "linux":
        return None
    import fcntl

    # SQLite's shared locks on the database: 510 bytes that begin 2 bytes after 1 GiB.
    question = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0x40000000, 512, 0)
    try:
        with path.open("rb") as file:
            answer = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, question))
    except OSError:
        # Some file systems know no locks: then nothing can be told.
        return None
    return None if answer[0] == fcntl.F_UNLCK else int(answer[4])


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=1.0)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


def _copy(path: Path, copy: Path) -> None:
    for attempt in range(_TRIES):
        before = file_facts(path)
        recent = time.time_ns() - before.main[1]
        if 0 <= recent < _TICK_NS:
            time.sleep(_TICK_NS / 1e9)
            before = file_facts(path)
        head = _head(_beside(path, "-wal"))
        shutil.copyfile(path, copy)
        after = file_facts(path)
        consistent = before.main == after.main and before.journal == after.journal
        for suffix in ("-wal", "-journal"):
            _beside(copy, suffix).unlink(missing_ok=True)
            try:
                shutil.copyfile(_beside(path, suffix), _beside(copy, suffix))
            except FileNotFoundError:
                # There is none, or a process that closed has just folded it in: then the header differs.
                continue
        if consistent and head == _head(_beside(path, "-wal")) == _head(_beside(copy, "-wal")):
            return
        time.sleep(0.05 * (attempt + 1))
    pid = writer(path)
    by = f"process {pid}" if pid else "a live process"
    raise SourceError(
        f"{path} keeps changing under {by}: no consistent copy in {_TRIES} tries.",
        hint="Try again later, or end that process first.",
    )


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _facts(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (status.st_size, status.st_mtime_ns) if status.st_size else (0, 0)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_WAL_HEADER)
    except FileNotFoundError:
        return b""
