"""Temporary directories that are removed even if their process is killed.

A process that ends removes its own. One that is killed cannot; so each directory is locked while its process lives, and
the next process that makes one in the same place first removes those that nobody holds any longer.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from types import TracebackType
from typing import Final

PREFIX: Final = "neptune_assets."
"""What the name of every directory begins with, wherever it is."""


class TempDirectory:
    """A new, empty directory below ``parent`` (the system's temporary directory if None), removed by :meth:`close`.

    ``purpose`` is part of its name. A context manager; also removed when it is forgotten or the interpreter ends.
    Raises OSError if it cannot be made.
    """

    def __init__(self, purpose: str, parent: str | Path | None = None) -> None:
        place = _place(parent)
        place.mkdir(parents=True, exist_ok=True)
        sweep(place)
        self.path, descriptor = _locked(f"{PREFIX}{purpose}-", place)
        self._close = weakref.finalize(self, _remove, self.path, descriptor, os.getpid())

    def close(self) -> None:
        """Remove the directory with all in it; nothing happens the second time."""
        self._close()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def sweep(parent: str | Path | None = None) -> list[Path]:
    """Remove the directories of killed processes below ``parent`` (as for :class:`TempDirectory`), and return them.

    What a living process holds stays, and so does what is not ours to remove or on a file system without locks.
    """
    place, removed = _place(parent), []
    if not place.is_dir():
        return []
    with os.scandir(place) as entries:
        ours = [item for item in entries if item.name.startswith(PREFIX) and item.is_dir(follow_symlinks=False)]
    for path in map(Path, ours):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # removed by now, or of another user
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass  # in use, or no locks here
        else:
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
        finally:
            os.close(descriptor)
    return removed


def _place(parent: str | Path | None) -> Path:
    return Path(tempfile.gettempdir() if parent is None else parent)


def _locked(prefix: str, place: Path) -> tuple[Path, int]:
    """Make a directory and lock it; another process may sweep it away in between, then one more is made."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            # A file system without locks: nobody can lock it to sweep it either.
            return path, descriptor
        if path.exists():
            return path, descriptor
        os.close(descriptor)


def _remove(path: Path, descriptor: int, owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked child ends; the directory is its parent's
    # What cannot be removed now, such as a file that is being written, is swept away by the next process.
    shutil.rmtree(path, ignore_errors=True)
    os.close(descriptor)
