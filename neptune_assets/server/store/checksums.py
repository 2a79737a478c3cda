"""Checksums of rows: made when a row is written, compared when it is read. SQLite does not notice changed values.

Rows of a store that an older version wrote have none (NULL) until they are written again; those count as intact. What a
row should be beside is counted: a run has so many attributes, a series so many points.
"""

from __future__ import annotations

import sqlite3
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import numpy.typing as npt

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
