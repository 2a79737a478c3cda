"""``neptune.duckdb``: the database that people open. It holds views only, over the summary tables and over the lake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import duckdb
import pyarrow as pa

from neptune_assets.errors import LakeError, SettingsError
from neptune_assets.lake.layout import Layout
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.storage import Storage
from neptune_assets.schema import SCHEMA
from neptune_assets.summary.columns import TABLES
from neptune_assets.summary.filesystems import register_filesystems
from neptune_assets.summary.quoting import identifier, literal, parquet, plain_path
from neptune_assets.summary.rows import COLUMN_NAMES, SQL_TYPES, project_rows
from neptune_assets.summary.writing import replacing, write_table

if TYPE_CHECKING:
    from neptune_assets.settings import LakeSettings, SummarySettings

LAKE_VIEWS: Final = {
    "raw": ("Every row of the lake's runs, all columns.", "SELECT * FROM lake_rows"),
    "points": (
        "Points of float series.",
        'SELECT project_id, run_id, attribute_path, step, "timestamp", float_value AS "value" '
        "FROM raw WHERE attribute_type = 'float_series'",
    ),
    "strings": (
        "Entries of string series.",
        'SELECT project_id, run_id, attribute_path, step, "timestamp", string_value AS "value" '
        "FROM raw WHERE attribute_type = 'string_series'",
    ),
    "histograms": (
        "Entries of histogram series.",
        'SELECT project_id, run_id, attribute_path, step, "timestamp", histogram_value."type" AS "type", '
        'histogram_value.edges AS edges, histogram_value."values" AS "values" '
        "FROM raw WHERE attribute_type = 'histogram_series'",
    ),
}
"""Views onto the lake's own Parquet: description and SQL."""


def write_database(lake_settings: LakeSettings, summary_settings: SummarySettings) -> Path:
    """Write the database anew and return its path.

    Views read Parquet by pattern, so what is materialized later shows up without another build; only exports read in
    place are listed, as of their last summary. A reader that has the old file open goes on undisturbed, and two
    builds at a time wait for each other.

    A lake at a URL gives views onto that URL: build needs nothing more, but who opens the database needs DuckDB's
    httpfs extension and a secret for the store (``CREATE SECRET``). It must have ``summary.database``, a local path;
    raises :class:`~neptune_assets.errors.SettingsError` otherwise, or if DuckDB cannot use the path; LakeError if
    Parquet files cannot be read.
    """
    storage = Storage(lake_settings.root, lake_settings.storage)
    layout = Layout(storage.root)
    if summary_settings.database is None and not storage.local:
        raise SettingsError(
            f"The lake {lake_settings.root!r} is not a local directory, and a DuckDB database can only be local.",
            hint="Set summary.database to a local path for neptune.duckdb.",
        )
    path = Path(summary_settings.database or layout.database()).absolute()
    for place, name in ((str(path), "summary.database"), (layout.root if storage.local else "", "lake.root")):
        # DuckDB takes what follows a question mark in a database's name for options, and a backslash for a separator.
        if "\\" in place or (name == "summary.database" and "?" in place):
            raise SettingsError(
                f"DuckDB cannot use the path {place!r}: it holds a question mark or a backslash.",
                hint=f"Set {name} to a path without them.",
            )
    with replacing(path) as temporary, duckdb.connect(str(temporary), config={"temp_directory": ""}) as con:
        con.execute("SET TimeZone = 'UTC'")
        con.execute("SET enable_progress_bar = false")
        if not storage.local:
            con.register_filesystem(storage.filesystem)
        # One transaction: a hundred small ones would each wait for the disk.
        con.begin()
        try:
            _create_views(con, storage, layout, lake_settings)
        except (duckdb.IOException, duckdb.InvalidInputException, duckdb.BinderException) as error:
            raise LakeError(
                f"The database cannot be built over {storage.url(storage.root)}: {error}",
                hint="Materialize the summaries of the projects again.",
            ) from error
        con.commit()
    return path


def _create_views(con: duckdb.DuckDBPyConnection, storage: Storage, layout: Layout, settings: LakeSettings) -> None:
    for name, table in TABLES.items():
        directory = f"{layout.root}/summary/{name}"
        if any(file.endswith(".parquet") for file in storage.names(directory)):
            pattern = f"{plain_path(storage.url(directory))}/*.parquet"
            selected = ", ".join(identifier(column) for column in table.schema.names)
            sql = f"SELECT {selected} FROM {parquet([pattern], union_by_name=True)}"  # noqa: S608
        else:
            sql = _empty(table.schema)
        _create_view(con, name, sql, table.description)
        for column in table.columns:
            con.execute(
                f"COMMENT ON COLUMN {identifier(name)}.{identifier(column.name)} IS {literal(column.description)}"
            )
    sources = list(_lake_sources(con, storage, layout, settings)) or [_empty(SCHEMA)]
    for name, (description, sql) in LAKE_VIEWS.items():
        rows = f"WITH lake_rows AS ({' UNION ALL '.join(sources)}) {sql}" if name == "raw" else sql
        _create_view(con, name, rows, description)


def _lake_sources(
    con: duckdb.DuckDBPyConnection, storage: Storage, layout: Layout, settings: LakeSettings
) -> Iterator[str]:
    """Yield SELECTs in the lake's columns: the lake's own parts by pattern, exports read in place by name."""
    # One level of project directories and no deeper: parts being written lie in .staging, one level below.
    pattern = f"{plain_path(storage.url(layout.base()))}/*/*_part_*.parquet"
    if con.execute("SELECT count(*) FROM (SELECT 1 FROM glob($1) LIMIT 1)", [pattern]).fetchall() != [(0,)]:
        yield f"SELECT {COLUMN_NAMES} FROM {parquet([pattern])}"  # noqa: S608
    in_place = con.execute("SELECT DISTINCT project_id FROM runs WHERE in_place ORDER BY project_id").fetchall()
    if not in_place:
        return
    empty_part = f"{layout.root}/summary/.empty.parquet"
    write_table(
        pa.RecordBatchReader.from_batches(SCHEMA, iter(())),
        empty_part,
        None if storage.local else storage.filesystem,
        settings.scratch,
    )
    lake = Lake(settings)
    for (project_id,) in in_place:
        project = lake.project(project_id)
        register_filesystems(con, project)
        for rows in project_rows(project):
            if rows.repairs.in_place:
                yield rows.sql(storage.url(empty_part))


def _create_view(con: duckdb.DuckDBPyConnection, name: str, sql: str, description: str) -> None:
    con.execute(f"CREATE VIEW {identifier(name)} AS {sql}")
    con.execute(f"COMMENT ON VIEW {identifier(name)} IS {literal(description)}")


def _empty(schema: pa.Schema) -> str:
    """Return a SELECT without rows whose columns have the types that Parquet files of this schema would give."""
    columns = ", ".join(f"NULL::{_sql_type(field)} AS {identifier(field.name)}" for field in schema)
    return f"SELECT {columns} WHERE false"


def _sql_type(field: pa.Field) -> str:
    if field.name in SQL_TYPES and SCHEMA.field(field.name).type == field.type:
        return SQL_TYPES[field.name]
    for known in SCHEMA:
        if known.type == field.type:
            return SQL_TYPES[known.name]
    raise AssertionError(f"no SQL type for {field}")
