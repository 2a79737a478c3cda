"""How far the lake's writer is, for whoever wants to be told."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from neptune_assets.lake.files import FileStore
from neptune_assets.lake.reports import Progress, WriteReport
from neptune_assets.sources.protocol import RunInfo


class Tracker:
    """Counts what is done and tells the caller, at most twice a second within a run."""

    def __init__(
        self,
        report: WriteReport,
        files: FileStore,
        infos: dict[str, RunInfo],
        todo: list[str],
        call: Callable[[Progress], None] | None,
        started: float,
    ) -> None:
        self._report = report
        self._files = files
        self._sizes = {run_id: infos[run_id].size_hint for run_id in todo}
        self._call = call
        self._started = started
        self._size_total = sum(self._sizes.values())
        self._size_done = 0
        self._runs_done = 0
        self._last = 0.0

    def tick(self, rows: int) -> None:
        """Some rows of the current run were read."""
        if self._call is not None and time.monotonic() - self._last > 0.5:
            self._tell(rows)

    def done(self, run_id: str) -> None:
        """A run is finished, well or not."""
        self._runs_done += 1
        self._size_done += self._sizes[run_id]
        self._tell(0)

    def finished(self) -> None:
        """All is done and committed: rows and bytes are complete now."""
        if self._sizes:
            self._tell(0)

    def _tell(self, rows: int) -> None:
        if self._call is None:
            return
        self._last = time.monotonic()
        elapsed = self._last - self._started
        share: Any = None
        if self._size_total:
            share = self._size_done / self._size_total
        elif self._sizes:
            share = self._runs_done / len(self._sizes)
        self._call(
            Progress(
                runs_done=self._runs_done,
                runs_total=len(self._sizes),
                rows=self._report.total_rows + rows,
                bytes=self._report.bytes,
                size_done=self._size_done,
                size_total=self._size_total,
                elapsed=elapsed,
                eta=elapsed * (1 - share) / share if share else None,
            )
        )
