"""Files and names that survive a power cut: every fsync of the package, and every file that is replaced as a whole.

After a cut a file has the bytes it had when it was last synced, and of what was written later anything; a directory has
the names it had when it was last synced, and of later changes any. So bytes are synced before they get a name that
somebody trusts, and the directory before it is reported. What is assumed of a file system is in docs/durability.md.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

_TOGETHER: Final = 4
"""Files that are handed over together: waking a thread for each costs more than writing a small one."""
_THREADS: Final = 8
"""Enough for the disk's journal to take many files in one of its commits."""

_kept: set[tuple[str, int, int]] = set()
"""Directories whose names this process has put on the disk: path, device and inode."""


def sync(path: str | Path) -> None:
    """Put the bytes of a file, or the names in a directory, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Put everything in and below a directory on the disk; not the directory's own name."""
    with SyncPool() as pool:
        for base, _, names in os.walk(directory):
            for name in names:
                pool.file(f"{base}/{name}")
            pool.directory(base)
        pool.wait()


def make_directory(path: str | Path, *, mode: int = 0o777) -> None:
    """Make a directory and its parents, and put their names on the disk.

    The name of one that is there already is put there once: the process that made it may have been killed too early.
    """
    directory = Path(path)
    if directory.is_dir():
        state = directory.stat()
        known = (str(directory), state.st_dev, state.st_ino)
        if known in _kept:
            return
        # A parent that only others may list, such as that of a mounted volume, is not ours to sync.
        with suppress(PermissionError):
            sync(directory.parent)
    else:
        make_directory(directory.parent, mode=mode)
        directory.mkdir(mode, exist_ok=True)
        sync(directory.parent)
        state = directory.stat()
        known = (str(directory), state.st_dev, state.st_ino)
    _kept.add(known)


def write(path: str | Path, data: bytes, *, exclusive: bool = False, mode: int = 0o666) -> bool:
    """Write a small file as a whole: readers see the old one or the new one, and it is on the disk on return.

    ``exclusive`` leaves a file that is there alone and returns False.
    """
    target = Path(path)
    make_directory(target.parent)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if exclusive:
            try:
                # A link fails if the name is taken, and unlike O_EXCL never shows a half-written file.
                os.link(temporary, target)
            except FileExistsError:
                return False
        else:
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync(target.parent)
    return True


def put(temporary: str | Path, path: str | Path) -> None:
    """Give a finished file its final name, in the place of any other; bytes and name are on the disk on return."""
    make_directory(Path(path).parent)
    sync(temporary)
    rename(temporary, path)


def rename(source: str | Path, target: str | Path) -> None:
    """Rename a file or directory whose content is on the disk; its new name is there too on return."""
    Path(source).replace(target)
    sync(Path(target).parent)


class SyncPool:
    """Syncs files in the background while others are written: many at once cost little more than one."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._files: list[str] = []
        self._directories: dict[str, None] = {}
        self._waiting: list[Future[None]] = []

    def file(self, path: str) -> None:
        """Begin to put the bytes of a closed file on the disk. It may be removed again before that is done."""
        self._files.append(path)
        if len(self._files) >= _TOGETHER:
            self._begin(self._files)
            self._files = []

    def directory(self, *paths: str) -> None:
        """Have :meth:`wait` put the names in these directories on the disk, each directory once."""
        self._directories.update(dict.fromkeys(paths))

    def wait(self) -> None:
        """Return once everything given so far is on the disk. Raises OSError."""
        files, directories = self._files, list(self._directories)
        self._files, self._directories = [], {}
        if self._pool is None and len(files) + len(directories) <= 2 * _TOGETHER:
            _sync_all((*files, *directories))
            return
        self._begin(files)
        for start in range(0, len(directories), _TOGETHER):
            self._begin(directories[start : start + _TOGETHER])
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            future.result()

    def close(self) -> None:
        """Let go of the threads and of what was not waited for."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._files, self._directories, self._waiting = [], {}, []

    def __enter__(self) -> SyncPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, paths: list[str]) -> None:
        if not paths:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="neptune_assets-sync")
        self._waiting.append(self._pool.submit(_sync_all, paths))


def _sync_all(paths: Iterable[str]) -> None:
    for path in paths:
        # It may have been discarded: its run could not be finished, or is as the lake has it.
        with suppress(FileNotFoundError):
            sync(path)
