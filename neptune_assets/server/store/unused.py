"""Bytes that nothing names any more: files that were replaced, uploads that nobody went on with. Removed in two looks.

What a first look finds unused and a second one, later, still does, is removed: whoever read of a file just before it
was replaced has that long to open it. Rows go first and are committed, bytes after them: a crash between leaves bytes
that the next look finds. Bytes are removed only while nobody can write: nothing comes to name them at that moment.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from neptune_assets.server.store.checksums import ATTRIBUTE, FILE, MEMBER, OBJECT, intact

if TYPE_CHECKING:
    from neptune_assets.server.store.projects import ProjectStore

_log = logging.getLogger(__name__)
_AT_ONCE: Final = 500
"""Objects that are removed while writers wait."""
# Keys that no file and no point of a series of files holds; a key that was never used may be named yet.
_UNUSED_KEYS: Final = """
    SELECT key FROM files WHERE uploaded_at < ? AND key NOT IN (
        SELECT json_extract(value, '$.path') FROM attributes
        WHERE type = 'file' AND value IS NOT NULL AND json_extract(value, '$.path') IS NOT NULL
        UNION
        SELECT json_extract(objects.value, '$.path') FROM objects JOIN attributes ON attributes.id = objects.attribute
        WHERE type = 'file_series' AND json_extract(objects.value, '$.path') IS NOT NULL
    )
"""
_DAMAGED: Final = (
    f"SELECT 1 FROM attributes WHERE NOT {intact('attributes', *ATTRIBUTE)} LIMIT 1",  # noqa: S608
    f"SELECT 1 FROM objects JOIN attributes ON attributes.id = objects.attribute"  # noqa: S608
    f" WHERE type = 'file_series' AND NOT {intact('objects', *OBJECT)} LIMIT 1",
    f"SELECT 1 FROM files WHERE NOT {intact('files', *FILE)} LIMIT 1",  # noqa: S608
    f"SELECT 1 FROM file_set_files WHERE NOT {intact('file_set_files', *MEMBER)} LIMIT 1",  # noqa: S608
)
_USED: Final = """
    SELECT sha256 FROM files WHERE sha256 IN (SELECT value FROM json_each(?1))
    UNION SELECT sha256 FROM file_set_files WHERE sha256 IN (SELECT value FROM json_each(?1))
"""


@dataclass
class Unused:
    """What a look at one project found: keys of files, and hashes of bytes."""

    keys: set[str] = field(default_factory=set)
    objects: set[str] = field(default_factory=set)


def find_unused(project: ProjectStore, older_than: int) -> Unused:
    """Return what nothing names, of what came in before ``older_than`` (milliseconds since 1970)."""
    # Bytes before rows: what is named after the look at the bytes is seen in the rows.
    old = set(project.objects.older_than(older_than / 1_000))
    with project.read() as connection:
        if any(connection.execute(query).fetchone() is not None for query in _DAMAGED):
            # What a damaged row named looks unused.
            _log.error("Nothing is removed of project %s: names of files are damaged in its store.", project.project_id)
            return Unused()
        keys = {str(row[0]) for row in connection.execute(_UNUSED_KEYS, (older_than,))}
        return Unused(keys, old - _used(connection, old))


def remove_unused(project: ProjectStore, before: Unused, older_than: int) -> tuple[Unused, int]:
    """Remove what an earlier look found and this one finds again; return what this one found, and bytes removed."""
    project.objects.remove_abandoned()
    found = find_unused(project, older_than)
    keys = found.keys & before.keys
    for some in _portions(keys):
        with project.write() as writing:
            still = {str(row[0]) for row in writing.connection.execute(_UNUSED_KEYS, (older_than,))}
            writing.connection.executemany("DELETE FROM files WHERE key = ?", [(key,) for key in some if key in still])
    removed = 0
    for some in _portions(found.objects & before.objects):
        with project.write() as writing:
            for digest in set(some) - _used(writing.connection, some):
                removed += project.objects.remove(digest, older_than / 1_000)
    return found, removed


def _used(connection: sqlite3.Connection, digests: Collection[str]) -> set[str]:
    """Return those of some hashes that a file or a member of a file set has."""
    return {str(row[0]) for row in connection.execute(_USED, (json.dumps(list(digests)),))}


def _portions(items: Collection[str]) -> Iterator[list[str]]:
    ordered = iter(sorted(items))
    while some := list(islice(ordered, _AT_ONCE)):
        yield some
