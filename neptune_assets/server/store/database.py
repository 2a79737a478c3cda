"""Open a project's SQLite database: for its one writer, or for reading at any time by anybody."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Final

from neptune_assets.errors import LakeError

FORMAT: Final = 1
"""Version of the tables; a database of a later one is refused."""

DATABASE: Final = "project.sqlite3"
_BUSY_SECONDS: Final = 30.0
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


class StoreError(LakeError):
    """The store cannot be read or written."""


class DamagedError(StoreError):
    """Something in the store is not what was written: its checksum is of other content."""


def is_full(error: BaseException) -> bool:
    """True if an error says that the disk has no room, or cannot be written: what was asked can be tried again."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return isinstance(error, sqlite3.OperationalError) and _code(error) in {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
    }


def is_busy(error: BaseException) -> bool:
    """True if an error says that somebody else holds the database."""
    return isinstance(error, sqlite3.OperationalError) and _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _code(error: sqlite3.OperationalError) -> int:
    # The lowest byte is the code, what is above it says more.
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def open_writer(path: Path, initialise: Callable[[sqlite3.Connection], None] | None = None) -> sqlite3.Connection:
    """Open the database for writing, durable at every commit. ``initialise`` fills the tables of a new one.

    Tables and what ``initialise`` writes are one transaction: a database that has a project is whole.
    """
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA cache_size = -16000")
    if initialise is not None and not _has_tables(connection):
        connection.execute("BEGIN IMMEDIATE")
        for statement in _statements(files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")):
            connection.execute(statement)
        initialise(connection)
        connection.execute("COMMIT")
    return _checked(connection, path)


def open_reader(path: Path) -> sqlite3.Connection:
    """Open the database read-only. Each transaction sees one moment, whatever the writer does meanwhile.

    Raises sqlite3.OperationalError if there is no such database.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.row_factory = sqlite3.Row
    return _checked(connection, path)


def _has_tables(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'project'").fetchone() is not None


def _checked(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    found = connection.execute("SELECT format FROM project").fetchone()[0] if _has_tables(connection) else None
    if found != FORMAT:
        connection.close()
        raise StoreError(
            f"{path} holds no project that this version can read (its format is {found}, not {FORMAT}).",
            hint="Use the version of neptune_assets that wrote it, or a newer one.",
        )
    return connection


def _statements(script: str) -> list[str]:
    """Split the schema: sqlite3's own executescript would end the transaction."""
    statements: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements
