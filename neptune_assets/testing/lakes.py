"""Lakes for tests: rows in, a real lake on disk out, written by the lake's own writer.

``make_lake(tmp_path, {"ws/p": {"RUN-1": [*params({"lr": 0.1}), *metric("loss", [1.0, 0.5])]}})`` is all it takes.
A row is a dictionary of columns of the schema; ``_content`` in a file row holds the bytes (or ``{member: bytes}``).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import pyarrow as pa

from neptune_assets.errors import FileGoneError, UnknownProjectError
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.reports import WriteReport
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.schema import SCHEMA, Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import Issue, RunEnd, RunInfo, RunRows, SourceFile

# ruff: noqa: D102 - methods are documented by the protocol that they fulfil


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


Row = dict[str, Any]
Rows: TypeAlias = "Sequence[Row] | pa.Table"
START = datetime(2025, 1, 1, tzinfo=UTC)


def param(path: str, value: Any, kind: str | None = None) -> Row:
    """Return the row of one parameter; its type follows the Python value unless ``kind`` says otherwise."""
    if kind is None:
        if isinstance(value, bool):
            kind = "bool"
        elif isinstance(value, int):
            kind = "int"
        elif isinstance(value, float):
            kind = "float"
        elif isinstance(value, str):
            kind = "string"
        elif isinstance(value, datetime):
            kind = "datetime"
        else:
            kind, value = "string_set", list(value)
    return {"attribute_path": path, "attribute_type": kind, f"{kind}_value": value}


def params(values: Mapping[str, Any]) -> list[Row]:
    """Return rows of parameters."""
    return [param(path, value) for path, value in values.items()]


def _series(
    path: str, kind: str, column: str, values: Sequence[Any], steps: Sequence[Any] | None, start: datetime | None
) -> list[Row]:
    steps = range(len(values)) if steps is None else steps
    return [
        {
            "attribute_path": path,
            "attribute_type": kind,
            "step": Decimal(str(step)),
            "timestamp": None if start is None else start + timedelta(seconds=number),
            column: value,
        }
        for number, (step, value) in enumerate(zip(steps, values, strict=True))
    ]


def metric(
    path: str, values: Sequence[float | None], steps: Sequence[Any] | None = None, start: datetime | None = START
) -> list[Row]:
    """Return the points of a float series, one a second from ``start``; steps 0, 1, 2 ... unless given."""
    return _series(path, "float_series", "float_value", values, steps, start)


def texts(
    path: str, values: Sequence[str], steps: Sequence[Any] | None = None, start: datetime | None = START
) -> list[Row]:
    """Return the lines of a string series."""
    return _series(path, "string_series", "string_value", values, steps, start)


def histograms(
    path: str,
    values: Sequence[tuple[Sequence[float], Sequence[float]]],
    steps: Sequence[Any] | None = None,
    start: datetime | None = START,
    kind: str = "COUNTING",
) -> list[Row]:
    """Return a histogram series from (edges, values) pairs."""
    items = [{"type": kind, "edges": list(edges), "values": list(counts)} for edges, counts in values]
    return _series(path, "histogram_series", "histogram_value", items, steps, start)


def file(path: str, content: Content | None, name: str | None = None, kind: str = "file") -> Row:
    """Return a file row with its bytes; ``name`` is the file's name, which gives the extension. None: bytes gone."""
    reference = f"{path}/{name}" if name else path
    return {"attribute_path": path, "attribute_type": kind, "file_value": {"path": reference}, "_content": content}


def files(
    path: str,
    contents: Sequence[bytes],
    steps: Sequence[Any] | None = None,
    start: datetime | None = START,
    extension: str = "bin",
) -> list[Row]:
    """Return a file series with its bytes."""
    items = [{"path": f"{path}/{number}.{extension}"} for number in range(len(contents))]
    rows = _series(path, "file_series", "file_value", items, steps, start)
    for row, content in zip(rows, contents, strict=True):
        row["_content"] = content
    return rows


def file_set(path: str, members: Mapping[str, bytes]) -> Row:
    """Return a file set row with the bytes of its members."""
    return file(path, dict(members), kind="file_set")


def table_run(project_id: str, run_id: str, rows: Rows, **options: Any) -> TableRun:
    """Return one run of a :class:`TableSource`; ``options`` are fields of TableRun."""
    contents: dict[str, Content | None] = dict(options.pop("files", {}))
    if not isinstance(rows, pa.Table):
        for row in rows:
            if "_content" in row:
                contents[row["file_value"]["path"]] = row["_content"]
    return TableRun(as_table(project_id, run_id, rows), files=contents, **options)


def make_source(
    projects: Mapping[str, Mapping[str, Rows]],
    *,
    partial: Mapping[tuple[str, str], str] | None = None,
    scope: Scope = Scope.RUNS,
) -> TableSource:
    """Return a source over rows; ``partial`` maps (project, run) to an error that makes the run partial."""
    broken = partial or {}
    return TableSource(
        {
            project_id: {
                run_id: table_run(
                    project_id,
                    run_id,
                    rows,
                    errors=[Issue(broken[project_id, run_id])] if (project_id, run_id) in broken else (),
                )
                for run_id, rows in runs.items()
            }
            for project_id, runs in projects.items()
        },
        scope=scope,
    )


def write_lake(settings: LakeSettings, source: TableSource, scope: Scope = Scope.RUNS) -> dict[str, WriteReport]:
    """Materialize all projects of a source; returns the reports by project."""
    writer = LakeWriter(settings, source, scope)
    return {project_id: writer.write_project(project_id) for project_id in source.projects()}


def make_lake(
    root: Path | str,
    projects: Mapping[str, Mapping[str, Rows]],
    *,
    partial: Mapping[tuple[str, str], str] | None = None,
    scope: Scope = Scope.RUNS,
    settings: LakeSettings | None = None,
) -> Lake:
    """Write rows into a lake at ``root`` and open it. Called again, it brings the lake up to date."""
    settings = settings or LakeSettings(root=str(root))
    write_lake(settings, make_source(projects, partial=partial, scope=scope), scope)
    return Lake(settings)


def forget_hashes(root: Path) -> None:
    """Rewrite the manifests below a lake's local root as they were before parts and manifests were hashed."""
    for path in root.rglob(".manifest/*.jsonl"):
        header, *records = (json.loads(line) for line in path.read_text("ascii").splitlines())
        header["format"] = "neptune_assets.manifest/1"
        records = [record for record in records if "run_id" in record]
        for line in (header, *records):
            line.pop("sum", None)
            for part in line.get("parts", ()):
                part.pop("sha256", None)
        path.write_text("".join(json.dumps(line) + "\n" for line in (header, *records)), "ascii")
