"""Files that a recording names by the path they had on the machine that recorded it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from neptune_assets.errors import FileGoneError


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

    def open(self) -> BinaryIO:
        """Open the first candidate that is a regular file of the size logged.

        Raises FileGoneError naming the path if there is none, and naming both sizes if it has changed since.
        """
        other: tuple[Path, int] | None = None
        for path in self.candidates:
            try:
                # A pipe would block on opening and a device never end: look before opening, and again after.
                if not stat.S_ISREG(path.stat().st_mode):
                    continue
                file = path.open("rb")
            except (OSError, ValueError):
                continue
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and self.size in {None, status.st_size}:
                return file
            file.close()
            other = other or (path, status.st_size)
        if other is not None:
            raise FileGoneError(
                f"{other[0]} had {self.size} bytes when {self.owner} logged it and has {other[1]} now: "
                "it is not what was logged.",
                hint="Put the file as it was into a directory listed under source.offline.search_files_in.",
            )
        raise FileGoneError(
            f"{self.candidates[0]}, which {self.owner} logged, is gone or cannot be read.",
            hint="Put it back, or list the directory it is in now under source.offline.search_files_in.",
        )


def candidates(recorded: str, folders: Iterable[Path]) -> list[Path]:
    """The path as recorded, then a file of the same name in each folder. Names from Windows are understood."""
    name = base_name(recorded)
    return [Path(recorded), *(folder / name for folder in folders if name)]


def base_name(path: str) -> str:
    """Last part of a path with slashes of either kind; empty if that names no file."""
    name = re.split(r"[/\\]", path)[-1]
    return "" if name in {"", ".", ".."} or "\0" in name else name
