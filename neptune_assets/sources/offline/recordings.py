"""What recordings of both clients share: the protocol, refusals, the walk through folders, archives met, files by path.

Does not belong here: any client's file format. Nothing here writes to a recording. Archives are never unpacked, but
reported if recordings are in them: only names are read, within bounds of members and bytes. Kinds that the standard
library cannot list (7z, rar, zst) and archives that are too long or damaged may hold recordings: that is a notice,
which counts if a path holds nothing else.
"""

from __future__ import annotations

import errno
import lzma
import os
import re
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import pyarrow as pa

from neptune_assets.errors import FileGoneError, UnsafePathError
from neptune_assets.schema import Scope
from neptune_assets.sources.files import AllowedRoots, Limits, forbidden_root, spelled
from neptune_assets.sources.offline.client_log import LOG_NAME
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.protocol import SourceFile
from neptune_assets.sources.run_state import RunState


@dataclass(frozen=True, slots=True)
class Refusal:
    """A path that cannot be read as a recording. ``message`` names the path and the next action.

    ``project_id`` is the project if it is known all the same; otherwise every project reports the refusal. ``run_id``
    is the run (of ``scope``) if that is known: it lacks what this path holds, so it is partial. ``notice`` is True if
    nothing is left unread because of it; ``archive`` is True for an archive that was not unpacked.
    """

    path: Path
    message: str
    project_id: str | None = None
    run_id: str | None = None
    scope: Scope = Scope.RUNS
    notice: bool = False
    archive: bool = False


@dataclass(frozen=True, slots=True)
class Fork:
    """Where a run was forked from, and whether it took over the configs its parent had at ``at`` (epoch ms)."""

    parent_project: str
    parent_run_id: str
    inherits: bool
    at: int


class Recording(Protocol):
    """One recording of one run (or model, or model version). Listing one reads little; replaying one streams.

    Several recordings may hold one run (a run that was resumed): they are replayed into one state, in the order of
    ``started_at``. Times are aware UTC datetimes or None.
    """

    @property
    def path(self) -> Path:
        """The folder or file that messages name; unique among recordings."""

    @property
    def project_id(self) -> str:
        """The project, as ``workspace/project``."""

    @property
    def run_id(self) -> str:
        """Id of the run within project and scope."""

    @property
    def scope(self) -> Scope:
        """What was recorded: a run, a model, or a model version."""

    @property
    def created_at(self) -> datetime | None:
        """When the run was created, as the recording tells it; the user may have chosen this time."""

    @property
    def started_at(self) -> datetime | None:
        """When this recording began by the clock of the machine; orders the recordings of one run."""

    @property
    def modified_at(self) -> datetime | None:
        """When the recording was last written to."""

    @property
    def fork(self) -> Fork | None:
        """The fork this run began as, if it is one and the recording still says so."""

    @property
    def size(self) -> int:
        """Bytes of the recording without uploaded files."""

    def fingerprint(self) -> str:
        """A mark that changes whenever what :meth:`replay` gives may have changed; made from cheap file facts only."""

    def replay(self, state: RunState) -> Iterator[pa.RecordBatch]:
        """Apply every operation in order to ``state``; yield ``state.rows.drain()`` whenever batches are ready.

        What is wrong with single operations goes to ``state.error`` and reading goes on. Raises
        :class:`~neptune_assets.errors.NeptuneAssetsError` or OSError if the rest cannot be read; the caller turns
        these into errors of the run.
        """

    def files(self, reference: str) -> Sequence[SourceFile] | None:
        """Files behind a reference :meth:`replay` put into ``file_value.path``; None if another recording holds it.

        Raises FileGoneError if the file it names is gone.
        """


MAX_DEPTH: Final = 64
"""Folders between a path of the settings and the deepest that is searched."""

MAX_FOLDERS: Final = 1_000_000
"""Folders searched below one path of the settings."""


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder met by :func:`walk`: names of its files and of the folders below it, symlinks to either included."""

    path: Path
    files: tuple[str, ...]
    folders: tuple[str, ...]
    special: tuple[str, ...] = ()
    """Names of pipes, sockets, devices, and of links that lead nowhere."""


def walk(root: Path) -> Iterator[Folder | Refusal]:
    """Yield ``root`` and every folder below it, sorted by name; a folder that cannot be listed gives a Refusal.

    Symlinks to folders are followed once: a folder reached a second time, by a loop or otherwise, is passed over.
    The search ends with a Refusal after :data:`MAX_FOLDERS`, and does not go deeper than :data:`MAX_DEPTH`.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [(root, 0)]
    while waiting:
        path, depth = waiting.pop()
        try:
            status = path.stat()
            forbidden = forbidden_root(os.path.realpath(path)) if path.is_symlink() else None
            if forbidden is not None:
                yield Refusal(path, f"{path} leads to {forbidden}, which is never searched. Remove the link.")
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue
            if depth > MAX_DEPTH or len(seen) == MAX_FOLDERS:
                yield _too_much(path, depth)
                if depth > MAX_DEPTH:
                    continue
                return
            seen.add((status.st_dev, status.st_ino))
            files: list[str] = []
            folders: list[str] = []
            special: list[str] = []
            with os.scandir(path) as entries:
                for entry in entries:
                    (folders if entry.is_dir() else files if entry.is_file() else special).append(entry.name)
        except OSError as error:
            yield Refusal(
                path, f"{path} cannot be read: {error.strerror or error}. Give this user the right to read it."
            )
            continue
        files.sort()
        folders.sort()
        yield Folder(path, tuple(files), tuple(folders), tuple(sorted(special)))
        waiting.extend((path / name, depth + 1) for name in reversed(folders))


def _too_much(path: Path, depth: int) -> Refusal:
    deep = f"it is more than {MAX_DEPTH} folders deep"
    why = deep if depth > MAX_DEPTH else f"the search ends after {MAX_FOLDERS:,} folders"
    return Refusal(path, f"{path} was not searched: {why}. Name a folder nearer to it in source.offline.paths.")


FILES_FROM: Final = "source.offline.files_from"


def training_directory(recording: Path) -> Path | None:
    """The directory the training script ran in, as far as can be known: the one that holds ``.neptune``.

    None if the recording is below no ``.neptune``.
    """
    return next((parent.parent.absolute() for parent in recording.parents if parent.name == ".neptune"), None)


def allowed_roots(folders: Iterable[Path], settings: OfflineSource) -> AllowedRoots:
    """Where files may be read that a recording in these folders names: its own directories and what settings allow.

    A recording below no ``.neptune`` was made with a log directory of its own, which takes the place of it.
    """
    own: list[Path] = []
    for folder in folders:
        place = training_directory(folder) or folder.parent.absolute()
        own.extend((folder, place) if place != Path(place.anchor) else (folder,))
    return AllowedRoots([*own, *settings.search_files_in, *settings.files_from], FILES_FROM)


def file_limits(settings: OfflineSource) -> Limits:
    """The settings' limits on files that recordings name."""
    limits = settings.file_limits
    return Limits(limits.files, int(limits.gigabytes * 10**9), limits.seconds)


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """One file, looked for in every place it may be in when it is opened.

    ``relative_path`` is the file's name. ``size`` is what it measured when it was logged, or None if that is not known.
    """

    relative_path: str
    candidates: Sequence[Path]
    size: int | None
    owner: str
    """What names the file, for messages."""
    roots: AllowedRoots
    max_bytes: int

    def open(self) -> BinaryIO:
        """Open the first candidate that is a regular file of the size logged.

        Raises FileGoneError that names the path if there is none, and both sizes if it has changed since;
        UnsafePathError if it is where nothing may be read from.
        """
        other: tuple[Path, int] | None = None
        refused: UnsafePathError | FileGoneError | None = None
        for path in self.candidates:
            try:
                file = self.roots.open(path, self.max_bytes)
            except UnsafePathError as error:
                refused = refused or (error if os.path.lexists(path) else None)
                continue
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno in {errno.EINVAL, errno.EFBIG}:
                    refused = refused or self._refusal(path, error)
                continue
            size = os.fstat(file.fileno()).st_size
            if self.size in {None, size}:
                return file
            file.close()
            other = other or (path, size)
        if other is not None:
            raise FileGoneError(
                f"{other[0]} had {self.size} bytes when {self.owner} logged it and has {other[1]} now: "
                "it is not what was logged.",
                hint="Put the file as it was into a directory listed under source.offline.search_files_in.",
            )
        if refused is not None:
            raise refused
        raise FileGoneError(
            f"{self.candidates[0]}, which {self.owner} logged, is gone or cannot be read.",
            hint="Put it back, or list the directory it is in now under source.offline.search_files_in.",
        )

    def _refusal(self, path: Path, error: OSError) -> FileGoneError:
        if error.errno == errno.EFBIG:
            hint = "Raise source.offline.file_limits.gigabytes to take it."
        else:
            hint = "Put the file that was logged in its place."
        return FileGoneError(f"{path}, which {self.owner} logged, is not read: {error.strerror}.", hint=hint)


def candidates(recorded: str, folders: Iterable[Path]) -> list[Path]:
    """The path as recorded, then a file of the same name in each folder, in whichever Unicode form it has there.

    Names from Windows are understood.
    """
    name = base_name(recorded)
    return [Path(recorded), *(Path(place) for folder in folders if name for place in spelled(folder, [name]))]


def base_name(path: str) -> str:
    """Last part of a path with slashes of either kind; empty if that names no file."""
    name = re.split(r"[/\\]", path)[-1]
    return "" if name in {"", ".", ".."} or "\0" in name else name


_ARCHIVE: Final = re.compile(r".+\.(zip|tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst|lz4|Z)|7z|rar)", re.IGNORECASE)
_MEMBERS: Final = 100_000
_BYTES: Final = 64 * 1024 * 1024
"""Bytes of a tar file that are looked through; they must be unpacked to find the names."""
_SECONDS: Final = 20.0
"""Time for all archives below one path of the settings: there may be thousands that hold other data."""
_NAMED: Final = 20


class Archives:
    """Archives met below one path of the settings."""

    def __init__(self) -> None:
        self._unknown: list[Path] = []
        self._until = time.monotonic() + _SECONDS

    def met(self, folder: Folder) -> Iterator[Refusal]:
        """Yield a Refusal for each archive in a folder that holds recordings, or cannot be read."""
        if ".neptune" in folder.path.parts[:-1]:  # what a recording itself keeps was uploaded by a user
            return
        for name in folder.files:
            if not _ARCHIVE.fullmatch(name):
                continue
            path = folder.path / name
            try:
                status = path.stat()
                late = time.monotonic() > self._until
                found = None if late else _holds_recordings(path, status.st_size, status.st_mtime_ns)
            except OSError as error:
                reason = error.strerror or error
                yield Refusal(path, f"{path} cannot be read: {reason}. Give this user the right to read it.")
                continue
            if found:
                message = f"{path} is an archive with recordings in it, which are not read. Unpack it."
                yield Refusal(path, message, archive=True)
            elif found is None:
                self._unknown.append(path)

    def not_looked_into(self) -> Iterator[Refusal]:
        """Yield one notice of those that may hold recordings, if there are any."""
        if self._unknown:
            named = ", ".join(map(str, self._unknown[:_NAMED]))
            more = f" and {len(self._unknown) - _NAMED:,} more" if len(self._unknown) > _NAMED else ""
            message = (
                f"Archives were met and not looked into to their end: {named}{more}. Unpack what holds recordings."
            )
            yield Refusal(self._unknown[0], message, notice=True, archive=True)


@lru_cache(maxsize=65_536)
def _holds_recordings(path: Path, size: int, modified_ns: int) -> bool | None:
    """True if the names in an archive are those of recordings, None if that cannot be told."""
    if not path.is_file():
        return None
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                return _recorded(islice(names, _MEMBERS)) or (False if len(names) <= _MEMBERS else None)
        with tarfile.open(path, "r|*") as tar:
            return _recorded(_names(tar))
    except _TooLongError:
        return None
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        ValueError,
        NotImplementedError,
    ):
        return None


class _TooLongError(Exception):
    """There is more in an archive than is looked at."""


def _names(archive: tarfile.TarFile) -> Iterator[str]:
    for number, member in enumerate(archive):
        yield member.name
        if number >= _MEMBERS or member.offset_data + member.size > _BYTES:
            raise _TooLongError


def _recorded(names: Iterator[str]) -> bool:
    return any(
        ".neptune" in (parts := name.replace("\\", "/").split("/"))
        or parts[-1] == "run_operations.sqlite3"
        or LOG_NAME.fullmatch(parts[-1]) is not None
        for name in names
    )
