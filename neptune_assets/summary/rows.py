"""The rows of a project as SQL: its Parquet parts, and the repairs that runs read in place need.

Runs whose parts lie in the lake were repaired when they were copied. An export read in place is as it always was, so
the repairs that :mod:`neptune_assets.lake.repair` makes on Arrow batches are said here in SQL, for scans and views.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from neptune_assets.lake.layout import format_step
from neptune_assets.lake.repair import (
    CONFLICTING_ROWS,
    DUPLICATE_ROWS,
    NAN_VALUES,
    PHANTOM_ROWS,
    TIMEZONE,
    TIMEZONE_SHIFT_MS,
)
from neptune_assets.schema import FILE_TYPES, PARAMETER_TYPES, SCHEMA, SERIES_TYPES, VALUE_COLUMN, AttributeType
from neptune_assets.summary.sql import identifier, literal, literals, parquet, parquet_of, plain_path

if TYPE_CHECKING:
    import duckdb

    from neptune_assets.lake.manifest import RunRecord
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


MAX_PARTS: Final = 256
"""Parts read by one statement: bounds the text, the open files and the groups in memory."""

MAX_ROWS: Final = 32_000_000
"""Rows read by one statement, unless a single run has more."""

SQL_TYPES: Final[Mapping[str, str]] = {
    "project_id": "VARCHAR",
    "run_id": "VARCHAR",
    "attribute_path": "VARCHAR",
    "attribute_type": "VARCHAR",
    "step": "DECIMAL(18, 6)",
    "timestamp": "TIMESTAMPTZ",
    "int_value": "BIGINT",
    "float_value": "DOUBLE",
    "string_value": "VARCHAR",
    "bool_value": "BOOLEAN",
    "datetime_value": "TIMESTAMPTZ",
    "string_set_value": "VARCHAR[]",
    "file_value": "STRUCT(path VARCHAR)",
    "histogram_value": 'STRUCT("type" VARCHAR, edges DOUBLE[], "values" DOUBLE[])',
}

COLUMN_NAMES: Final = ", ".join(identifier(name) for name in SCHEMA.names)
"""The lake's columns, quoted, in order."""


@dataclass(frozen=True, slots=True)
class Repairs:
    """What has to be done to the rows of a run on reading, as its record says."""

    in_place: bool = False
    phantoms: bool = False
    nans: bool = False
    duplicates: bool = False
    shift_ms: int = 0
    zone: str | None = None

    @classmethod
    def of(cls, record: RunRecord) -> Repairs:
        """Read them from a run's record; none for runs that were copied into the lake."""
        if record.in_place is None:
            return cls()
        repairs = record.repairs
        zones = [name.removeprefix(TIMEZONE) for name in repairs if name.startswith(TIMEZONE)]
        return cls(
            in_place=True,
            phantoms=bool(repairs.get(PHANTOM_ROWS)),
            nans=bool(repairs.get(NAN_VALUES)),
            duplicates=bool(repairs.get(DUPLICATE_ROWS) or repairs.get(CONFLICTING_ROWS)),
            shift_ms=repairs.get(TIMEZONE_SHIFT_MS, 0),
            zone=zones[0] if zones else None,
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """Some runs of a project that are read by one statement: their parts in order and their repairs."""

    parts: tuple[str, ...]
    repairs: Repairs

    def sql(self, empty_part: str) -> str:
        """Return a SELECT of these rows in the lake's columns.

        ``empty_part`` is the pattern, as constant SQL, of a Parquet file in the lake's schema without rows: old exports
        may lack columns, which it supplies.
        """
        if not self.repairs.in_place:
            # Explicit paths, never a glob: the manifest says which parts count.
            return f"SELECT {COLUMN_NAMES} FROM {parquet(plain_path(part) for part in self.parts)}"  # noqa: S608
        return _repaired(self.parts, self.repairs, empty_part)


def project_rows(project: LakeProject, run_ids: Collection[str] | None = None) -> Iterator[Rows]:
    """Yield the rows of a project in groups of a bounded number of parts and rows, alike in their repairs.

    All runs, or those of ``run_ids``.
    """
    parts = project.parts()
    groups: dict[Repairs, list[str]] = {}
    sizes: dict[Repairs, int] = {}
    for run_id, record in project.records().items():
        if run_ids is not None and run_id not in run_ids:
            continue
        repairs = Repairs.of(record)
        files, size = groups.setdefault(repairs, []), sum(part.rows for part in record.parts)
        if files and (len(files) + len(parts[run_id]) > MAX_PARTS or sizes[repairs] + size > MAX_ROWS):
            yield Rows(tuple(files), repairs)
            files.clear()
            sizes[repairs] = 0
        files.extend(parts[run_id])
        sizes[repairs] = sizes.get(repairs, 0) + size
    for repairs, files in groups.items():
        if files:
            yield Rows(tuple(files), repairs)


def _repaired(parts: Sequence[str], repairs: Repairs, empty_part: str) -> str:
    patterns = [empty_part, *(literal(plain_path(path)) for path in parts)]
    source = parquet_of(patterns, union_by_name=True, filenames=True, rows=True)
    columns = [f"CAST({identifier(name)} AS {kind}) AS {identifier(name)}" for name, kind in SQL_TYPES.items()]
    # Where the first of two equal keys lies matters when duplicates are resolved; file_row_number alone is not enough.
    order = f"list_position({literals(parts)}, filename) AS part_number" if repairs.duplicates else "0 AS part_number"
    sql = f"SELECT {', '.join(columns)}, {order}, file_row_number FROM {source}"  # noqa: S608
    replaced = []
    if repairs.nans:
        replaced.append(
            f"CASE WHEN attribute_type = {literal(AttributeType.FLOAT_SERIES)} AND float_value IS NULL "
            "AND \"timestamp\" IS NOT NULL THEN 'nan'::DOUBLE ELSE float_value END AS float_value"
        )
    moment = '"timestamp"'
    if repairs.shift_ms:
        moment = f"({moment} + to_milliseconds({repairs.shift_ms}))"
    if repairs.zone is not None:
        moment = f"make_timestamptz({local_to_utc(f'epoch_us({moment})', repairs.zone)})"
    if moment != '"timestamp"':
        replaced.append(f'CASE WHEN "timestamp" IS NOT NULL THEN {moment} END AS "timestamp"')
    if replaced:
        sql = f"SELECT * REPLACE ({', '.join(replaced)}) FROM ({sql})"  # noqa: S608
    if repairs.phantoms:
        sql = f"SELECT * FROM ({sql}) WHERE NOT ({_phantom()})"  # noqa: S608
    if repairs.duplicates:
        sql = (
            f"SELECT * FROM ({sql}) QUALIFY row_number() OVER ("  # noqa: S608
            "PARTITION BY run_id, attribute_path, attribute_type, "
            f"CASE WHEN attribute_type IN ({', '.join(map(literal, sorted(SERIES_TYPES)))}) THEN step END "
            'ORDER BY step DESC NULLS LAST, "timestamp" DESC NULLS LAST, part_number DESC, file_row_number DESC) = 1'
        )
    return f"SELECT {COLUMN_NAMES} FROM ({sql})"  # noqa: S608


def _phantom() -> str:
    """Return the condition that a row of a parameter or file has no value, and so says nothing."""
    conditions = []
    kinds = PARAMETER_TYPES | FILE_TYPES - {AttributeType.FILE_SERIES}
    for column in sorted({VALUE_COLUMN[kind] for kind in kinds}):
        of_column = sorted(kind for kind in kinds if VALUE_COLUMN[kind] == column)
        value = "file_value.path" if column == "file_value" else column
        conditions.append(f"(attribute_type IN ({', '.join(map(literal, of_column))}) AND {value} IS NULL)")
    return " OR ".join(conditions)


def local_to_utc(microseconds: str, zone: str) -> str:
    """Return SQL that turns a zone's local time into UTC, both in microseconds since 1970.

    ``microseconds`` is an SQL expression. Where a clock hour occurs twice the first is taken; a time that the clock
    skipped becomes the end of the gap. The zone's changes from 2010 to 2039 stand in the text, because DuckDB's own
    conversion leaves open which of two hours it takes.
    """
    branches = []
    before = 0
    changes, offset = _offset_changes(zone)
    for moment, before, after in changes:
        branches.append(f"WHEN {microseconds} < {moment + before} THEN {microseconds} - {before}")
        if after > before:
            branches.append(f"WHEN {microseconds} < {moment + after} THEN {moment}")
    if not branches:
        return f"({microseconds} - {offset})"
    return f"(CASE {' '.join(branches)} ELSE {microseconds} - {changes[-1][2]} END)"


def _offset_changes(zone: str) -> tuple[list[tuple[int, int, int]], int]:
    """Return a zone's changes of offset from 2010 to 2039 as (moment, offset before, after), and the first offset.

    All in microseconds.
    """
    info = ZoneInfo(zone)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)

    def offset_at(seconds: int) -> int:
        shift = (epoch + timedelta(seconds=seconds)).astimezone(info).utcoffset()
        assert shift is not None  # noqa: S101 - aware datetimes have one
        return round(shift.total_seconds())

    step = 86_400
    start = int(datetime(2010, 1, 1, tzinfo=UTC).timestamp())
    end = int(datetime(2040, 1, 1, tzinfo=UTC).timestamp())
    first = before = offset_at(start)
    changes = []
    for later in range(start + step, end, step):
        after = offset_at(later)
        if after == before:
            continue
        low, high = later - step, later
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset_at(middle) == before else (low, middle)
        changes.append((high * 1_000_000, before * 1_000_000, after * 1_000_000))
        before = after
    return changes, first * 1_000_000
