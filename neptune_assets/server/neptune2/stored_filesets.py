"""File sets in the store: their members as rows, and the attribute's value, which sums them up."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from neptune_assets.schema import AttributeType
from neptune_assets.server.neptune2.filesets import Member
from neptune_assets.server.store.database import MEMBER, RESTORE, DamagedError, intact, row_of
from neptune_assets.server.store.runs import to_json

if TYPE_CHECKING:
    from neptune_assets.server.store.writing import Operations

_INTACT = intact("file_set_files", *MEMBER)


def members(connection: sqlite3.Connection, attribute: int) -> Iterator[Member]:
    """Yield the members of a file set by path."""
    query = f"SELECT path, sha256, size, modified_at, {_INTACT} FROM file_set_files WHERE attribute = ? ORDER BY path"  # noqa: S608
    for path, sha256, size, modified, is_intact in connection.execute(query, (attribute,)):
        if not is_intact:
            raise DamagedError(f"A file set names {path!r} in a row that is damaged in the store.", hint=RESTORE)
        yield Member(path, sha256, size, modified)


def member_names(connection: sqlite3.Connection, attribute: int) -> list[str]:
    """Return the paths of all members of a file set."""
    return [row[0] for row in connection.execute("SELECT path FROM file_set_files WHERE attribute = ?", (attribute,))]


def put_members(connection: sqlite3.Connection, attribute: int, new: Iterable[Member]) -> int:
    """Add members, in place of those of the same path; return by how many bytes the file set grew."""
    before = _size(connection, attribute)
    connection.executemany(
        "INSERT OR REPLACE INTO file_set_files (attribute, path, sha256, size, modified_at, checksum)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (row_of(attribute, member.path, member.sha256, member.size, member.modified) for member in new),
    )
    return _size(connection, attribute) - before


def delete_members(connection: sqlite3.Connection, attribute: int, paths: Iterable[str]) -> int:
    """Take members out of a file set; return by how many bytes it shrank."""
    before = _size(connection, attribute)
    connection.executemany(
        "DELETE FROM file_set_files WHERE attribute = ? AND path = ?", ((attribute, path) for path in paths)
    )
    return before - _size(connection, attribute)


def update_value(operations: Operations, path: str, connection: sqlite3.Connection, attribute: int) -> None:
    """Bring the attribute's value up to date: size in bytes and number of files."""
    size, files = connection.execute(
        "SELECT coalesce(sum(size), 0), count(sha256) FROM file_set_files WHERE attribute = ?", (attribute,)
    ).fetchone()
    operations.assign(path, AttributeType.FILE_SET, to_json({"size": size, "files": files}))


def _size(connection: sqlite3.Connection, attribute: int) -> int:
    row = connection.execute("SELECT coalesce(sum(size), 0) FROM file_set_files WHERE attribute = ?", (attribute,))
    return int(row.fetchone()[0])
