"""Opens SQLite files that neptune-scale wrote, without changing one byte beside or inside them.

SQLite itself writes when it opens a database in WAL mode: it makes ``-wal`` and ``-shm`` files and folds the first into
the database on closing. A killed process leaves all its data in ``-wal``. So a database without ``-wal`` is opened as
immutable, and one with ``-wal`` is copied, both files, to a private directory and opened there. ``-shm`` is never
copied: SQLite rebuilds it from ``-wal``.

A copy taken from under a live process is consistent if the database did not change while it was copied (only folding
the ``-wal`` in changes it) and the ``-wal`` did not start anew meanwhile (its header tells); what is appended to
``-wal`` in between is simply not read yet.

A ``-wal`` that is damaged is folded into the copy here, since SQLite would stop at the damage or ignore the whole file:
every whole frame is taken if the database is consistent with them, otherwise those before the first damaged one.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from neptune_assets.errors import SourceError
from neptune_assets.sources.files import open_regular
from neptune_assets.sources.offline.scale_wal import in_wal_mode, lost_frames, read_wal
from neptune_assets.tempdirs import TempDirectory

_TRIES: Final = 8
_WAL_HEADER: Final = 32
_TICK_NS: Final = 30_000_000
"""File times advance in ticks; a database written to this recently is not copied before the tick is over."""
_LONGEST_VALUE: Final = 64 * 1024 * 1024
"""Bytes of the longest value read. The client limits an operation to about 2 MiB."""

BROKEN: Final = (sqlite3.Error, UnicodeDecodeError)
"""What a damaged database raises: Python cannot decode messages of SQLite that hold bytes of the file."""


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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a database holds, and what its files show to be missing: ``lost`` for sure, ``doubtful`` perhaps."""

    connection: sqlite3.Connection
    lost: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()


@contextmanager
def open_snapshot(path: Path) -> Iterator[Snapshot]:
    """Open everything a database holds: in place if that is all in one file, otherwise from a private copy.

    Raises SourceError if a live process keeps changing it, OSError and sqlite3.Error as they come.
    """
    if file_facts(path).lone:
        with open_in_place(path) as connection:
            yield Snapshot(connection, *_without_wal(path))
        return
    with TempDirectory("recording") as scratch:
        copy = scratch / "copy.sqlite3"
        _copy(path, copy)
        lost = _fold_damaged(path, copy)
        connection = _connect(f"{copy.as_uri()}?mode=rw")
        try:
            yield Snapshot(connection, lost)
        finally:
            connection.close()


def whole_pages(connection: sqlite3.Connection) -> str | None:
    """What SQLite finds wrong with the pages of a database; None if nothing is."""
    found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")]
    return None if found == ["ok"] else "; ".join(" ".join(line.split()) for line in found)


@lru_cache(maxsize=4_096)
def same_bytes(path: Path, other: Path, facts: FileFacts, other_facts: FileFacts) -> bool:
    """True if two databases and their ``-wal`` hold the same bytes; compared once for as long as both stay the same.

    Equal sizes prove nothing: a copy may be damaged.
    """
    return all(_hash(_beside(path, suffix)) == _hash(_beside(other, suffix)) for suffix in ("", "-wal", "-journal"))


def _hash(path: Path) -> bytes:
    try:
        digest = hashlib.blake2b(digest_size=32)
        with open_regular(path) as file:
            while block := file.read(1024 * 1024):
                digest.update(block)
        return digest.digest()
    except FileNotFoundError:
        return b""
    except OSError:
        return str(path).encode(errors="surrogateescape")  # nothing is a copy of what cannot be read


def may_lack_wal(path: Path) -> bool:
    """True if the latest data may have been in a ``-wal`` that is not there, or cannot be read."""
    facts = file_facts(path)
    return facts.wal[0] > 0 or _beside(path, "-shm").exists() or bool(_without_wal(path)[1])


def _without_wal(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a database without data in a ``-wal`` lacks for sure, and what it may lack."""
    lost = lost_frames(_beside(path, "-shm"), None)
    wal = _beside(path, "-wal")
    if lost:
        return (f"{wal} is missing or empty, and {lost:,} pages that {path.name}-shm counts were in it",), ()
    if not wal.exists() and in_wal_mode(path):
        return (), (
            f"{wal} is not there. That is right if the client closed {path.name}; after a kill, the latest operations "
            "are in it: look for it where this folder was copied from.",
        )
    return (), ()


def _fold_damaged(path: Path, copy: Path) -> tuple[str, ...]:
    """Save what is whole of a copy's damaged ``-wal``; returns what could not be read."""
    copied = _beside(copy, "-wal")
    wal = read_wal(copied, copy) if copied.exists() else None
    if wal is None:
        return ()
    live = writer(path) is not None
    found = [text.replace(str(copied), str(_beside(path, "-wal"))) for text in wal.findings(live=live)]
    cut = 0 if live else lost_frames(_beside(path, "-shm"), wal)
    if cut:
        found.append(f"{_beside(path, '-wal')} lacks {cut:,} frames that {path.name}-shm counts: it was cut off")
    if wal.damaged:
        folded = copy.with_name("folded.sqlite3")
        shutil.copyfile(copy, folded)
        wal.fold_into(folded, wal.last_commit)
        if not _consistent(folded):
            shutil.copyfile(copy, folded)
            wal.fold_into(folded, wal.last_sound_commit)
        copied.unlink()
        folded.replace(copy)
    return tuple(found)


def _consistent(database: Path) -> bool:
    try:
        with open_in_place(database) as connection:
            return whole_pages(connection) is None
    except BROKEN:
        return False


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
    # Text that is not UTF-8 is damage; it is read as it is and never raises.
    connection.text_factory = lambda data: data.decode("utf-8", "backslashreplace")
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
        consistent &= head == _head(_beside(path, "-wal")) == _head(_beside(copy, "-wal"))
        if consistent and not (writer(path) is not None and _is_torn(copy)):
            return
        time.sleep(0.05 * (attempt + 1))
    pid = writer(path)
    by = f"process {pid}" if pid else "a live process"
    raise SourceError(
        f"{path} keeps changing under {by}: no consistent copy in {_TRIES} tries.",
        hint="Try again later, or end that process first.",
    )


def _is_torn(copy: Path) -> bool:
    """True if frames of a copy do not verify: under a live process that is one it was writing again meanwhile."""
    copied = _beside(copy, "-wal")
    wal = read_wal(copied, copy) if copied.exists() else None
    return wal is not None and wal.damaged


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
        with open_regular(path) as file:
            return file.read(_WAL_HEADER)
    except FileNotFoundError:
        return b""
