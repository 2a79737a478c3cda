"""Summary tables of one project: one pass over its rows in DuckDB, then every table as a stream of Arrow batches.

Belongs here: running ``sql/*.sql`` with bounded memory. What the tables mean is in
:mod:`neptune_assets.summary.columns`, what SQL reads is in :mod:`neptune_assets.summary.rows`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import duckdb
import pyarrow as pa

from neptune_assets.errors import LakeError
from neptune_assets.lake.parts import GENERATION
from neptune_assets.schema import SCHEMA, TIME_TYPE
from neptune_assets.scratch import ScratchDirectory
from neptune_assets.summary.columns import TABLES
from neptune_assets.summary.filesystems import register_filesystems
from neptune_assets.summary.manifest import load_manifest
from neptune_assets.summary.quoting import identifier, literal, parquet, parquet_of, plain_path
from neptune_assets.summary.rows import COLUMN_NAMES, Rows, project_rows
from neptune_assets.summary.writing import write_table

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeProject
    from neptune_assets.settings import LakeSettings, SummarySettings

BATCH_ROWS: Final = 65_536
"""Rows of a batch that a table is read by."""


class Summary:
    """A project that was scanned once, ready to be read table by table. A context manager: closing frees its scratch.

    Memory is bounded by ``settings.memory_mb``; what does not fit goes to a scratch directory.
    """

    def __init__(self, project: LakeProject, settings: SummarySettings, lake_settings: LakeSettings) -> None:
        self.project_id = project.project_id
        self.digest = project.digest
        self._directory = ScratchDirectory("summary", lake_settings.scratch)
        self._scratch = str(self._directory.path)
        self._project = project
        try:
            self._con = connect(settings, self._scratch)
            try:
                register_filesystems(self._con, project)
                load_manifest(self._con, project, self._scratch)
                self._scan()
            except BaseException:
                self._con.close()
                raise
        except BaseException:
            self._directory.close()
            raise

    def __enter__(self) -> Summary:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and remove the scratch directory; readers taken before end."""
        self._con.close()
        self._directory.close()

    def table(self, name: str) -> pa.RecordBatchReader:
        """Return one table as a stream of batches in the schema of :data:`~neptune_assets.summary.columns.TABLES`.

        Several tables may be read at the same time. Raises KeyError for an unknown table.
        """
        schema = TABLES[name].schema
        selected = ", ".join(identifier(column) for column in schema.names)
        # A cursor of its own: a stream ends when its connection runs something else.
        rows = self._con.cursor().sql(f"SELECT {selected} FROM ({_sql(name)})")  # noqa: S608
        reader = rows.to_arrow_reader(BATCH_ROWS)
        return pa.RecordBatchReader.from_batches(schema, (_cast(batch, schema) for batch in reader))

    def tables(self) -> Iterator[tuple[str, pa.RecordBatchReader]]:
        """Yield every table's name and stream, one after the other."""
        for name in TABLES:
            yield name, self.table(name)

    def query(self, sql: str, parameters: list[Any] | None = None) -> list[tuple[Any, ...]]:
        """Return the rows of a small query over ``run_facts``, ``series_facts``, ``params_facts`` and ``manifest``."""
        return self._con.cursor().execute(sql, parameters or []).fetchall()

    def stream(self, sql: str) -> pa.RecordBatchReader:
        """Return the rows of a query over these tables, and over ``manifest_files``, as a stream of Arrow batches."""
        return self._con.cursor().sql(sql).to_arrow_reader(BATCH_ROWS)

    def rows(self, run_ids: Collection[str] | None = None) -> Iterator[str]:
        """Yield SELECT statements for :meth:`query` that give the lake's rows, repaired, some runs at a time."""
        for rows in project_rows(self._project, run_ids):
            yield rows.sql(self._empty_part)

    def _scan(self) -> None:
        empty = str(Path(self._scratch) / "empty.parquet")
        write_table(pa.RecordBatchReader.from_batches(SCHEMA, iter(())), empty)
        self._empty_part = literal(plain_path(empty))
        scans = {"series_facts": _sql("scan_series"), "params_facts": _sql("scan_params")}
        nothing = f"SELECT {COLUMN_NAMES} FROM {parquet_of([self._empty_part])}"  # noqa: S608
        self._con.execute(f"CREATE OR REPLACE TEMP VIEW lake_rows AS {nothing}")
        for table, sql in scans.items():
            self._con.execute(f"CREATE TABLE {table} AS {sql}")
        records = self._project.records()
        known = self._take_statistics()
        generations = {record.generation for record in records.values()}
        for rows in project_rows(self._project, records.keys() - known):
            self._scan_rows(rows, scans, generations)
        self._check_rows()
        self._con.execute(f"CREATE TABLE run_facts AS {_sql('run_facts')}")

    def _take_statistics(self) -> set[str]:
        """Take what the lake's writer found out, and return the runs that need no scan because of it."""
        paths = self._project.statistics()
        if paths is None:
            return set()
        intact = self._project.intact()
        self._con.execute("CREATE TEMP TABLE intact AS SELECT unnest($1) AS run_id", [sorted(intact)])
        for table, path in paths.items():
            stored = parquet([plain_path(path)])
            names = [
                [row[0] for row in self._con.execute(f"DESCRIBE FROM {source}").fetchall()]
                for source in (table, stored)
            ]
            # Files that were written before a column was kept lack it.
            columns = ", ".join(identifier(name) for name in names[0] if name in names[1])
            self._con.execute(
                f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {stored} "  # noqa: S608
                "SEMI JOIN manifest USING (run_id, digest) SEMI JOIN intact USING (run_id)"
            )
        records = self._project.records()
        known = {run_id for run_id, rows in self._counted().items() if rows == records[run_id].total_rows}
        # A run that is not there as a whole is scanned as a whole.
        self._con.execute("CREATE OR REPLACE TEMP TABLE intact AS SELECT unnest($1) AS run_id", [sorted(known)])
        for table in paths:
            self._con.execute(f"DELETE FROM {table} WHERE run_id NOT IN (SELECT run_id FROM intact)")  # noqa: S608
        return known

    def _scan_rows(self, rows: Rows, scans: dict[str, str], generations: set[str]) -> None:
        try:
            self._con.execute(f"CREATE OR REPLACE TEMP VIEW lake_rows AS {rows.sql(self._empty_part)}")
            for table, sql in scans.items():
                self._con.execute(f"INSERT INTO {table} {sql}")
            if self.query("SELECT 1 FROM series_facts WHERE first_step <= -9e9 OR last_step >= 9e9 LIMIT 1"):
                self._con.execute(_sql("exact_ends"))
            if not rows.repairs.in_place:
                self._check_generations(rows.parts, generations)
        except duckdb.OutOfMemoryException as error:
            raise LakeError(
                f"Summarizing {self.project_id} needs more memory than allowed: {error}",
                hint="Raise summary.memory_mb, or lower summary.threads.",
            ) from error
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            raise LakeError(
                f"A Parquet part of {self.project_id} cannot be read: {error}",
                hint="Materialize the project's lake asset again, then the summary.",
            ) from error

    def _counted(self) -> dict[str, int]:
        return dict(
            self._con.execute(
                "SELECT run_id, sum(row_count)::BIGINT FROM (SELECT run_id, row_count FROM series_facts "
                "UNION ALL SELECT run_id, 1 FROM params_facts) GROUP BY run_id"
            ).fetchall()
        )

    def _check_generations(self, parts: Sequence[str], expected: set[str]) -> None:
        """Raise LakeError if a part that was read belongs to a commit that the manifest did not name."""
        found = self._con.execute(
            "SELECT file_name, decode(value) FROM parquet_kv_metadata($1) WHERE decode(key) = $2",
            [[plain_path(part) for part in parts], GENERATION],
        ).fetchall()
        for name, generation in found:
            if generation not in expected:
                error = LakeError(
                    f"{name} was materialized again while {self.project_id} was summarized.",
                    hint="Wait until the lake asset is materialized, then materialize the summary.",
                )
                error.transient = True
                raise error

    def _check_rows(self) -> None:
        """Raise LakeError if some run's parts do not hold the rows that the manifest names."""
        counted = self._counted()
        for run_id, record in self._project.records().items():
            found = counted.pop(run_id, 0)
            if found != record.total_rows:
                raise LakeError(
                    f"Run {run_id!r} of {self.project_id} has {found:,} rows in its parts, but {record.total_rows:,} "
                    "in the manifest.",
                    hint="If its lake asset is being materialized, wait; else materialize it again, then the summary.",
                )
        if counted:
            raise LakeError(
                f"Parts of {self.project_id} hold rows of {sorted(counted)[0]!r}, which is none of its runs.",
                hint="Materialize the project's lake asset again, then the summary.",
            )


def summarize(project: LakeProject, settings: SummarySettings, lake_settings: LakeSettings) -> Summary:
    """Scan a project once and return its summary, to be used in a ``with`` statement.

    Raises :class:`~neptune_assets.errors.LakeError` if a part cannot be read or memory does not suffice.
    """
    return Summary(project, settings, lake_settings)


def connect(settings: SummarySettings, scratch: str) -> duckdb.DuckDBPyConnection:
    """Return an in-memory DuckDB connection within the settings' memory and threads, that spills into ``scratch``."""
    con = duckdb.connect(
        config={
            "memory_limit": f"{settings.memory_mb}MiB",
            "threads": settings.threads,
            "temp_directory": scratch,
            "preserve_insertion_order": False,
            # Nothing here needs an extension, and nothing may be fetched over the network behind the user's back.
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )
    con.execute("SET TimeZone = 'UTC'")
    # Slow queries would draw a bar on standard output, which belongs to whoever started this process.
    con.execute("SET enable_progress_bar = false")
    return con


def _sql(name: str) -> str:
    return files("neptune_assets.summary").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    # DuckDB counts microseconds, the lake milliseconds; everything else already has its type.
    columns = [
        column.cast(field.type, safe=field.type != TIME_TYPE)
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
