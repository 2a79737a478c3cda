"""What recordings of both clients have in common: one folder, one run, replayed into a :class:`RunState`.

Belongs here: the protocol between :mod:`.source` and the two kinds of recording, refusals, and the walk through
folders. Does not belong here: any client's file format. Nothing here writes to a recording.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

import pyarrow as pa

from neptune_assets.schema import Scope
from neptune_assets.sources.files import forbidden_root
from neptune_assets.sources.offline.state import RunState
from neptune_assets.sources.protocol import SourceFile


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
    bound = f"lies more than {MAX_DEPTH} folders deep" if depth > MAX_DEPTH else f"comes after {MAX_FOLDERS:,} folders"
    return Refusal(path, f"{path} {bound} and was not searched. Name a folder nearer to it in source.offline.paths.")
