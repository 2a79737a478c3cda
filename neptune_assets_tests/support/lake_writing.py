"""Writes one project of a table source into a lake, and reads its rows with the reader and as they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from neptune_assets.lake.layout import safe_name
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.reports import WriteReport
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.schema import SCHEMA
from neptune_assets.settings import LakeSettings
from neptune_assets_tests.support.lake_factory import table_run
from neptune_assets_tests.support.table_source import TableRun, TableSource

P = "ws/proj"


DIRECTORY = "ws_proj-00871eb7ac1bdb01"


def run(rows: Any, run_id: str = "RUN-1", **options: Any) -> TableRun:
    return table_run(P, run_id, rows, **options)


def write(root: Path, source: TableSource, **options: Any) -> WriteReport:
    settings = {key: options.pop(key) for key in ("part_mb", "rows_in_memory", "scratch") if key in options}
    limits = options.pop("limits", None)
    return LakeWriter(LakeSettings(root=str(root), **settings), source, limits=limits).write_project(P, **options)


def rows_of(root: Path, run_id: str = "RUN-1") -> list[dict[str, Any]]:
    project = Lake(LakeSettings(root=str(root))).project(P)
    return pa.Table.from_batches(project.run(run_id).batches(), SCHEMA).to_pylist()


def raw_rows(root: Path, run_id: str = "RUN-1") -> list[dict[str, Any]]:
    """Read the Parquet files as they lie, without anything of ours."""
    paths = sorted((root / "data" / DIRECTORY).glob(f"{safe_name(run_id)}_part_*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]
