"""A recording of neptune-scale: one ``run_operations.sqlite3``, replayed into the state of its run.

Decisions. A recording of a live process is read as it is at that moment, with a note. Where a server has already taken
the first operations, the client deleted them here: what is left is read, and the run is partial. ``sys/id`` was the
server's to give and is not made up.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import pyarrow as pa

from neptune_assets.errors import SourceError
from neptune_assets.schema import AttributeType, Scope
from neptune_assets.sources.offline.recorded_files import (
    RecordedFile,
    allowed_roots,
    base_name,
    candidates,
    file_limits,
)
from neptune_assets.sources.offline.recordings import Fork
from neptune_assets.sources.offline.scale_database import (
    BROKEN,
    FileFacts,
    Snapshot,
    file_facts,
    open_snapshot,
    same_bytes,
    whole_pages,
    writer,
)
from neptune_assets.sources.offline.scale_operations import Operations, moment
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.offline.state import MAX_ISSUES, RunState
from neptune_assets.sources.protocol import SourceFile

CREATE: Final = 1
_UPDATE: Final = 0
_READER: Final = "scale-2"
"""Part of every fingerprint: raise it when the same recording would be read differently."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a database says of itself without being read: enough to list it."""

    version: str
    project_id: str
    run_id: str
    created_ms: int | None
    started_ms: int | None
    fork: Fork | None
    sequences: tuple[int, int] | None = None
    """First and last operation that is still here."""


class ScaleRecording:
    """One database of neptune-scale; implements :class:`~.recordings.Recording`."""

    scope = Scope.RUNS

    def __init__(self, path: Path, identity: Identity, facts: FileFacts, settings: OfflineSource) -> None:
        self.path = path
        self.project_id = identity.project_id
        self.run_id = identity.run_id
        self.fork = identity.fork
        self.created_at = None if identity.created_ms is None else moment(identity.created_ms)
        self.started_at = None if identity.started_ms is None else moment(identity.started_ms)
        self.modified_at: datetime | None = moment(facts.modified_ns // 1_000_000)
        self.size = facts.size
        self.likeness = (
            path.parent.name,
            path.name,
            facts.main[0],
            facts.wal[0],
            identity.started_ms,
            identity.sequences,
        )
        """Equal for copies of one recording: the client puts the nanosecond of its start into the folder's name."""
        self.facts = facts
        self._settings = settings
        self._uploads: tuple[FileFacts, Mapping[str, tuple[str, int]]] | None = None

    def copies(self, other: ScaleRecording) -> bool:
        """True if both are copies of one recording and neither was damaged since."""
        return self.likeness == other.likeness and same_bytes(self.path, other.path, self.facts, other.facts)

    def fingerprint(self) -> str:
        """A mark over sizes and times of every file in the folder, and where lost files are looked for."""
        marks = [_READER, *self._settings.search_files_in, *self._settings.files_from]
        with os.scandir(self.path.parent) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                # Any reader that opens the database remakes -shm; it holds no data.
                if entry.name != f"{self.path.name}-shm" and self._is_ours(entry.name) and entry.is_file():
                    status = entry.stat()
                    marks.append(f"{entry.name}\0{status.st_size}\0{status.st_mtime_ns}")
        return hashlib.blake2b("\n".join(marks).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def _is_ours(self, name: str) -> bool:
        """False for what other runs have in the same folder, as flat files of old formats do."""
        return not name.endswith((".sqlite3", "-wal", "-journal")) or name.startswith(self.path.name)

    def replay(self, state: RunState) -> Iterator[pa.RecordBatch]:
        """Apply every operation to ``state``, in the order recorded; yields batches as they fill."""
        before = file_facts(self.path)
        pid = writer(self.path)
        if pid is not None:
            state.note(f"{self.path} is still open in process {pid}: the run is read as far as it has got.")
        state.assign("sys/custom_run_id", AttributeType.STRING, self.run_id)
        with self._opened() as snapshot:
            connection = snapshot.connection
            self._look_at_files(snapshot, state)
            operations = Operations(state)
            yield from self._operations(connection, state, operations)
            operations.finish()
            self._client_errors(connection, state)
            self._uploads = (before, _read_uploads(connection))
        if before.lone and file_facts(self.path) != before:
            state.error(f"{self.path} changed while it was read. Read the run again once nothing writes to it.")

    def inherit(self, state: RunState, until: int) -> None:
        """Apply what was assigned up to ``until`` (epoch ms, by the clock of the machine) to ``state``; no series."""
        with self._opened() as snapshot:
            operations = Operations(state, points=False)
            for lost in snapshot.lost:
                state.error(lost)
            for sequence, recorded, kind, blob in _rows(snapshot.connection):
                if recorded > until:
                    break
                if kind == _UPDATE:
                    operations.update(sequence, blob, recorded)

    def files(self, reference: str) -> Sequence[SourceFile] | None:
        """The file uploaded under a storage key; only paths that this recording lists are ever opened.

        Returns None if this recording lists no such key.
        """
        upload = self._uploads_now().get(reference)
        if upload is None:
            return None
        source, size = upload
        name = base_name(reference) or "file"
        if not Path(name).suffix:
            name += Path(base_name(source)).suffix
        folders = [self.path.parent, *map(Path, self._settings.search_files_in)]
        roots, limits = allowed_roots([self.path.parent], self._settings), file_limits(self._settings)
        return [RecordedFile(name, candidates(source, folders), size, str(self.path), roots, limits.bytes)]

    def _opened(self) -> _Opening:
        return _Opening(self.path)

    def _look_at_files(self, snapshot: Snapshot, state: RunState) -> None:
        """Report what the files themselves show to be damaged or missing."""
        for lost in snapshot.lost:
            state.whole = False
            state.error(
                f"The recording is damaged: {lost}. What is whole is read, the rest is missing; look for another copy."
            )
        for doubt in snapshot.doubtful:
            state.note(doubt)
        wrong = whole_pages(snapshot.connection)
        if wrong is not None:
            state.whole = False
            state.error(f"{self.path} has damaged pages ({wrong}). What can be read is read; look for another copy.")

    def _uploads_now(self) -> Mapping[str, tuple[str, int]]:
        """Source path and size of every upload by storage key, read again only if the database has changed."""
        facts = file_facts(self.path)
        if self._uploads is None or self._uploads[0] != facts:
            with self._opened() as snapshot:
                self._uploads = (facts, _read_uploads(snapshot.connection))
        return self._uploads[1]

    def _operations(
        self, connection: sqlite3.Connection, state: RunState, operations: Operations
    ) -> Iterator[pa.RecordBatch]:
        expected = 1
        missing = 0
        rows = state.rows
        for sequence, recorded, kind, blob in _rows(connection):
            if sequence != expected:
                missing += sequence - expected
            expected = sequence + 1
            if kind == _UPDATE:
                operations.update(sequence, blob, recorded)
                if rows.ready:
                    yield from rows.drain()
            elif kind == CREATE:
                operations.create(sequence, blob)
            else:
                state.error(f"Operation {sequence}: its kind {kind!r} is unknown. It is left out, the others are kept.")
        written = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'run_operations'").fetchone()
        if written is not None and isinstance(written[0], int):
            missing += max(0, written[0] + 1 - expected)
        if missing:
            state.whole = False
            state.error(
                f"{self.path}: {missing} operations are not here any more. neptune-scale deletes what a server has "
                "taken, so this recording was partly synced; what is left of the run is read."
            )
        state.created = bool(state.created) or operations.created

    def _client_errors(self, connection: sqlite3.Connection, state: RunState) -> None:
        if not _has_table(connection, "operation_errors"):  # formats before v5
            return
        # error_body holds a pickle: never read.
        query = "SELECT error_type, error_details, sequence_id FROM operation_errors ORDER BY error_id LIMIT ?"
        (count,) = connection.execute("SELECT count(*) FROM operation_errors").fetchone()
        if count > MAX_ISSUES:
            state.note(f"neptune-scale recorded {count:,} errors, of which the first {MAX_ISSUES:,} are listed.")
        for error_type, details, sequence in connection.execute(query, (MAX_ISSUES,)):
            where = "" if sequence is None else f" for operation {sequence}"
            state.note(f"neptune-scale recorded an error{where}: {error_type}: {details}")


class _Opening:
    """Opens a recording and turns SQLite's errors into ones that name the path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._manager = open_snapshot(path)

    def __enter__(self) -> Snapshot:
        try:
            return self._manager.__enter__()
        except BROKEN as error:
            raise self._named(error) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._manager.__exit__(None, None, None)
        if isinstance(error, BROKEN):
            raise self._named(error) from error

    def _named(self, error: BaseException) -> SourceError:
        return SourceError(
            f"{self._path} cannot be read to its end: {error}.",
            hint="If there is another copy of this folder, use that; otherwise try SQLite's `.recover` on a copy.",
        )


def _read_uploads(connection: sqlite3.Connection) -> dict[str, tuple[str, int]]:
    """Source path and size by storage key; the last upload to a key is what a server would have kept."""
    if not _has_table(connection, "file_upload_requests"):  # format v1
        return {}
    query = "SELECT destination, source_path, size_bytes FROM file_upload_requests ORDER BY id"
    return {
        str(key): (str(source), size)
        for key, source, size in connection.execute(query)
        if isinstance(size, int)  # anything else was not written by the client; its file is then reported as gone
    }


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return connection.execute(query, (name,)).fetchone() is not None


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[int, int, int, bytes]]:
    """Operations in order: sequence id, epoch ms of recording, kind, message."""
    for sequence, recorded, kind, blob in connection.execute(
        "SELECT sequence_id, timestamp, operation_type, operation FROM run_operations ORDER BY sequence_id"
    ):
        data = blob if isinstance(blob, bytes) else str(blob).encode("utf-8")
        yield sequence, recorded if isinstance(recorded, int) else 0, kind, data
