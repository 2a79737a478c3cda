"""The store: one directory for each project, one process that writes, transactions that commit with a new revision."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from neptune_assets import durable
from neptune_assets.errors import LakeBusyError, UnknownProjectError
from neptune_assets.lake.layout import safe_name
from neptune_assets.partitions import validate_project_key
from neptune_assets.server.store.database import (
    DATABASE,
    PROJECT,
    RESTORE,
    DamagedError,
    StoreError,
    intact,
    open_reader,
    open_writer,
    row_of,
)
from neptune_assets.server.store.files import ObjectStore, private_directory
from neptune_assets.server.store.writing import Cache, Writing

_IDLE_READERS: Final = 4
_log = logging.getLogger(__name__)


def now_ms() -> int:
    """Milliseconds since 1970 in UTC."""
    return time.time_ns() // 1_000_000


class Store:
    """All projects below ``root``. Holding one means holding the right to write them: a second process is refused."""

    def __init__(self, root: Path) -> None:
        self.root = root
        private_directory(root)
        private_directory(root / "projects")
        self._lock = _lock(root)
        self._projects: dict[str, ProjectStore] = {}
        self._guard = threading.Lock()
        self._unreadable: dict[str, str] = {}
        for directory in sorted((root / "projects").iterdir()):
            if directory.name.startswith(".deleted-"):
                shutil.rmtree(directory)
                continue
            try:
                if (project := _existing(directory)) is not None:
                    self._projects[project.project_id] = project
            except (StoreError, sqlite3.DatabaseError) as error:
                # The others are served; nobody makes this one anew over what is left of it.
                _log.error("The project in %s cannot be read and is not served: %s", directory, error)
                self._unreadable[directory.name] = str(error)

    def projects(self) -> list[str]:
        """Names of all projects, sorted."""
        return sorted(self._projects)

    def project(
        self, project_id: str, *, create: bool = False, key: str | None = None, last_number: int = 0
    ) -> ProjectStore:
        """Return a project. Raises UnknownProjectError if there is none, unless it is to be made.

        ``key`` is what ids of runs begin with, made of the name if left out; ``last_number`` is the last one that
        runs elsewhere (in the lake) have. Raises SettingsError for names that no project can have.
        """
        found = self._projects.get(project_id)
        if found is not None:
            return found
        if (error := self._unreadable.get(safe_name(project_id))) is not None:
            raise DamagedError(f"Project {project_id!r} cannot be read: {error}", hint=RESTORE)
        if not create:
            raise UnknownProjectError(
                f"There is no project {project_id!r} in the store.", hint="Log a run to it, or create it."
            )
        validate_project_key(project_id)
        with self._guard:
            if project_id not in self._projects:
                directory = self.root / "projects" / safe_name(project_id)
                self._projects[project_id] = _create(directory, project_id, key or default_key(project_id), last_number)
            return self._projects[project_id]

    def delete(self, project_id: str) -> None:
        """Remove a project with all that was logged to it, for good. Raises UnknownProjectError if there is none.

        It is moved out of the way first: whatever happens then, nobody finds half of it.
        """
        project = self.project(project_id)
        with self._guard:
            self._projects.pop(project_id, None)
            project.close()
            gone = self.root / "projects" / f".deleted-{uuid.uuid4().hex}"
            durable.rename(project.directory, gone)
        shutil.rmtree(gone)

    def close(self) -> None:
        """Finish and close everything; waits for a write that is going on."""
        for project in self._projects.values():
            project.close()
        os.close(self._lock)


class ProjectStore:
    """One project: ``read()`` from any thread at any time, ``write()`` one at a time."""

    def __init__(self, directory: Path, project_id: str, uuid_text: str, key: str) -> None:
        self.directory = directory
        self.project_id = project_id
        self.uuid = uuid_text
        self.key = key
        self.objects = ObjectStore(directory)
        self._write_lock = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._readers: list[sqlite3.Connection] = []
        self._cache = Cache()
        self._revision: int | None = None
        self._closed = False

    @property
    def revision(self) -> int:
        """Number of the last commit; runs and attributes carry the revision of their last change."""
        if self._revision is None:
            with self.read() as connection:
                self._revision = int(connection.execute("SELECT revision FROM project").fetchone()[0])
        return self._revision

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Lend a read-only connection (rows are sqlite3.Row), inside one transaction: all of it sees one moment."""
        try:
            connection = self._readers.pop()
        except IndexError:
            connection = open_reader(self.directory / DATABASE)
        try:
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.rollback()
            if len(self._readers) < _IDLE_READERS and not self._closed:
                self._readers.append(connection)
            else:
                connection.close()

    @contextmanager
    def write(self) -> Iterator[Writing]:
        """Hold the right to write inside one transaction; it commits, durably, at the end, or nothing happened.

        The revision grows by one if the Writing was told of a change (all of its methods tell).
        """
        with self._write_lock:
            if self._closed:
                raise StoreError("The store is closed.", hint="Start the server again.")
            if self._writer is None:
                self._writer = open_writer(self.directory / DATABASE)
            connection = self._writer
            connection.execute("BEGIN IMMEDIATE")
            try:
                row = connection.execute("SELECT revision FROM project").fetchone()
                writing = Writing(self.key, connection, self._cache, int(row[0]) + 1, now_ms())
                yield writing
                writing.finish()
                connection.execute("COMMIT")
            except BaseException:
                self._cache.clear()
                connection.rollback()
                raise
            if writing.changed:
                self._revision = writing.revision

    def close(self) -> None:
        """Close connections; the last one folds the write-ahead log into the database."""
        with self._write_lock:
            self._closed = True
            while self._readers:
                self._readers.pop().close()
            if self._writer is not None:
                self._writer.close()
                self._writer = None


def default_key(project_id: str) -> str:
    """The first letters of a project's name, as Neptune makes keys."""
    letters = re.sub(r"[^A-Z0-9]", "", project_id.rsplit("/", 1)[-1].upper()).lstrip("0123456789")
    return letters[:6] or "RUN"


def existing_projects(root: Path, unreadable: dict[Path, str] | None = None) -> dict[str, Path]:
    """Databases of all projects below a store, by name; needs no lock, for other processes to read from.

    Those that cannot be read are put into ``unreadable``, with why.
    """
    found: dict[str, Path] = {}
    base = root / "projects"
    for directory in sorted(base.iterdir()) if base.is_dir() else ():
        path = directory / DATABASE
        if directory.name.startswith(".deleted-") or not _begun(directory):
            continue
        try:
            connection = open_reader(path)
            try:
                project_id, _, _ = _heading(connection, directory)
            finally:
                connection.close()
        except (StoreError, sqlite3.DatabaseError) as error:
            if unreadable is not None:
                unreadable[path] = str(error)
            continue
        found[project_id] = path
    return found


def _begun(directory: Path) -> bool:
    """False if a project's making was cut short, or goes on at this moment: its first tables come before all else."""
    path = directory / DATABASE
    if (directory / "objects").is_dir():
        return True
    if not path.is_file() or path.stat().st_size == 0:
        return False
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'project'").fetchone() is not None
    except sqlite3.OperationalError:
        return False  # Its first transaction is not finished.
    except sqlite3.DatabaseError:
        return True
    finally:
        connection.close()


def _heading(connection: sqlite3.Connection, directory: Path) -> tuple[str, str, str]:
    """Return name, uuid and key of the project in a directory. Raises DamagedError if they are not what was written."""
    query = f"SELECT project_id, uuid, key, {intact('project', *PROJECT)} FROM project"  # noqa: S608 - our own names
    project_id, uuid_text, key, is_intact = connection.execute(query).fetchone()
    if not is_intact or safe_name(str(project_id)) != directory.name:
        raise DamagedError(f"The row that names the project in {directory} is damaged.", hint=RESTORE)
    return str(project_id), str(uuid_text), str(key)


def _create(directory: Path, project_id: str, key: str, last_number: int) -> ProjectStore:
    durable.make_directory(directory, mode=0o700)

    def first_row(connection: sqlite3.Connection) -> None:
        connection.execute(
            "INSERT INTO project (project_id, uuid, key, created_at, checksum, last_number) VALUES (?, ?, ?, ?, ?, ?)",
            (*row_of(project_id, str(uuid.uuid4()), key, now_ms()), last_number),
        )

    open_writer(directory / DATABASE, first_row).close()
    project = _existing(directory)
    if project is None or project.project_id != project_id:
        raise StoreError(f"Project {project_id!r} cannot be made in {directory}.", hint="Look what is there.")
    return project


def _existing(directory: Path) -> ProjectStore | None:
    """The project in a directory; None if its making was cut short."""
    if not _begun(directory):
        return None
    reader = open_reader(directory / DATABASE)
    try:
        heading = _heading(reader, directory)
    finally:
        reader.close()
    # A store of an older version is brought up to date before anybody reads it.
    open_writer(directory / DATABASE).close()
    return ProjectStore(directory, *heading)


def _lock(root: Path) -> int:
    descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", errors="replace").strip()
        os.close(descriptor)
        raise LakeBusyError(
            f"The store {root} is served by process {holder or '?'} already.",
            hint="Stop that server first, or give this one a store of its own.",
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode("ascii"), 0)
    return descriptor
