"""What writing a project tells: progress while it runs, a report at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from neptune_assets.sources.protocol import Issue


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
    """One thing that is not as it should be with one run."""

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
    vanished: list[str] = field(default_factory=list)
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
