"""What every source can do: list projects, list runs with a cheap change mark, read runs as Arrow batches.

Belongs here: the words that sources and the lake share. Does not belong here: any particular kind of source, and
anything about Dagster. A source never writes to what it reads from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import BinaryIO, Protocol, runtime_checkable

import pyarrow as pa

from neptune_assets.schema import Scope
from neptune_assets.sources.values import printable


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One run as listed, without reading its data.

    ``fingerprint`` changes whenever the run's data may have changed: equal fingerprints mean the run is not read
    again. Times are aware UTC datetimes, or None where listing cannot tell.
    """

    run_id: str
    fingerprint: str
    created_at: datetime | None = None
    modified_at: datetime | None = None
    archived: bool = False
    trashed: bool = False
    size_hint: int = 0
    """Bytes (or any other measure that grows with the work) for progress and time left; 0 if unknown."""


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing wrong with a run or a project: a message that names the thing and the next action, and the attribute.

    ``notice`` counts only in :meth:`Source.problems`: True if nothing was left unread because of it.
    """

    message: str
    attribute_path: str | None = None
    attribute_type: str | None = None
    notice: bool = False

    def __post_init__(self) -> None:
        """Make what names bytes that are not UTF-8 printable: manifests, logs and pages hold UTF-8."""
        for name in ("message", "attribute_path"):
            text = getattr(self, name)
            if text is not None and not text.isascii():
                object.__setattr__(self, name, printable(text))


@dataclass(frozen=True, slots=True)
class RunRows:
    """Some rows of one run, in :data:`neptune_assets.schema.SCHEMA`, in any order.

    ``file_value.path`` holds a reference that :meth:`Source.files` of the same source resolves.
    """

    run_id: str
    batch: pa.RecordBatch


@dataclass(frozen=True, slots=True)
class RunEnd:
    """The last chunk of a run: what the source promised and what went wrong.

    ``promised`` counts the distinct attributes the source says the run has, by attribute type, after filters; None
    where the source cannot tell. ``errors`` make the run partial. ``notes`` are reported and do not. ``repairs``
    counts rows repaired or dropped, by the name of the repair.
    """

    run_id: str
    promised: Mapping[str, int] | None = None
    errors: Sequence[Issue] = ()
    notes: Sequence[Issue] = ()
    repairs: Mapping[str, int] = field(default_factory=dict)


RunChunk = RunRows | RunEnd


class SourceFile(Protocol):
    """One file of a run, opened only when its bytes are wanted."""

    @property
    def relative_path(self) -> str:
        """Path inside a file set with forward slashes; for a single file, its name (the extension matters)."""

    def open(self) -> BinaryIO:
        """Open for streaming. Raises :class:`~neptune_assets.errors.FileGoneError` if the bytes are not there."""


@dataclass(frozen=True, slots=True)
class InPlaceRun:
    """Where a run's own Parquet parts lie, for lakes that copy nothing, and the repairs reading must make."""

    parts: Sequence[str]
    """Absolute paths or URLs, in order."""
    files_root: str
    """What ``file_value.path`` of these parts is relative to."""


class Source(Protocol):
    """A place where runs come from. One object serves one migration; every call may be made again."""

    @property
    def kind(self) -> str:
        """The word that settings use for this kind of source."""

    def projects(self) -> list[str]:
        """Names of all projects after filters, sorted. Raises SourceError if the place cannot be read."""

    def runs(self, project_id: str, scope: Scope = Scope.RUNS) -> list[RunInfo]:
        """Runs (or models, or model versions) of one project after filters, parents not necessarily first.

        Raises UnknownProjectError if there is no such project.
        """

    def read(self, project_id: str, run_ids: Sequence[str], scope: Scope = Scope.RUNS) -> Iterator[RunRows | RunEnd]:
        """Read runs one after the other: some RunRows, then one RunEnd for each run id asked for.

        A run that fails ends with a RunEnd that carries the error, and the next run follows. Memory is bounded by
        settings, not by the size of a run. Batches hold at most about 128 Ki rows.
        """

    def files(self, project_id: str, run_id: str, reference: str, scope: Scope = Scope.RUNS) -> Sequence[SourceFile]:
        """Resolve what ``file_value.path`` of a row of this run holds: one file, or the members of a file set.

        Raises FileGoneError if nothing is there, UnsafePathError if the reference would leave the source's root.
        """

    def problems(self, project_id: str | None = None) -> Sequence[Issue]:
        """What was found and belongs to no run that is read: unreadable parts or recordings, stray files, and so on.

        Without a project, what belongs to none that can be named; it is among every project's problems too, since it
        may be any project's. All but notices name data that was not read: they are logged one by one, the check
        ``everything_read`` fails, and so does the step. Call it after :meth:`projects` or :meth:`runs`.
        """


@runtime_checkable
class ReadsInPlace(Protocol):
    """A source whose runs can stay where they are; its spec declares it."""

    def in_place(self, project_id: str, run_id: str, scope: Scope = Scope.RUNS) -> InPlaceRun | None:
        """Say where the parts of a run are, or None if it has to be copied into the lake."""
