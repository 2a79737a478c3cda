"""Files that a recording names by the path they had on the machine that recorded it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from neptune_assets.errors import FileGoneError, UnsafePathError
from neptune_assets.sources.files import AllowedRoots, Limits, spelled
from neptune_assets.sources.offline.settings import OfflineSource

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
