"""What writing a project reports: progress while it runs, a report at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from neptune_assets.lake.files import FileStore
from neptune_assets.sources.protocol import Issue, RunInfo


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a materialization is. Sizes are in the source's measure; ``eta`` in seconds, None while unknown."""

    runs_done: int
    runs_total: int
    rows: int
    bytes: int
    size_done: int
    size_total: int
    elapsed: float
    eta: float | None


@dataclass(frozen=True, slots=True)
class RunIssue:
    """One problem of one run."""

    run_id: str
    message: str
    attribute_path: str | None = None
    attribute_type: str | None = None


@dataclass(slots=True)
class WriteReport:
    """What one materialization did. Lists hold run ids; rows count what was
    recorded now, bytes and files what was copied into the lake for it.

    ``new``, ``changed``, ``retried`` (partial before) and ``skipped`` part the runs that the source has, except those
    in ``failed`` (id to message), whose last good version stays. ``partial`` lists the runs of all these that are
    partial now, ``stale`` those whose newer state was read only in part, so that the complete one of before was kept.
    ``unchanged_content`` lists runs that were read and found to be the same.
    """

    project_id: str
    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    retried: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    unchanged_content: list[str] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    deleted_in_source: list[str] = field(default_factory=list)
    reappeared: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    recovered: list[str] = field(default_factory=list)
    """Runs whose interrupted commit was finished before anything else."""
    rows: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    """Bytes of Parquet parts and of files."""
    files: int = 0
    seconds: float = 0.0
    digest: str = ""
    issues: list[RunIssue] = field(default_factory=list)
    repairs: dict[str, int] = field(default_factory=dict)
    problems: Sequence[Issue] = ()

    @property
    def unread(self) -> list[Issue]:
        """Problems that name data which was found and not read."""
        return [issue for issue in self.problems if not issue.notice]

    @property
    def total_rows(self) -> int:
        """Rows written now."""
        return sum(self.rows.values())

    @property
    def rows_per_second(self) -> float:
        """Rows written a second, reading and hashing included."""
        return self.total_rows / self.seconds if self.seconds else 0.0


class Tracker:
    """Counts what is done and reports it, at most twice a second within a run."""

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
