"""The source `server`: the projects of a store, run by run, each as it is at one moment.

The store's databases are opened read-only, so this works while the server runs and after it was killed. A run's
fingerprint is the revision of its last change: what nobody wrote to since the last time is not read again. Series are
each run's own points only; points that are not final (previews) are not taken.
"""

from __future__ import annotations

import json
import mimetypes
import sqlite3
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final, cast

import numpy as np
import pyarrow as pa

from neptune_assets.errors import FileGoneError, NeptuneAssetsError, SourceError, UnknownProjectError
from neptune_assets.lake.integrity import CheckedFile
from neptune_assets.lake.layout import extension_of
from neptune_assets.schema import FILE_TYPES, SERIES_TYPES, AttributeType, Scope
from neptune_assets.server.store.database import (
    ARTIFACT,
    ATTRIBUTE,
    MEMBER,
    NOT_RECORDED,
    OBJECT,
    RESTORE,
    DamagedError,
    damaged_points,
    intact,
    open_reader,
)
from neptune_assets.server.store.files import find_file, object_path
from neptune_assets.server.store.projects import existing_projects
from neptune_assets.server.store.runs import SELECT_RUN, Run, decode, find_run, run_of, system_attributes
from neptune_assets.settings import Filters
from neptune_assets.sources.filters import Selection
from neptune_assets.sources.protocol import Issue, RunEnd, RunInfo, RunRows, SourceFile
from neptune_assets.sources.rows import RowBuilder
from neptune_assets.sources.server.settings import ServerSource
from neptune_assets.sources.times import YEAR_1, YEAR_10000, OddTimes, moment_of


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One object of the store. Implements :class:`neptune_assets.sources.protocol.SourceFile`."""

    relative_path: str
    path: Path

    def open(self) -> BinaryIO:
        """Open the object. Raises FileGoneError if it is not in the store, or while it is read if it is damaged."""

        def damaged(what: str) -> FileGoneError:
            return FileGoneError(
                f"The bytes of {self.relative_path!r} in the store are damaged: {what}.",
                hint="Restore the store's objects from a backup, or upload the file again.",
            )

        try:
            # Objects are named by the hash of their bytes.
            size, stream = self.path.stat().st_size, self.path.open("rb")
            return cast(BinaryIO, CheckedFile(stream, size, self.path.name, damaged))
        except OSError as error:
            raise FileGoneError(
                f"The bytes of {self.relative_path!r} are not in the store: {error}.",
                hint="Put the store's objects back from a copy; nothing of ours ever deletes them.",
            ) from error


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file made of what the database holds. Implements :class:`neptune_assets.sources.protocol.SourceFile`."""

    relative_path: str
    content: bytes

    def open(self) -> BinaryIO:
        """Open the content."""
        return BytesIO(self.content)


def file_name(key: str, mime_type: str) -> str:
    """Return the name of a file: the last part of its key, with the extension of its type if it has none."""
    name = key.rsplit("/", 1)[-1] or "file"
    if extension_of(name) or mime_type == "application/octet-stream":
        return name
    return name + (mimetypes.guess_extension(mime_type) or "")


FILE: Final = "file"
"""What a reference to one file begins with, before a colon and its key."""
MEMBERS: Final = "members"
"""What a reference to a file set or an artifact begins with, before a colon and the attribute's path."""

_FETCH: Final = 16_384
_INTACT: Final = intact("attributes", *ATTRIBUTE)
_ATTRIBUTES: Final = (
    f"SELECT id, path, type, points, {_INTACT} AS intact FROM attributes WHERE run = ? AND"  # noqa: S608
    # The value of a series is how it is to be drawn: nothing to keep without points.
    " ((value IS NOT NULL AND type NOT LIKE '%series')"
    f" OR points > 0 OR NOT {_INTACT}"
    " OR EXISTS (SELECT 1 FROM points WHERE points.attribute = attributes.id)"
    " OR EXISTS (SELECT 1 FROM objects WHERE objects.attribute = attributes.id)) ORDER BY path"
)
"""Attributes that hold anything: of a series that has previews only, nothing is final yet."""


class RunReading:
    """Reads one run; :meth:`end` tells what there was, once :meth:`batches` is through.

    What is promised is counted by the database before the first row is read.
    """

    def __init__(
        self, connection: sqlite3.Connection, project_id: str, run: Run, keep: Callable[[str, str], bool]
    ) -> None:
        self._connection = connection
        self._run = run
        self._keep = keep
        self._rows = RowBuilder(project_id, run.run_id, keep)
        self._errors: list[Issue] = []
        self._promised: dict[str, int] = {}
        self._odd_times = OddTimes()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows, in bounded memory."""
        kept = self._attributes()
        written = {item["path"] for item in kept}
        uuid = str(self._connection.execute("SELECT uuid FROM project").fetchone()[0])
        system = [
            (path, kind, value)
            for path, (kind, value) in system_attributes(self._run, uuid).items()
            if path not in written and self._keep(path, kind)
        ]
        for kind in [*(item["type"] for item in kept), *(str(kind) for _, kind, _ in system)]:
            self._promised[kind] = self._promised.get(kind, 0) + 1
        for path, kind, value in system:
            self._value(path, kind, value)
        for item in kept:
            path, kind = item["path"], AttributeType(item["type"])
            if kind is AttributeType.FLOAT_SERIES:
                yield from self._floats(item["id"], path, item["points"])
            elif kind in SERIES_TYPES:
                yield from self._objects(item["id"], path, kind, item["points"])
            else:
                (value,) = self._connection.execute(
                    "SELECT value FROM attributes WHERE id = ?", (item["id"],)
                ).fetchone()
                self._value(path, kind, _reference(path, kind, value) if kind in FILE_TYPES else decode(kind, value))
            yield from self._rows.drain()
        yield from self._rows.flush()

    def end(self) -> RunEnd:
        """The mark that ends the run."""
        return RunEnd(self._run.run_id, promised=self._promised, errors=self._errors, notes=self._odd_times.issues())

    def _value(self, path: str, kind: AttributeType, value: object) -> None:
        try:
            self._rows.value(kind, path, value)
        except (ValueError, OverflowError, TypeError) as error:
            self._errors.append(Issue(f"The value of {path!r} cannot be kept: {error}.", path, str(kind)))

    def _attributes(self) -> list[sqlite3.Row]:
        """Return the attributes that are read; what is damaged or missing becomes an error of the run."""
        found = self._connection.execute(_ATTRIBUTES, (self._run.id,)).fetchall()
        (count,) = self._connection.execute("SELECT count(*) FROM attributes WHERE run = ?", (self._run.id,)).fetchone()
        if self._run.attributes not in {None, count}:
            self._damaged(f"The run has {count:,} attributes in the store instead of {self._run.attributes:,}.")
        for item in found:
            if not item["intact"]:
                self._damaged(f"Attribute {item['path']!r} is damaged in the store.", str(item["path"]))
        return [item for item in found if item["intact"] and self._keep(item["path"], item["type"])]

    def _damaged(self, message: str, path: str | None = None, kind: str | None = None) -> None:
        self._errors.append(Issue(f"{message} {RESTORE}", path, kind))

    def _floats(self, identifier: int, path: str, recorded: int | None) -> Iterator[pa.RecordBatch]:
        cursor = self._connection.execute(
            "SELECT step, time, bits, ifnull(checksum, ?) FROM points WHERE attribute = ? ORDER BY step",
            (NOT_RECORDED, identifier),
        )
        count = lost = 0
        ordered = True
        last: int | None = None
        while rows := cursor.fetchmany(_FETCH):
            steps, times, bits, checksums = zip(*rows, strict=True)
            count += len(rows)
            columns = [np.array(column, np.int64) for column in (steps, times, bits, checksums)]
            wrong = damaged_points(identifier, *columns)
            # Whole pages in each other's place: every row is right, and their order is not.
            ordered &= bool((np.diff(columns[0], prepend=last) > 0).all()) if last is not None else True
            ordered &= bool((np.diff(columns[0]) > 0).all())
            last = int(columns[0][-1])
            if wrong.any():
                lost += int(wrong.sum())
                columns = [column[~wrong] for column in columns]
            beyond = self._odd_times.beyond(path, columns[1])
            if beyond is not None:
                values = columns[2][beyond].view(np.float64)
                for step, value in zip(columns[0][beyond].tolist(), values.tolist(), strict=True):
                    self._rows.point(AttributeType.FLOAT_SERIES, path, step, None, value)
                columns = [column[~beyond] for column in columns]
            self._rows.float_series(path, *(array("q", column.tobytes()) for column in columns[:3]))
            yield from self._rows.drain()
        self._count(path, AttributeType.FLOAT_SERIES, count, lost, recorded)
        if not ordered:
            self._damaged(f"The points of {path!r} are out of order in the store.", path)

    def _objects(
        self, identifier: int, path: str, kind: AttributeType, recorded: int | None
    ) -> Iterator[pa.RecordBatch]:
        cursor = self._connection.execute(
            f"SELECT step, time, value, {intact('objects', *OBJECT)} FROM objects"  # noqa: S608 - our own names
            " WHERE attribute = ? ORDER BY step",
            (identifier,),
        )
        count = lost = 0
        last: int | None = None
        for step, time, value, is_intact in cursor:
            count += 1
            if last is not None and step <= last:
                self._damaged(f"The values of {path!r} are out of order in the store.", path, kind)
            last = step
            if not is_intact:
                lost += 1
                continue
            held = time if YEAR_1 <= time < YEAR_10000 else self._odd_times.take(path, time)
            self._rows.point(kind, path, step, held, _object(kind, value))
            yield from self._rows.drain()
        self._count(path, kind, count, lost, recorded)

    def _count(self, path: str, kind: AttributeType, count: int, lost: int, recorded: int | None) -> None:
        if lost:
            self._damaged(f"{lost:,} points of {path!r} are damaged in the store and were left out.", path, kind)
        if recorded not in {None, count}:
            self._damaged(f"{path!r} has {count:,} points in the store instead of {recorded:,}.", path, kind)


def members_of(connection: sqlite3.Connection, run: Run, path: str) -> list[tuple[str, str]] | None:
    """Return (path inside the set, sha256) of each file of a file set; None if the run has no such set."""
    row = connection.execute(
        "SELECT id, value FROM attributes WHERE run = ? AND path = ? AND type = 'file_set'", (run.id, path)
    ).fetchone()
    if row is None:
        return None
    members = connection.execute(
        f"SELECT path, sha256, {intact('file_set_files', *MEMBER)} AS intact FROM file_set_files"  # noqa: S608
        " WHERE attribute = ? ORDER BY path",
        (row["id"],),
    ).fetchall()
    found = [(item["path"], item["sha256"]) for item in members if item["sha256"] is not None]
    if not all(item["intact"] for item in members) or json.loads(row["value"])["files"] != len(found):
        raise FileGoneError(f"The list of the files of {path!r} is damaged in the store.", hint=RESTORE)
    return found


def artifact_files_of(connection: sqlite3.Connection, run: Run, path: str) -> str | None:
    """Return the list of an artifact's files as JSON; None if the run has no such artifact, or no list of it came."""
    row = connection.execute(
        f"SELECT artifacts.files, {intact('artifacts', *ARTIFACT)} AS intact FROM attributes"  # noqa: S608
        " JOIN artifacts ON artifacts.hash = json_extract(value, '$.hash')"
        " WHERE run = ? AND path = ? AND type = 'artifact'",
        (run.id, path),
    ).fetchone()
    if row is not None and not row["intact"]:
        raise FileGoneError(f"The list of the files of artifact {path!r} is damaged in the store.", hint=RESTORE)
    return None if row is None else row["files"]


def _reference(path: str, kind: AttributeType, value: str) -> str:
    return f"{FILE}:{json.loads(value)['path']}" if kind is AttributeType.FILE else f"{MEMBERS}:{path}"


def _object(kind: AttributeType, value: str) -> object:
    if kind is AttributeType.STRING_SERIES:
        return value
    content = json.loads(value)
    if kind is AttributeType.FILE_SERIES:
        return f"{FILE}:{content['path']}"
    return content["type"], content["edges"], content["values"]


class Server:
    """Reads what clients logged to a server of ours."""

    kind = "server"

    def __init__(self, settings: ServerSource, filters: Filters) -> None:
        self._root = Path(settings.store)
        self._selection = Selection(filters)

    def projects(self) -> list[str]:
        """Projects of the store, after filters. Raises SourceError if there is no store."""
        if not (self._root / "projects").is_dir():
            raise SourceError(
                f"There is no store in {self._root}.",
                hint="Start the server once (`python -m neptune_assets.server serve`), or correct source.server.store.",
            )
        return sorted(name for name in existing_projects(self._root) if self._selection.project(name))

    def runs(self, project_id: str, scope: Scope = Scope.RUNS) -> list[RunInfo]:
        """Runs of a project, after filters, sorted by id. Raises UnknownProjectError naming the known projects."""
        if scope is not Scope.RUNS and not self._selection.model_registry:
            return []
        with self._reading(project_id) as connection:
            found = [run for run in _runs(connection) if run.intact and run.scope == scope.value]
        found.sort(key=lambda run: run.run_id)
        return [info for run in found if self._selection.run(info := _info(run))]

    def read(self, project_id: str, run_ids: Sequence[str], scope: Scope = Scope.RUNS) -> Iterator[RunRows | RunEnd]:
        """Read runs one after the other, each in a transaction of its own. Raises UnknownProjectError at once."""
        self._database(project_id)
        for run_id in run_ids:
            try:
                with self._reading(project_id) as connection:
                    run = find_run(connection, run_id, scope.value)
                    if run is None:
                        raise SourceError(
                            f"Run {run_id!r} is no longer in the store.", hint="List the runs again: it was deleted."
                        )
                    reading = RunReading(connection, project_id, run, self._selection.attribute)
                    for batch in reading.batches():
                        yield RunRows(run_id, batch)
                    yield reading.end()
            except (NeptuneAssetsError, sqlite3.Error, ValueError, TypeError, KeyError, OverflowError) as error:
                yield RunEnd(run_id, errors=[Issue(f"The store cannot be read: {error}")])

    def files(self, project_id: str, run_id: str, reference: str, scope: Scope = Scope.RUNS) -> Sequence[SourceFile]:
        """Files behind ``file_value.path`` of a run's row. Raises FileGoneError for what was never uploaded."""
        directory = self._database(project_id).parent
        with self._reading(project_id) as connection:
            kind, _, rest = reference.partition(":")
            if kind != FILE:
                run = find_run(connection, run_id, scope.value)
                members = None if run is None else members_of(connection, run, rest)
                listed = None if run is None else artifact_files_of(connection, run, rest)
                if listed is not None:
                    return [WrittenFile("files_list.json", listed.encode())]
                if members is None:
                    raise FileGoneError(
                        f"Run {run_id!r} no longer has the file set {rest!r}, or a list of what it tracks.",
                        hint="Materialize the project again.",
                    )
                return [StoredFile(name, object_path(directory, digest)) for name, digest in members]
            try:
                found = find_file(connection, rest)
            except DamagedError as error:
                raise FileGoneError(error.message, hint=error.hint) from error
        if found is None:
            raise FileGoneError(
                f"The bytes of {rest!r} never arrived at the server.",
                hint="The script that logged it may still hold them: run `neptune sync` in its folder with the "
                "script's own environment. If pkg_resources is missing there, run `pip install 'setuptools<81'` first.",
            )
        return [StoredFile(file_name(rest, found[1] or ""), object_path(directory, found[0]))]

    def problems(self, project_id: str | None = None) -> Sequence[Issue]:
        """Projects that cannot be read, and runs whose rows are damaged."""
        unreadable: dict[Path, str] = {}
        known = existing_projects(self._root, unreadable)
        issues = [Issue(f"The project in {path} cannot be read: {error}") for path, error in unreadable.items()]
        if project_id in known:
            with self._reading(project_id) as connection:
                runs = _runs(connection)
                (count,) = connection.execute("SELECT runs FROM project").fetchone()
                issues.extend(
                    Issue(f"The row of run {run.run_id!r} is damaged in the store, so the run was not read. {RESTORE}")
                    for run in runs
                    if not run.intact
                )
                if count not in {None, len(runs)}:
                    issues.append(
                        Issue(f"The store has {len(runs):,} runs of {project_id} instead of {count:,}. {RESTORE}")
                    )
        return issues

    def _database(self, project_id: str) -> Path:
        known = {name: path for name, path in existing_projects(self._root).items() if self._selection.project(name)}
        if project_id not in known:
            raise UnknownProjectError(
                f"There is no project {project_id!r} in the store {self._root}.",
                hint=f"Known projects: {', '.join(sorted(known)[:20]) or 'none'}.",
            )
        return known[project_id]

    @contextmanager
    def _reading(self, project_id: str) -> Iterator[sqlite3.Connection]:
        """Lend a connection in which everything is as it was at one moment."""
        try:
            connection = open_reader(self._database(project_id))
        except sqlite3.OperationalError as error:
            raise SourceError(f"The store of {project_id!r} cannot be opened: {error}.", hint="Try again.") from error
        try:
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.close()


def _runs(connection: sqlite3.Connection) -> list[Run]:
    """Return all rows of runs in the order of their table: a damaged index hides none."""
    return [run for row in connection.execute(SELECT_RUN) if (run := run_of(row)) is not None]


def _info(run: Run) -> RunInfo:
    return RunInfo(
        run.run_id,
        fingerprint=f"{run.uuid}:{run.revision}",
        created_at=moment_of(run.created_at),
        modified_at=moment_of(run.modified_at),
        archived=bool(run.archived),
        trashed=bool(run.trashed),
    )
