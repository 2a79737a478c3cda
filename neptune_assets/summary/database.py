"""``neptune.duckdb``: the database that people open. It holds views only, over the summary tables and over the lake.

Views name Parquet files by where the lake was when the database was built. A lake that was moved or copied needs it
built again, which takes a second, or ``SET file_search_path = '<new place>'`` in the connection: where that is set, the
views look there. :func:`open_database` does so. The file has the storage format of DuckDB 1.0, which every later one
reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import duckdb
import pyarrow as pa

from neptune_assets.errors import LakeError, SettingsError
from neptune_assets.lake.layout import Layout
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.staging import COMPLETE
from neptune_assets.lake.storage import Storage
from neptune_assets.schema import SCHEMA
from neptune_assets.summary.columns import TABLES
from neptune_assets.summary.filesystems import register_filesystems
from neptune_assets.summary.quoting import identifier, literal, parquet_of, plain_path
from neptune_assets.summary.rows import COLUMN_NAMES, SQL_TYPES, project_rows
from neptune_assets.summary.writing import check_table, replacing, write_table

if TYPE_CHECKING:
    from neptune_assets.settings import LakeSettings, SummarySettings

STORAGE_VERSION: Final = "v1.0.0"
"""Format of the file: the oldest that DuckDB 2 can write, so that every DuckDB from 1.0 on opens it."""

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
    with replacing(path) as temporary, duckdb.connect(config={"temp_directory": ""}) as con:
        con.execute(f"ATTACH {literal(str(temporary))} AS neptune (STORAGE_VERSION {literal(STORAGE_VERSION)})")
        con.execute("USE neptune")
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
        # Everything belongs into the one file that takes its place.
        con.execute("USE memory")
        con.execute("DETACH neptune")
    return path


def open_database(path: str | Path, lake: str | Path | None = None) -> duckdb.DuckDBPyConnection:
    """Open a ``neptune.duckdb`` for reading, wherever its lake was moved or copied to since it was built.

    ``path`` is the database or the directory of a lake that holds it; ``lake`` is the lake's directory if the database
    is not in it. Raises LakeError if there is no database.
    """
    path = Path(path).absolute()
    if path.is_dir():
        path = path / "neptune.duckdb"
    if not path.is_file():
        raise LakeError(f"There is no database {path}.", hint="Materialize the asset neptune_duckdb of its lake.")
    if lake is None and (path.parent / "data").is_dir():
        lake = path.parent
    con = duckdb.connect(str(path), read_only=True)
    if lake is not None:
        # DuckDB takes no bound value here.
        con.execute(f"SET file_search_path = {literal(plain_path(str(Path(lake).absolute())))}")
    return con


def _place(storage: Storage, layout: Layout) -> str:
    """Return the SQL of where the lake is: a constant to DuckDB, even inside of a view."""
    root = literal(plain_path(storage.url(layout.root)))
    return f"coalesce(nullif(current_setting('file_search_path'), ''), {root})" if storage.local else root


def _create_views(con: duckdb.DuckDBPyConnection, storage: Storage, layout: Layout, settings: LakeSettings) -> None:
    place = _place(storage, layout)
    for name, table in TABLES.items():
        directory = f"{layout.root}/summary/{name}"
        tables = [file for file in storage.names(directory) if file.endswith(".parquet")]
        for file in tables:
            check_table(storage, f"{directory}/{file}")
        if tables:
            pattern = f"{place} || {literal(f'/summary/{name}/*.parquet')}"
            selected = ", ".join(identifier(column) for column in table.schema.names)
            sql = f"SELECT {selected} FROM {parquet_of([pattern], union_by_name=True)}"  # noqa: S608
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
    place = _place(storage, layout)
    # One level of directories and no deeper: parts being written are in .staging, one level below.
    pattern = f"{place} || '/data/*/*_part_*.parquet'"
    if con.execute(f"SELECT count(*) FROM (SELECT 1 FROM glob({pattern}) LIMIT 1)").fetchall() != [(0,)]:  # noqa: S608
        yield (
            f"SELECT {COLUMN_NAMES} FROM {parquet_of([pattern], filenames=True)} "  # noqa: S608
            f"ANTI JOIN ({_left_out(place)}) USING (filename)"
        )
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
                yield rows.sql(f"{place} || '/summary/.empty.parquet'")


def _left_out(place: str) -> str:
    """Return a SELECT of the parts that must not be read now, mostly none.

    While parts of a run are moved, or when a killed writer left them so, all parts of the new run are in a directory
    beside the project's, see :mod:`neptune_assets.lake.staging`: those in the final places are left out if it is
    complete, it is left out itself if not.
    """
    return f"""
        WITH shown AS (
            SELECT
                file,
                regexp_extract(file, '(?s)^(.*/)[^/]*$', 1) AS directory,
                regexp_replace(file, '(?s)^(.*/)[.]([^/]*/[^/]*_part_)[0-9]+[.]parquet$', '\\1\\2') AS run
            FROM glob({place} || '/data/.*/*')
        ),
        complete AS (SELECT directory FROM shown WHERE file = directory || '{COMPLETE}')
        SELECT file AS filename FROM shown ANTI JOIN complete USING (directory)
        UNION ALL
        SELECT final.file AS filename
        FROM glob({place} || '/data/*/*_part_*.parquet') AS final
        SEMI JOIN (SELECT run FROM shown SEMI JOIN complete USING (directory)) AS replaced
        ON regexp_replace(final.file, '[0-9]+[.]parquet$', '') = replaced.run"""  # noqa: S608


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
