"""Finds recordings of neptune-scale and tells what each says of itself, reading as little as can be.

Decisions. All formats that releases wrote are read, v1 (neptune-scale 0.11) to v5 (0.20 and later): operations are the
same messages in all of them, only tables were added (``DB_VERSION`` in neptune_scale/sync/operations_repository.py).
Any other is refused with its path and version. Databases under other names are Neptune's only if they hold its tables:
v1 wrote flat files ``<project>_<run>_<nanoseconds>.sqlite3`` into ``.neptune`` or the client's log directory.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

from neptune_assets.errors import SourceError
from neptune_assets.sources.offline.archives import Archives
from neptune_assets.sources.offline.recordings import Folder, Fork, Refusal, walk
from neptune_assets.sources.offline.scale import CREATE, Identity, ScaleRecording
from neptune_assets.sources.offline.scale_database import (
    BROKEN,
    FileFacts,
    file_facts,
    may_lack_wal,
    open_in_place,
    open_snapshot,
)
from neptune_assets.sources.offline.scale_operations import messages, milliseconds
from neptune_assets.sources.offline.settings import OfflineSource

DATABASE: Final = "run_operations.sqlite3"
FORMATS: Final = frozenset({"v1", "v2", "v3", "v4", "v5"})
_FLAT: Final = re.compile(r".+_.+_\d{18,20}\.sqlite3", re.ASCII | re.DOTALL)


def find_scale_recordings(root: Path, settings: OfflineSource) -> Iterator[ScaleRecording | Refusal]:
    """Find every recording of neptune-scale at or below ``root``; what cannot be used comes as a Refusal."""
    if root.is_file():
        found = _recognise(root, settings)
        if found is not None:
            yield found
        archives = Archives()
        yield from archives.met(Folder(root.parent, (root.name,), ()))
        yield from archives.not_looked_into()
        return
    archives = Archives()
    for folder in walk(root):
        if isinstance(folder, Refusal):
            yield folder
            continue
        yield from _in_folder(folder, settings)
        yield from archives.met(folder)
    yield from archives.not_looked_into()


def _in_folder(folder: Folder, settings: OfflineSource) -> Iterator[ScaleRecording | Refusal]:
    for name in folder.files:
        if name.endswith(".sqlite3"):
            found = _recognise(folder.path / name, settings)
            if found is not None:
                yield found
    for name in folder.files:
        if name.endswith("-wal") and _is_named_like_one(name.removesuffix("-wal"), folder):
            database = name.removesuffix("-wal")
            if database not in {*folder.files, *folder.special}:
                path = folder.path / name
                message = (
                    f"{path} holds data of a killed job, but {database} is not beside it. Bring both together again."
                )
                yield Refusal(path, message)
        elif name.startswith(DATABASE) and not name.endswith((".sqlite3", "-shm", "-journal")):
            path = folder.path / name
            yield Refusal(path, f"{path} may be a recording, but is not read under this name. Call it {DATABASE!r}.")
    for name in folder.special:
        path = folder.path / name
        if path.is_symlink() and not path.exists():
            message = f"{path} is a link that leads nowhere. If recordings are behind it, bring back what it leads to."
            yield Refusal(path, message, notice=True)
            continue
        if not _is_named_like_one(name, folder):
            continue
        yield Refusal(path, f"{path} is not a regular file (a pipe, a socket or a device). Put the recording back.")


def _is_named_like_one(name: str, folder: Folder) -> bool:
    """True if a recording could have this name where it is."""
    flat = folder.path.name == ".neptune" and name.endswith(".sqlite3")
    return name == DATABASE or flat or _FLAT.fullmatch(name) is not None


def _recognise(path: Path, settings: OfflineSource) -> ScaleRecording | Refusal | None:
    """Tell what a database is; None for databases that are none of Neptune's."""
    sure = path.name == DATABASE or path.parent.name == ".neptune" or _FLAT.fullmatch(path.name) is not None
    try:
        facts = file_facts(path)
        identity = _identify(path, path.stat().st_ino, facts, sure)
    except (*BROKEN, OSError, SourceError) as error:
        if not sure:
            return None
        reason = error.message if isinstance(error, SourceError) else f"{path} cannot be read: {error}."
        return Refusal(path, f"{reason} If there is another copy of this recording, use that.")
    if identity is None:
        if not sure:
            return None
        if may_lack_wal(path):
            return Refusal(
                path,
                f"{path} names no run: the data may be in its -wal file, which is damaged or was left where the folder "
                "was copied from. Keep all of its files, and look for another copy.",
            )
        if facts.size == 0:
            return Refusal(
                path,
                f"{path} is empty: the disk was full when it was recorded or copied, or the job was killed at once. "
                "Look for another copy; if there is none, move its folder away.",
            )
        return Refusal(path, f"{path} names no run: neptune-scale stopped before it recorded anything.", notice=True)
    if identity.version not in FORMATS:
        return Refusal(
            path,
            f"{path} has format {identity.version!r}, which is not one of {', '.join(sorted(FORMATS))}. Look for a "
            "newer neptune_assets; or start `python -m neptune_assets.server`, install the neptune-scale release that "
            "recorded it, and run its `neptune sync` against that server, which then is the source.",
            identity.project_id or None,
            identity.run_id or None,
        )
    if not identity.project_id or not identity.run_id:
        return Refusal(path, f"{path} names no project or no run in its metadata. It is damaged; use another copy.")
    return ScaleRecording(path, identity, facts, settings)


@lru_cache(maxsize=65_536)
def _identify(path: Path, inode: int, facts: FileFacts, copy: bool) -> Identity | None:
    """Read what a database says of itself; cached for as long as its files stay the same.

    ``copy`` allows copying it if ``-wal`` holds what is wanted; the database alone is asked first.
    """
    try:
        with open_in_place(path) as connection:
            identity = _read_identity(connection)
    except BROKEN:
        if facts.lone:
            raise
        identity = None
    if identity is None and not facts.lone and copy:
        with open_snapshot(path) as snapshot:
            identity = _read_identity(snapshot.connection)
    return identity


def _read_identity(connection: sqlite3.Connection) -> Identity | None:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {"metadata", "run_operations"} <= tables:
        return Identity("unknown", "", "", None, None, None) if "run_operations" in tables else None
    columns = {row[1] for row in connection.execute("PRAGMA table_info(metadata)")}
    if not {"version", "project", "run_id"} <= columns:
        return Identity("unknown", "", "", None, None, None)
    row = connection.execute("SELECT version, project, run_id FROM metadata ORDER BY id LIMIT 1").fetchone()
    if row is None:
        return None
    version, project, run = map(str, row)
    if version not in FORMATS:
        return Identity(version, project, run, None, None, None)
    first = connection.execute(
        "SELECT timestamp, operation_type, operation FROM run_operations ORDER BY sequence_id LIMIT 1"
    ).fetchone()
    if first is None or not isinstance(first[0], int):
        return Identity(version, project, run, None, None, None)
    created: int | None = None
    fork: Fork | None = None
    sequences = connection.execute("SELECT min(sequence_id), max(sequence_id) FROM run_operations").fetchone()
    if first[1] == CREATE:
        create_class, _, garbage = messages()
        try:
            create = create_class.FromString(first[2])
        except (garbage, TypeError):
            # Replaying reports it; listing goes on without what it would have told.
            return Identity(version, project, run, None, first[0], None, sequences)
        if create.HasField("creation_time"):
            created = milliseconds(create.creation_time)
        if create.HasField("fork_point"):
            point = create.fork_point
            fork = Fork(point.parent_project or project, point.parent_run_id, create.inherit_configs, first[0])
    return Identity(version, project, run, created, first[0], fork, sequences)
