"""Looks now and then, while the server runs, for bytes that nothing names any more, in every project of the store."""

from __future__ import annotations

import logging
import sqlite3
import threading
from typing import Final

from neptune_assets.errors import NeptuneAssetsError
from neptune_assets.server.store.files import Unused, remove_unused
from neptune_assets.server.store.projects import Store, now_ms

_log = logging.getLogger(__name__)
_SECONDS: Final = 3_600.0
_DAY_MS: Final = 86_400_000


class Cleaning:
    """A thread of its own; :meth:`stop` waits for a look that is going on."""

    def __init__(self, store: Store, unused_days: int, seconds: float = _SECONDS) -> None:
        self._store = store
        self._kept_ms = unused_days * _DAY_MS
        self._seconds = seconds
        self._found: dict[str, Unused] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cleaning", daemon=True)

    def start(self) -> None:
        """Begin; the first look is at once."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> int:
        """Look at all projects, remove what was unused at the last look already, and return the bytes removed."""
        total = 0
        for name in self._store.projects():
            if self._stopped.is_set():
                break
            try:
                project = self._store.project(name)
                before = self._found.get(name, Unused())
                self._found[name], removed = remove_unused(project, before, now_ms() - self._kept_ms)
            except (NeptuneAssetsError, OSError, sqlite3.Error):
                # A project that is being deleted, or a full disk: the others are looked at, and this one next time.
                _log.exception("Unused bytes of project %s could not be removed.", name)
                continue
            if removed:
                _log.info("Removed %s bytes of project %s that nothing names any more.", f"{removed:,}", name)
            total += removed
        return total

    def _run(self) -> None:
        self.look()
        while not self._stopped.wait(self._seconds):
            self.look()
