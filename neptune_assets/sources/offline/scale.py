"""Recordings of neptune-scale: ``run_operations.sqlite3`` found, identified, and replayed into the state of its run.

Decisions. All formats that releases wrote are read, v1 (neptune-scale 0.11) to v5 (0.20 and later): operations are the
same messages in all of them, only tables were added (``DB_VERSION`` in neptune_scale/sync/operations_repository.py).
Any other is refused with its path and version. Databases under other names are Neptune's only if they hold its tables:
v1 wrote flat files ``<project>_<run>_<nanoseconds>.sqlite3`` into ``.neptune`` or the client's log directory.

A recording of a live process is read as it is at that moment, with a note. Where a server has already taken the first
operations, the client deleted them here: what is left is read, and the run is partial. ``sys/id`` was the server's to
give and is not made up. An int appended to a series becomes a float, as on the server. Previews are not points: they
are counted, and a series that ends in one is noted. A path may hold values of two types; the server would have refused
the second, here neither is lost. Several points of one step are all handed on: the lake decides. A second create
operation (a resumed run) changes nothing that the first one set.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from neptune_assets.errors import SourceError
from neptune_assets.schema import MICROSTEPS, AttributeType, Scope
from neptune_assets.sources.offline.recordings import (
    Archives,
    Folder,
    Fork,
    RecordedFile,
    Refusal,
    allowed_roots,
    base_name,
    candidates,
    file_limits,
    walk,
)
from neptune_assets.sources.offline.scale_database import (
    BROKEN,
    FileFacts,
    Snapshot,
    file_facts,
    may_lack_wal,
    open_in_place,
    open_snapshot,
    same_bytes,
    whole_pages,
    writer,
)
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.protocol import SourceFile
from neptune_assets.sources.rows import is_time
from neptune_assets.sources.run_state import MAX_ISSUES, RunState

_ADD: Final = 1
_REMOVE: Final = 2
_EXACT_INT: Final = 2**53
_PREVIEWS: Final = "previews_left_out"

_ATOMS: Final = {
    "float64": AttributeType.FLOAT,
    "int64": AttributeType.INT,
    "string": AttributeType.STRING,
    "bool": AttributeType.BOOL,
    "timestamp": AttributeType.DATETIME,
    "string_set": AttributeType.STRING_SET,
    "file_ref": AttributeType.FILE,
}


@lru_cache(maxsize=1)
def messages() -> tuple[Any, Any, type[Exception]]:
    """Neptune's message classes for creating and for updating a run, and the error that garbage raises."""
    from google.protobuf.message import DecodeError
    from neptune_api.proto.neptune_pb.ingest.v1.common_pb2 import Run, UpdateRunSnapshot

    return Run, UpdateRunSnapshot, DecodeError


class Operations:
    """Applies operations of one recording to ``state``; ``points`` False leaves series out (for inheritance)."""

    def __init__(self, state: RunState, *, points: bool = True) -> None:
        self._state = state
        self._points = points
        self._create, self._update, self._garbage = messages()
        self._previews: dict[str, tuple[int, Any]] = {}
        self._timeless: Counter[str] = Counter()
        self.created = False

    def create(self, sequence: int, blob: bytes) -> None:
        """Apply a create operation; garbage is reported and left out."""
        try:
            operation = self._create.FromString(blob)
        except self._garbage as error:
            self._unreadable(sequence, error)
            return
        self.created = True
        if operation.HasField("experiment_id"):
            self._first("sys/name", AttributeType.STRING, operation.experiment_id)
        if operation.HasField("creation_time"):
            created = milliseconds(operation.creation_time)
            if is_time(created):
                self._first("sys/creation_time", AttributeType.DATETIME, created)
            else:
                self._bad(sequence, f"no calendar has the creation time {created} ms", "sys/creation_time")
        if operation.HasField("fork_point"):
            fork = operation.fork_point
            self._first("sys/forking/parent", AttributeType.STRING, fork.parent_run_id)
            if fork.HasField("step"):
                step = (fork.step.whole * MICROSTEPS + fork.step.micro) / MICROSTEPS
                self._first("sys/forking/step", AttributeType.FLOAT, step)

    def update(self, sequence: int, blob: bytes, recorded: int) -> None:
        """Apply an update; garbage is reported and left out. ``recorded`` is when it was recorded, in epoch ms."""
        try:
            operation = self._update.FromString(blob)
        except self._garbage as error:
            self._unreadable(sequence, error)
            return
        append = operation.append
        if append:
            if self._points:
                self._append(sequence, operation, append, recorded)
        elif not operation.assign and not operation.modify_sets:
            self._empty(sequence, operation, len(blob))
            return
        if operation.assign:
            for path, value in operation.assign.items():
                self._assign(sequence, path, value)
        if operation.modify_sets:
            for path, change in operation.modify_sets.items():
                self._modify(sequence, path, change)

    def finish(self) -> None:
        """Tell about previews that no point replaced, and points whose time cannot be held."""
        for path, count in self._timeless.items():
            self._state.note(
                f"{count:,} points of {path!r} have a time that no calendar has; they are kept without it.", path
            )
        for path, (step, value) in self._previews.items():
            self._state.note(
                f"The series {path!r} ends in a preview ({value!r} at step {step / MICROSTEPS:g}) that was never "
                "committed. Previews are not points and are left out.",
                path,
                AttributeType.FLOAT_SERIES,
            )

    def _append(self, sequence: int, operation: Any, append: Any, recorded: int) -> None:
        if not operation.HasField("step"):
            self._bad(sequence, f"points of {_some(append)} have no step")
            return
        where = operation.step
        step = where.whole * MICROSTEPS + where.micro
        given = milliseconds(operation.timestamp) if operation.HasField("timestamp") else recorded
        time = given if is_time(given) else None
        if operation.HasField("preview") and operation.preview.is_preview:
            self._preview(append, step)
            return
        if time is None:
            self._timeless.update(append.keys())
        # Nearly all points are floats, and an operation holds many at one step: they are taken together.
        paths: list[str] = []
        floats: list[float] = []
        for path, value in append.items():
            kind = value.WhichOneof("value")
            if kind == "float64":
                paths.append(path)
                floats.append(value.float64)
            else:
                self._point(sequence, path, kind, value, step, time)
        if paths:
            try:
                self._state.rows.float_points(paths, step, time, floats)
            except ValueError as error:
                for path in paths:
                    self._bad(sequence, f"a point of {path!r} cannot be kept: {error}", path)
        if self._previews:
            for path in append:
                if path in self._previews and step >= self._previews[path][0]:
                    del self._previews[path]

    def _point(self, sequence: int, path: str, kind: str | None, value: Any, step: int, time: int | None) -> None:
        """Add one point of a series that does not hold floats, or an int to one that does."""
        point = self._state.rows.point
        try:
            if kind == "string":
                point(AttributeType.STRING_SERIES, path, step, time, value.string)
            elif kind == "histogram":
                point(AttributeType.HISTOGRAM_SERIES, path, step, time, _histogram(value.histogram))
            elif kind == "file_ref":
                point(AttributeType.FILE_SERIES, path, step, time, value.file_ref.path)
            elif kind == "int64":
                if abs(value.int64) > _EXACT_INT:
                    self._state.repair("ints_rounded_in_series")
                point(AttributeType.FLOAT_SERIES, path, step, time, float(value.int64))
            else:
                self._bad(sequence, f"{path!r} was appended {kind or 'nothing'}, which no series can hold", path)
        except ValueError as error:
            self._bad(sequence, f"a point of {path!r} cannot be kept: {error}", path)

    def _preview(self, append: Any, step: int) -> None:
        for path, value in append.items():
            kind = value.WhichOneof("value")
            self._previews[path] = (step, getattr(value, kind) if kind else None)
        self._state.repair(_PREVIEWS, len(append))

    def _assign(self, sequence: int, path: str, value: Any) -> None:
        kind = value.WhichOneof("value")
        attribute_type = _ATOMS.get(kind)
        if attribute_type is None:
            self._bad(sequence, f"{path!r} was assigned {kind or 'nothing'}, which no attribute can hold", path)
        elif kind == "timestamp":
            time = milliseconds(value.timestamp)
            if is_time(time):
                self._state.assign(path, attribute_type, time)
            else:
                self._bad(sequence, f"{path!r} was assigned {time} ms, a time that no calendar has", path)
        elif kind == "string_set":
            self._state.assign(path, attribute_type, list(value.string_set.values))
        elif kind == "file_ref":
            self._state.assign(path, attribute_type, value.file_ref.path)
        else:
            self._state.assign(path, attribute_type, getattr(value, kind))

    def _modify(self, sequence: int, path: str, change: Any) -> None:
        if change.WhichOneof("type") != "string":
            self._bad(sequence, f"{path!r} is changed as a set of a kind this version does not know", path)
            return
        values = change.string.values
        unknown = sorted({code for code in values.values() if code not in {0, _ADD, _REMOVE}})
        if unknown:
            self._bad(sequence, f"{path!r} is changed in a way this version does not know ({unknown[0]})", path)
        self._state.change_set(
            path,
            add=[name for name, code in values.items() if code == _ADD],
            remove=[name for name, code in values.items() if code == _REMOVE],
        )

    def _first(self, path: str, attribute_type: AttributeType, value: Any) -> None:
        present = self._state.assigned(path, attribute_type)
        if present is None:
            self._state.assign(path, attribute_type, value)
        elif present != value and path != "sys/creation_time":
            self._state.note(
                f"The run was resumed with {path} {value!r}; it keeps {present!r}, which it began with.",
                path,
                attribute_type,
            )

    def _empty(self, sequence: int, operation: Any, length: int) -> None:
        operation.DiscardUnknownFields()
        if operation.ByteSize() != length:
            self._bad(sequence, "it holds nothing that this version knows")

    def _unreadable(self, sequence: int, error: Exception) -> None:
        self._bad(sequence, f"invalid Neptune message ({error})")

    def _bad(self, sequence: int, what: str, path: str | None = None) -> None:
        self._state.error(f"Operation {sequence}: {what}. It is left out, the others are kept.", path)


def milliseconds(stamp: Any) -> int:
    """Epoch milliseconds of a protobuf Timestamp, rounded down.

    The client goes through a float, which turns .123 s into 122_999_906 ns: whole microseconds undo that first.
    """
    return int(stamp.seconds * 1000 + (stamp.nanos + 500) // 1_000 // 1_000)


def moment(milliseconds: int) -> datetime | None:
    """An aware UTC datetime, or None if Python has none so early or late."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _histogram(histogram: Any) -> tuple[str, list[float], list[float]]:
    kind = histogram.WhichOneof("values")
    if kind == "counts":
        return "COUNTING", list(histogram.bin_edges), [float(count) for count in histogram.counts.values]
    if kind == "densities":
        return "DENSITY", list(histogram.bin_edges), list(histogram.densities.values)
    raise ValueError("the histogram has neither counts nor densities")


def _some(append: Any) -> str:
    paths = sorted(append)
    return ", ".join(map(repr, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


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
                f"{self.path}: {missing} operations are missing. neptune-scale deletes what a server has "
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
