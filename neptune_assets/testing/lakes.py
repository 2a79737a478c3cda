"""Lakes for tests: rows in, a real lake on disk out, written by the lake's own writer.

``make_lake(tmp_path, {"ws/p": {"RUN-1": [*params({"lr": 0.1}), *metric("loss", [1.0, 0.5])]}})`` is all it takes.
A row is a dictionary of columns of the schema; ``_content`` in a file row holds the bytes (or ``{member: bytes}``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from neptune_assets.lake.reader import Lake
from neptune_assets.lake.reports import WriteReport
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import Issue
from neptune_assets.testing.tables import Content, TableRun, TableSource, as_table

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
