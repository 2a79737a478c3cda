"""Make files survive a power cut while other work goes on: many at once cost little more than one."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from neptune_assets.lake.storage import Storage, sync_directory, sync_file

_TOGETHER: Final = 4
"""Files that are handed over together: waking a thread for each costs more than writing a small one."""
_THREADS: Final = 8
"""Enough for the disk's journal to take many files in one of its commits."""


class Durability:
    """Syncs what is given to :meth:`file` in the background; nothing happens on object stores, which need none."""

    def __init__(self, storage: Storage) -> None:
        self._local = storage.local
        self._pool: ThreadPoolExecutor | None = None
        self._paths: list[str] = []
        self._waiting: list[Future[None]] = []

    def file(self, path: str) -> None:
        """Begin to write a closed local file to the disk."""
        if not self._local:
            return
        self._paths.append(path)
        if len(self._paths) >= _TOGETHER:
            self._begin()

    def wait(self, *directories: str) -> None:
        """Return once all files given so far, and the entries of these directories, are durable. Raises OSError."""
        self._begin()
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            future.result()
        if self._local:
            for directory in directories:
                sync_directory(directory)

    def close(self) -> None:
        """Let go of the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._paths, self._waiting = [], []

    def _begin(self) -> None:
        if not self._paths:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="neptune_assets-sync")
        self._waiting.append(self._pool.submit(_sync_all, self._paths))
        self._paths = []


def _sync_all(paths: list[str]) -> None:
    for path in paths:
        # A file may have been discarded: its run could not be finished, or is as the lake has it.
        with suppress(FileNotFoundError):
            sync_file(path)
