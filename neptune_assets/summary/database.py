"""``neptune.duckdb``: the database that people open. It holds views only, over the summary tables and over the lake.

Views name Parquet files by where the lake was when the database was built. A lake that was moved or copied needs it
built again, which takes a second, or ``SET file_search_path = '<new place>'`` in the connection: where that is set, the
views look there. :func:`open_database` does so. The file has the storage format of DuckDB 1.0, which every later one
reads.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import duckdb
import pyarrow as pa

from neptune_assets import durable
from neptune_assets.errors import LakeDamagedError, LakeError, SettingsError
from neptune_assets.lake.committer import COMPLETE
from neptune_assets.lake.integrity import UNKNOWN, difference, replacing_hashed
from neptune_assets.lake.layout import Layout
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.storage import Storage
from neptune_assets.schema import SCHEMA
from neptune_assets.summary.rows import COLUMN_NAMES, SQL_TYPES, project_rows
from neptune_assets.summary.sql import identifier, literal, parquet_of, plain_path, register_filesystems
from neptune_assets.summary.tables import TABLES
from neptune_assets.tempdirs import TempDirectory

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from neptune_assets.settings import LakeSettings, SummarySettings


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield an unused path beside ``path``; what was written there takes its place when the block ends well.

    Writers of the same path wait for each other, so the last to begin is the last to finish. Readers keep the old file
    as long as they have it open. What a killed writer left behind is removed by the next.
    """
    durable.make_directory(path.parent)
    with _waiting_lock(path.with_name(f".{path.name}.lock")):
        # Under the lock nobody else is writing: whatever looks like a temporary file is left over.
        prefix = f".{path.name}-"
        for name in path.parent.iterdir():
            if name.name.startswith(prefix):
                name.unlink()
        temporary = path.with_name(f"{prefix}{uuid.uuid4().hex}.tmp")
        try:
            yield temporary
            durable.put(temporary, path)
        finally:
            for name in path.parent.iterdir():
                if name.name.startswith(temporary.name):
                    name.unlink()


def write_table(
    reader: pa.RecordBatchReader, path: str, filesystem: AbstractFileSystem | None = None, scratch: str | None = None
) -> int:
    """Write a stream to one Parquet file (zstd) and return its rows; the old file stays until the new one is whole.

    ``path`` is local, or with ``filesystem`` (fsspec, not local) a path on it: the file is then written to ``scratch``
    first, because closing a half-written object would publish it. Its sha256 is noted beside it.
    """
    if filesystem is None or is_local(filesystem):
        with ExitStack() as noting, replacing(Path(path)) as temporary:
            rows = _write(reader, str(temporary))
            noting.enter_context(replacing_hashed(temporary, path))
        return rows
    with TempDirectory("table", scratch) as directory:
        local = directory / "table.parquet"
        rows = _write(reader, str(local))
        with replacing_hashed(local, path, filesystem):
            filesystem.put_file(str(local), path)
        return rows


def check_table(storage: Storage, path: str) -> None:
    """Raise LakeDamagedError if a table is not what was written; FileNotFoundError if there is none."""
    damage = difference(path, None if storage.local else storage.filesystem)
    if damage not in {None, UNKNOWN}:
        raise LakeDamagedError(f"The table {path} is damaged: {damage}.", hint="Materialize its asset again.")


def is_local(filesystem: Any) -> bool:
    """True if this fsspec file system is the local disk."""
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def _write(reader: pa.RecordBatchReader, path: str) -> int:
    import pyarrow.parquet as pq

    rows = 0
    with pq.ParquetWriter(path, reader.schema, compression="zstd", write_page_checksum=True) as writer:
        for batch in reader:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


@contextmanager
def _waiting_lock(path: Path) -> Iterator[None]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever held the lock before removed the file: another of the same name may be locked by now.
            if _same_file(descriptor, path):
                try:
                    yield
                finally:
                    path.unlink()
                return
        finally:
            os.close(descriptor)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


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
    beside the project's, see :mod:`neptune_assets.lake.committer`: those in the final places are left out if it is
    complete, it is left out itself if not. Where names hold a generation, which on object stores they do, a run's parts
    are left out unless they are of its newest generation that has a part_0, which comes last.
    """
    return f"""
        WITH shown AS (
            SELECT
                file,
                regexp_extract(file, '(?s)^(.*/)[^/]*$', 1) AS directory,
                regexp_replace(file, '(?s)^(.*/)[.]([^/]*/[^/]*_part_)[0-9]+[.]parquet$', '\\1\\2') AS run
            FROM glob({place} || '/data/.*/*')
        ),
        complete AS (SELECT directory FROM shown WHERE file = directory || '{COMPLETE}'),
        final AS (
            SELECT
                file,
                regexp_replace(file, '(?s)^(.*/[^/.]*)([.][^/]*)?_part_[0-9]+[.]parquet$', '\\1_part_') AS run,
                regexp_extract(file, '(?s)^.*/[^/.]*[.]([^/]*)_part_[0-9]+[.]parquet$', 1) AS generation
            FROM glob({place} || '/data/*/*_part_*.parquet')
        ),
        newest AS (
            SELECT run, max(generation) AS generation FROM final WHERE ends_with(file, '_part_0.parquet') GROUP BY run
        )
        SELECT file AS filename FROM shown ANTI JOIN complete USING (directory)
        UNION ALL
        SELECT file AS filename
        FROM final SEMI JOIN (SELECT run FROM shown SEMI JOIN complete USING (directory)) USING (run)
        UNION ALL
        SELECT file AS filename FROM final LEFT JOIN newest USING (run)
        WHERE final.generation <> coalesce(newest.generation, '')"""  # noqa: S608


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
