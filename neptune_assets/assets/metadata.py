"""What the UI shows of a materialization: numbers that plot themselves, a sample, a picture of metric curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg
import pyarrow as pa

from neptune_assets import markdown
from neptune_assets.errors import LakeError, SettingsError
from neptune_assets.lake.manifest import RunRecord
from neptune_assets.lake.reader import LakeProject
from neptune_assets.lake.writer import WriteReport
from neptune_assets.markdown import escape
from neptune_assets.migration_settings import Settings
from neptune_assets.plugins import check_installed
from neptune_assets.schema import SCHEMA, Scope
from neptune_assets.sources.protocol import Issue
from neptune_assets.summary.picture import curves, markdown_image, sample
from neptune_assets.summary.tables import Summary, summarize

_SAMPLED_RUNS = 8
_SAMPLED_ROWS = 2_000_000
_MESSAGE = 5_000


def parquet_column_schema() -> dg.TableSchema:
    """Return the lake's columns as Dagster's table schema."""
    return arrow_column_schema(SCHEMA)


def arrow_column_schema(schema: pa.Schema, descriptions: Mapping[str, str] | None = None) -> dg.TableSchema:
    """Return any Arrow schema as Dagster's table schema, with descriptions where given."""
    described = descriptions or {}
    return dg.TableSchema(
        columns=[dg.TableColumn(field.name, str(field.type), described.get(field.name)) for field in schema]
    )


def lake_metadata(report: WriteReport, project: LakeProject, settings: Settings) -> dict[str, Any]:
    """Describe what was written: counts, speed, a sample, a picture, and everything that is not as it should be."""
    records = project.records()
    partial = [record for record in records.values() if not record.complete]
    metadata: dict[str, Any] = {
        "dagster/partition_row_count": sum(record.total_rows for record in records.values()),
        "runs_total": len(records),
        "runs_new": len(report.new),
        "runs_changed": len(report.changed),
        "runs_skipped": len(report.skipped),
        "runs_partial": len(partial),
        "runs_stale": sum(record.stale is not None for record in records.values()),
        "runs_vanished": sum(record.vanished_at is not None for record in records.values()),
        "rows_written": report.total_rows,
        "bytes_written": report.bytes,
        "files_written": report.files,
        "seconds": round(report.seconds, 3),
        "rows_per_second": round(report.rows_per_second),
    }
    if report.failed:
        metadata["failed_runs"] = dg.MetadataValue.md(table(["run", "reason"], sorted(report.failed.items())))
    rows_by_type: dict[str, int] = {}
    for record in records.values():
        for kind, count in record.rows.items():
            rows_by_type[kind] = rows_by_type.get(kind, 0) + count
    metadata.update({f"rows_{kind}": count for kind, count in sorted(rows_by_type.items())})
    if report.repairs:
        metadata["repairs"] = dg.MetadataValue.md(table(["repair", "rows"], sorted(report.repairs.items())))
    issues = [
        (record.run_id, issue.attribute_path or "", issue.message) for record in partial for issue in record.errors
    ]
    if issues:
        metadata["partial_runs"] = dg.MetadataValue.md(table(["run", "attribute", "reason"], issues))
    stale = [(record.run_id, record.stale) for record in records.values() if record.stale is not None]
    if stale:
        metadata["stale_runs"] = dg.MetadataValue.md(table(["run", "why its newer state was not taken"], stale))
    if report.problems:
        metadata["source_problems"] = dg.MetadataValue.md(problem_table(report.problems))
    metadata.update(_sights(project, settings))
    return metadata


def _sights(project: LakeProject, settings: Settings) -> dict[str, Any]:
    latest = project.only(_latest(project.records()))
    try:
        with summarize(latest, settings.summary, settings.lake) as scanned:
            sights = {"sample": dg.MetadataValue.md(sample(scanned))}
            if project.scope is Scope.RUNS:
                sights |= _picture(scanned)
    except LakeError as error:
        # The check `schema` looks at every part and fails; what is only for show must not hide its verdict.
        return {"sample": dg.MetadataValue.md(escape(str(error), 1_000))}
    return sights


def _picture(scanned: Summary) -> dict[str, Any]:
    try:
        check_installed("The picture of metric curves", ("matplotlib", "pillow"), "neptune-assets[ui]")
    except SettingsError as error:
        return {"curves": dg.MetadataValue.md(escape(str(error), 1_000))}
    picture = curves(scanned)
    return {} if picture is None else {"curves": dg.MetadataValue.md(markdown_image(picture))}


def _latest(records: Mapping[str, RunRecord]) -> list[str]:
    """Choose the latest runs for sample and picture; few enough rows that a large project does not wait for them."""
    rows = 0
    chosen: list[str] = []
    for record in sorted(records.values(), key=lambda r: (r.created_at or "", r.run_id), reverse=True):
        rows += record.total_rows
        if chosen and (rows > _SAMPLED_ROWS or len(chosen) == _SAMPLED_RUNS):
            break
        chosen.append(record.run_id)
    return chosen


def table(header: list[str], rows: list[tuple[Any, ...]]) -> str:
    """Return a Markdown table of at most 50 rows; cells are escaped so that no name can break or script it.

    Cells are wide enough for a message with the longest path, so that none is cut.
    """
    return markdown.table(header, rows, more="are in the lake's manifest", width=_MESSAGE)


def problem_table(problems: Iterable[Issue]) -> str:
    """Return a Markdown table of what a source reports of a project as a whole."""
    return table(["where", "problem"], [(issue.attribute_path or "", issue.message) for issue in problems])
