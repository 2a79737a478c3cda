"""Opens a made export as a source, and reads one of its runs whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from neptune_assets.schema import SCHEMA, Scope
from neptune_assets.settings import Filters
from neptune_assets.sources.export.settings import ExportSource
from neptune_assets.sources.export.source import Export
from neptune_assets.sources.protocol import Issue, RunEnd, RunRows
from neptune_assets_tests.support.export_factory import ExportFactory

PROJECT = "ws/proj"


def source(factory: ExportFactory, filters: dict[str, Any] | None = None, **given: Any) -> Export:
    roots = {"data": factory.data, "files": factory.files}
    if factory.model_data.exists():
        roots |= {"model_data": factory.model_data, "model_files": factory.model_files}
    chosen = {name: str(path) for name, path in roots.items()} | given
    return Export(ExportSource(**chosen), Filters.model_validate(filters or {}))


def read(export: Export, run_id: str, project: str = PROJECT, scope: Scope = Scope.RUNS) -> tuple[pa.Table, RunEnd]:
    chunks = list(export.read(project, [run_id], scope))
    ends = [chunk for chunk in chunks if isinstance(chunk, RunEnd)]
    assert len(ends) == 1
    assert chunks[-1] is ends[0]
    assert {chunk.run_id for chunk in chunks} == {run_id}
    batches = [chunk.batch for chunk in chunks if isinstance(chunk, RunRows)]
    assert all(batch.schema.equals(SCHEMA) for batch in batches)
    assert all(0 < batch.num_rows <= 131_072 for batch in batches)
    return pa.Table.from_batches(batches, SCHEMA), ends[0]


def rows(table: pa.Table, path: str) -> list[dict[str, Any]]:
    return [row for row in table.to_pylist() if row["attribute_path"] == path]


def messages(issues: Iterable[Issue]) -> str:
    return "\n".join(issue.message for issue in issues)
