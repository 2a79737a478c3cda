# ruff: noqa: D102 - methods are documented by the protocol that they fulfil
"""A source over tables in memory: a full implementation of the protocol, for tests of everything downstream."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import BinaryIO

import pyarrow as pa

from neptune_assets.errors import FileGoneError, UnknownProjectError
from neptune_assets.schema import SCHEMA, Scope
from neptune_assets.sources.protocol import Issue, RunEnd, RunInfo, RunRows, SourceFile

Content = bytes | Mapping[str, bytes]


@dataclass(frozen=True)
class MemoryFile:
    """A file of a run; ``content`` None means that its bytes are gone."""

    relative_path: str
    content: bytes | None

    def open(self) -> BinaryIO:
        """Open the bytes, or raise FileGoneError."""
        if self.content is None:
            raise FileGoneError(f"{self.relative_path!r} is not there.", hint="Bring it back.")
        return io.BytesIO(self.content)


@dataclass
class TableRun:
    """One run: rows, files by reference, and what its end says. ``fingerprint`` follows the content if left out."""

    table: pa.Table
    files: dict[str, Content | None] = field(default_factory=dict)
    fingerprint: str | None = None
    info: RunInfo | None = None
    promised: Mapping[str, int] | None = None
    errors: Sequence[Issue] = ()
    notes: Sequence[Issue] = ()
    repairs: Mapping[str, int] = field(default_factory=dict)
    ends: bool = True
    """False: the source forgets to say that the run is over."""
    breaks_after: int | None = None
    """Raise OSError after this many batches."""

    def mark(self) -> str:
        """Return the fingerprint."""
        if self.fingerprint is not None:
            return self.fingerprint
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, self.table.schema) as writer:
            writer.write_table(self.table.combine_chunks())
        return sha256(sink.getvalue() + repr(sorted(self.files.items(), key=lambda item: item[0])).encode()).hexdigest()


class TableSource:
    """Projects of runs of tables. ``projects_`` may be changed between materializations."""

    kind = "table"

    def __init__(
        self,
        projects: Mapping[str, Mapping[str, TableRun]],
        *,
        batch_rows: int = 131_072,
        scope: Scope = Scope.RUNS,
        problems: Sequence[Issue] = (),
    ) -> None:
        self.content: dict[str, dict[str, TableRun]] = {name: dict(runs) for name, runs in projects.items()}
        self.batch_rows = batch_rows
        self.scope = scope
        self.reads: list[str] = []
        """Run ids in the order they were read."""
        self._problems = problems

    def projects(self) -> list[str]:
        return sorted(self.content)

    def runs(self, project_id: str, scope: Scope = Scope.RUNS) -> list[RunInfo]:
        runs = self._runs(project_id, scope)
        return [run.info or RunInfo(run_id, run.mark(), size_hint=run.table.nbytes) for run_id, run in runs.items()]

    def read(self, project_id: str, run_ids: Sequence[str], scope: Scope = Scope.RUNS) -> Iterator[RunRows | RunEnd]:
        for run_id in run_ids:
            run = self._runs(project_id, scope)[run_id]
            self.reads.append(run_id)
            for number, batch in enumerate(run.table.to_batches(max_chunksize=self.batch_rows)):
                if run.breaks_after is not None and number >= run.breaks_after:
                    raise OSError(f"reading {run_id} broke off")
                yield RunRows(run_id, batch)
            if run.breaks_after is not None:
                raise OSError(f"reading {run_id} broke off")
            if run.ends:
                yield RunEnd(run_id, run.promised, run.errors, run.notes, run.repairs)

    def files(self, project_id: str, run_id: str, reference: str, scope: Scope = Scope.RUNS) -> Sequence[SourceFile]:
        content = self._runs(project_id, scope)[run_id].files.get(reference)
        if content is None:
            raise FileGoneError(f"File {reference!r} of run {run_id!r} is gone.", hint="Bring it back.")
        if isinstance(content, bytes):
            return [MemoryFile(reference.rsplit("/", 1)[-1], content)]
        return [MemoryFile(name, data) for name, data in content.items()]

    def problems(self, project_id: str | None = None) -> Sequence[Issue]:
        return self._problems

    def _runs(self, project_id: str, scope: Scope) -> dict[str, TableRun]:
        if project_id not in self.content:
            raise UnknownProjectError(f"No project {project_id!r}.", hint="Choose another.")
        return self.content[project_id] if scope is self.scope else {}


def as_table(project_id: str, run_id: str, rows: Sequence[Mapping[str, object]] | pa.Table) -> pa.Table:
    """Return rows as a table in the lake's schema; ids and columns that are not there are filled in."""
    if isinstance(rows, pa.Table):
        ids = {"project_id": project_id, "run_id": run_id}
        for item in SCHEMA:
            if item.name not in rows.schema.names:
                rows = rows.append_column(item, pa.repeat(pa.scalar(ids.get(item.name), item.type), rows.num_rows))
        return rows.select(SCHEMA.names).cast(SCHEMA)
    names = [name for name in SCHEMA.names if name not in {"project_id", "run_id"}]
    columns = {name: [row.get(name) for row in rows] for name in names}
    columns["project_id"], columns["run_id"] = [project_id] * len(rows), [run_id] * len(rows)
    arrays = [pa.array(columns[item.name], item.type) for item in SCHEMA]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)
