"""A project's SQLite database: opened by its one writer or by any reader, with a checksum in each row."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from neptune_assets.errors import LakeError

Ints = npt.NDArray[np.int64]

NOT_RECORDED: Final = 1 << 32
"""Stands for the checksum of a point that has none; no checksum of a point has that value."""
_FACTORS: Final = tuple(
    np.uint64(factor) for factor in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93)
)
_HALF: Final = np.uint64(32)


def checksum(*values: int | str | bytes | None) -> int:
    """Return the checksum of the columns of a row, 64 bits of BLAKE2b, as a signed integer. Also a function in SQL."""
    digest = blake2b(ascii(values).encode("ascii"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def point_checksums(attributes: Ints | int, steps: Ints, times: Ints, bits: Ints) -> Ints:
    """Return the checksums of many points, 32 bits each: any one column that changes changes all bits by chance."""
    mixed = np.zeros(len(steps), np.uint64)
    for column, factor in zip((np.asarray(attributes, np.int64), steps, times, bits), _FACTORS, strict=True):
        mixed = (mixed ^ column.astype(np.int64).view(np.uint64)) * factor
        mixed ^= mixed >> _HALF
    mixed *= _FACTORS[0]
    return (mixed >> _HALF).astype(np.uint32).view(np.int32).astype(np.int64)


def damaged_points(attribute: int, steps: Ints, times: Ints, bits: Ints, recorded: Ints) -> npt.NDArray[np.bool_]:
    """Return which points of a series are not what was written."""
    wrong = recorded != point_checksums(attribute, steps, times, bits)
    found: npt.NDArray[np.bool_] = wrong & (recorded != NOT_RECORDED)
    return found


def intact(table: str, *columns: str) -> str:
    """Return an expression in SQL that is 1 for rows which are as they were written."""
    listed = ", ".join(f"{table}.{column}" for column in columns)
    return f"({table}.checksum IS NULL OR {table}.checksum IS checksum({listed}))"


def add_functions(connection: sqlite3.Connection) -> None:
    """Let statements of a connection use :func:`checksum`."""
    connection.create_function("checksum", -1, checksum, deterministic=True)


RUN: Final = (
    *("id", "scope", "run_id", "sys_id", "uuid", "experiment", "parent_project", "parent_run_id", "fork_step"),
    *("requested_parent", "inherit_configs", "generation", "created_at", "modified_at", "ping_at", "trashed"),
    *("archived", "adopted", "revision"),
)
ATTRIBUTE: Final = ("run", "path", "type", "value")
OBJECT: Final = ("attribute", "step", "time", "value")
FILE: Final = ("key", "sha256", "size", "mime_type")
MEMBER: Final = ("attribute", "path", "sha256", "size", "modified_at")
ARTIFACT: Final = ("hash", "size", "files")
PROJECT: Final = ("project_id", "uuid", "key", "created_at")
"""Columns that the checksums of rows are of."""


def seal(table: str, columns: tuple[str, ...], where: str = "") -> str:
    """Return a statement that gives rows their checksums."""
    return f"UPDATE {table} SET checksum = checksum({', '.join(columns)}) {where}"  # noqa: S608 - our own names


def row_of(*values: Any) -> tuple[Any, ...]:
    """Return the values of a row with its checksum behind them."""
    return (*values, checksum(*values))


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
