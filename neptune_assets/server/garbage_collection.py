"""Remove bytes of files that nothing refers to, some days after they were uploaded.

What is removed was unreferenced at two looks in a row, so that an upload whose attribute is still to come is kept.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from neptune_assets.errors import NeptuneAssetsError
from neptune_assets.server.store.database import ATTRIBUTE, FILE, MEMBER, OBJECT, intact
from neptune_assets.server.store.projects import ProjectStore, Store, now_ms

_log = logging.getLogger(__name__)
_AT_ONCE: Final = 500
"""Objects that are removed while writers wait."""
# Keys that no file and no point of a series of files holds; a key that was never used may be named yet.
_UNREFERENCED_KEYS: Final = """
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
class Unreferenced:
    """What a look at one project found: keys of files, and hashes of bytes."""

    keys: set[str] = field(default_factory=set)
    objects: set[str] = field(default_factory=set)


def find_unreferenced(project: ProjectStore, older_than: int) -> Unreferenced:
    """Return what nothing refers to, of what arrived before ``older_than`` (milliseconds since 1970)."""
    # Bytes before rows: what is named after the look at the bytes is seen in the rows.
    old = set(project.objects.older_than(older_than / 1_000))
    with project.read() as connection:
        if any(connection.execute(query).fetchone() is not None for query in _DAMAGED):
            # What a damaged row names looks unreferenced.
            _log.error("Nothing is removed of project %s: names of files are damaged in its store.", project.project_id)
            return Unreferenced()
        keys = {str(row[0]) for row in connection.execute(_UNREFERENCED_KEYS, (older_than,))}
        return Unreferenced(keys, old - _used(connection, old))


def remove_unreferenced(project: ProjectStore, before: Unreferenced, older_than: int) -> tuple[Unreferenced, int]:
    """Remove what an earlier look found and this one finds again; return what this one found, and bytes removed."""
    project.objects.remove_abandoned()
    found = find_unreferenced(project, older_than)
    keys = found.keys & before.keys
    for some in _portions(keys):
        with project.write() as writing:
            still = {str(row[0]) for row in writing.connection.execute(_UNREFERENCED_KEYS, (older_than,))}
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


_SECONDS: Final = 3_600.0
_DAY_MS: Final = 86_400_000


class GarbageCollector:
    """A thread of its own; :meth:`stop` waits for a look that is going on."""

    def __init__(self, store: Store, grace_days: int, seconds: float = _SECONDS) -> None:
        self._store = store
        self._kept_ms = grace_days * _DAY_MS
        self._seconds = seconds
        self._found: dict[str, Unreferenced] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="garbage collection", daemon=True)

    def start(self) -> None:
        """Begin; the first look is at once."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> int:
        """Look at all projects, remove what was unreferenced at the last look already, and return the bytes removed."""
        total = 0
        for name in self._store.projects():
            if self._stopped.is_set():
                break
            try:
                project = self._store.project(name)
                before = self._found.get(name, Unreferenced())
                self._found[name], removed = remove_unreferenced(project, before, now_ms() - self._kept_ms)
            except (NeptuneAssetsError, OSError, sqlite3.Error):
                # A project that is being deleted, or a full disk: the others are looked at, and this one next time.
                _log.exception("Unreferenced bytes of project %s could not be removed.", name)
                continue
            if removed:
                _log.info("Removed %s bytes of unreferenced files in project %s.", f"{removed:,}", name)
            total += removed
        return total

    def _run(self) -> None:
        self.look()
        while not self._stopped.wait(self._seconds):
            self.look()
