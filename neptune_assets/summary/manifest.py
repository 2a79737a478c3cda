"""What the manifest says of a project's runs and files, as DuckDB tables that the summary's SQL joins with the rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from neptune_assets.lake.layout import format_step
from neptune_assets.summary.quoting import identifier, literal, plain_path

if TYPE_CHECKING:
    import duckdb

    from neptune_assets.lake.reader import LakeProject

_STEP: Final = "DECIMAL(18, 6)"
_MANIFEST: Final = {
    "project_id": "VARCHAR",
    "run_id": "VARCHAR",
    "lake_state": "VARCHAR",
    "digest": "VARCHAR",
    "source": "VARCHAR",
    "in_place": "BOOLEAN",
    "parquet_bytes": "BIGINT",
    "errors": "BIGINT",
    "first_error": "VARCHAR",
    "files_root": "VARCHAR",
    "committed_at": "VARCHAR",
    "vanished_at": "VARCHAR",
    "created_at": "VARCHAR",
    "name": "VARCHAR",
    "parent": "VARCHAR",
    "fork_step": _STEP,
}
_FILES: Final = {
    "run_id": "VARCHAR",
    "attribute_path": "VARCHAR",
    "attribute_type": "VARCHAR",
    "step": _STEP,
    "member": "VARCHAR",
    "path": "VARCHAR",
    "size": "BIGINT",
    "sha256": "VARCHAR",
}


def load_manifest(con: duckdb.DuckDBPyConnection, project: LakeProject, scratch: str) -> None:
    """Create the tables ``project`` (one row), ``manifest`` (one row a run) and ``manifest_files`` (one row a file)."""
    _load(con, "manifest_texts", _MANIFEST, _runs(project), scratch)
    con.execute(
        "CREATE TABLE manifest AS SELECT * REPLACE (try_cast(committed_at AS TIMESTAMPTZ) AS committed_at, "
        "try_cast(vanished_at AS TIMESTAMPTZ) AS vanished_at, try_cast(created_at AS TIMESTAMPTZ) AS created_at) "
        "FROM manifest_texts"
    )
    _load(con, "manifest_files", _FILES, _files(project), scratch)
    con.execute(
        "CREATE TABLE project AS SELECT $project_id AS project_id, $digest AS digest",
        {"project_id": project.project_id, "digest": project.digest},
    )


def _runs(project: LakeProject) -> Iterator[dict[str, Any]]:
    lake = project.lake
    files_root = lake.storage.url(lake.layout.files(project.project_id, project.scope))
    for record in project.records().values():
        first = record.errors[0] if record.errors else None
        where = f"{first.attribute_path}: " if first is not None and first.attribute_path else ""
        yield {
            "project_id": project.project_id,
            "run_id": record.run_id,
            "lake_state": record.state,
            "digest": record.digest,
            "source": record.source,
            "in_place": record.in_place is not None,
            "parquet_bytes": sum(part.bytes for part in record.parts),
            "errors": len(record.errors),
            # Messages may quote what is not even text; DuckDB takes nothing but UTF-8.
            "first_error": None if first is None else _printable(where + first.message),
            "files_root": (files_root if record.in_place is None else record.in_place).rstrip("/"),
            "committed_at": record.committed_at,
            "vanished_at": record.vanished_at,
            "created_at": record.created_at,
            "name": record.name,
            "parent": record.parent,
            "fork_step": _step(record.fork_step),
        }


def _files(project: LakeProject) -> Iterator[dict[str, Any]]:
    for record in project.records().values():
        for file in record.files:
            yield {
                "run_id": record.run_id,
                "attribute_path": file.attribute_path,
                "attribute_type": file.attribute_type,
                "step": _step(file.step),
                "member": file.member,
                "path": file.path,
                "size": file.size,
                "sha256": file.sha256,
            }


def _load(
    con: duckdb.DuckDBPyConnection,
    table: str,
    columns: Mapping[str, str],
    rows: Iterator[dict[str, Any]],
    scratch: str,
) -> None:
    # Through a file of JSON: handing Python or Arrow objects over makes DuckDB and Arrow look for pandas, and
    # importing that takes longer than most summaries.
    path = Path(scratch) / f"{table}.jsonl"
    longest = 0
    with path.open("w", encoding="ascii") as file:
        for row in rows:
            longest = max(longest, file.write(json.dumps(row) + "\n"))
    types = ", ".join(f"{identifier(name)}: {literal(kind)}" for name, kind in columns.items())
    con.execute(
        f"CREATE TABLE {identifier(table)} AS FROM read_json({literal(plain_path(str(path)))}, columns = {{{types}}}, "
        f"format = 'newline_delimited', maximum_object_size = {max(longest, 1 << 24)})"
    )


def _step(microsteps: int | None) -> str | None:
    return None if microsteps is None else format_step(microsteps)


def _printable(text: str) -> str:
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")
