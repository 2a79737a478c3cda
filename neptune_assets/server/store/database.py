"""Open a project's SQLite database: for its one writer, or for reading at any time by anybody."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Final

from neptune_assets.errors import LakeError
from neptune_assets.server.store.checksums import (
    ARTIFACT,
    ATTRIBUTE,
    FILE,
    MEMBER,
    PROJECT,
    RUN,
    add_functions,
    seal,
)

FORMAT: Final = 2
"""Version of the tables; a database of a later one is refused, one of an earlier one is read and brought up to date."""
RESTORE: Final = "Restore the store from a backup; what was materialized before the damage is whole in the lake."

DATABASE: Final = "project.sqlite3"
_ADDED: Final = {
    "project": ("runs", "checksum"),
    "runs": ("attributes", "checksum"),
    "attributes": ("points", "checksum"),
    "points": ("checksum",),
    "objects": ("checksum",),
    "files": ("checksum",),
    "file_set_files": ("checksum",),
    "artifacts": ("checksum",),
}
"""Columns that version 2 has and version 1 had not."""
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


def is_damaged(error: BaseException) -> bool:
    """True if an error says that SQLite cannot make sense of the database."""
    return isinstance(error, sqlite3.DatabaseError) and _code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _code(error: sqlite3.Error) -> int:
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
    add_functions(connection)
    if initialise is not None and not _has_tables(connection):
        connection.execute("BEGIN IMMEDIATE")
        for statement in _statements(files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")):
            connection.execute(statement)
        initialise(connection)
        connection.execute("COMMIT")
    if _format(connection) == 1:
        _upgrade(connection, path)
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
    add_functions(connection)
    if _format(connection) == 1:
        # No server has brought it up to date yet, and it is not ours to change: nothing in it has a checksum.
        connection.execute("PRAGMA temp_store = MEMORY")
        for table, columns in _ADDED.items():
            added = ", ".join(f"NULL AS {column}" for column in columns)
            connection.execute(f"CREATE TEMP VIEW {table} AS SELECT *, {added} FROM main.{table}")  # noqa: S608
        return connection
    return _checked(connection, path)


def _upgrade(connection: sqlite3.Connection, path: Path) -> None:
    """Bring a database of version 1 up to date: rows get checksums and counts, but not points and objects."""
    (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if state != "ok":
        raise DamagedError(f"{path} is damaged: {state}.", hint=RESTORE)
    connection.execute("BEGIN IMMEDIATE")
    for table, columns in _ADDED.items():
        for column in columns:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} INTEGER")
    connection.execute("UPDATE project SET runs = (SELECT count(*) FROM runs)")
    connection.execute("UPDATE runs SET attributes = (SELECT count(*) FROM attributes WHERE run = runs.id)")
    connection.execute(
        "UPDATE attributes SET points = CASE WHEN type = 'float_series'"
        " THEN (SELECT count(*) FROM points WHERE attribute = attributes.id)"
        " ELSE (SELECT count(*) FROM objects WHERE attribute = attributes.id) END"
    )
    for table, columns in (
        ("runs", RUN),
        ("attributes", ATTRIBUTE),
        ("files", FILE),
        ("file_set_files", MEMBER),
        ("artifacts", ARTIFACT),
        ("project", PROJECT),
    ):
        connection.execute(seal(table, columns))
    connection.execute("UPDATE project SET format = ?", (FORMAT,))
    connection.execute("COMMIT")


def _format(connection: sqlite3.Connection) -> int | None:
    return connection.execute("SELECT format FROM project").fetchone()[0] if _has_tables(connection) else None


def _has_tables(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'project'").fetchone() is not None


def _checked(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    found = _format(connection)
    if found is None:
        connection.close()
        raise DamagedError(f"{path} holds no project: it is empty or damaged.", hint=RESTORE)
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
