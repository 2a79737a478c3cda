"""Summary tables of one project: one pass over its rows in DuckDB, then every table as a stream of Arrow batches.

Columns, types and what each means are declared once, here: Parquet files, DuckDB's views and comments, and Dagster's
table schemas all come from it. SQL is in ``sql/*.sql`` and runs with bounded memory; what it reads is in
:mod:`neptune_assets.summary.rows`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from neptune_assets.errors import LakeBusyError, LakeError, NeptuneAssetsError
from neptune_assets.lake.lock import project_lock
from neptune_assets.lake.rows import Attributes, pack
from neptune_assets.lake.statistics import PARAMS, SERIES, RunStatistics, StatisticsFiles, usable_statistics
from neptune_assets.schema import PARAMETER_TYPES, SCHEMA, STEP_TYPE, TIME_TYPE, VALUE_COLUMN, AttributeType, Scope
from neptune_assets.summary.rows import load_manifest, project_rows
from neptune_assets.summary.sql import identifier, literal, parquet, plain_path, register_filesystems
from neptune_assets.tempdirs import TempDirectory

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeProject, LakeRun
    from neptune_assets.settings import LakeSettings, SummarySettings

TEXT: Final = pa.string()
COUNT: Final = pa.int64()
NUMBER: Final = pa.float64()
FLAG: Final = pa.bool_()
TEXTS: Final = pa.list_(pa.string())


@dataclass(frozen=True, slots=True)
class Column:
    """One column: name, Arrow type, and what it means in words."""

    name: str
    type: pa.DataType
    description: str


@dataclass(frozen=True, slots=True)
class Table:
    """One table: what a row is, and its columns in order."""

    description: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema, each field with its description in the metadata."""
        return pa.schema([pa.field(c.name, c.type, metadata={"description": c.description}) for c in self.columns])


_PROJECT: Final = Column("project_id", TEXT, "Neptune project, workspace/project.")
_RUN: Final = Column("run_id", TEXT, "Run, by the id it has in the lake.")
_PATH: Final = Column("attribute_path", TEXT, "Path of the attribute, as logged.")
_TYPE: Final = Column("attribute_type", TEXT, "Type of the attribute.")

TABLES: Final[Mapping[str, Table]] = MappingProxyType(
    {
        "projects": Table(
            "One row per project.",
            (
                _PROJECT,
                Column("runs", COUNT, "Runs in the lake, vanished ones included."),
                Column("complete_runs", COUNT, "Runs of which everything that the source promised arrived."),
                Column("partial_runs", COUNT, "Runs of which something is missing."),
                Column("vanished_runs", COUNT, "Runs that the source no longer holds."),
                Column("forked_runs", COUNT, "Runs that name a parent."),
                Column("attributes", COUNT, "Distinct pairs of attribute path and type."),
                Column("metrics", COUNT, "Float series, counted once in each run."),
                Column("points", COUNT, "Points of all float series."),
                Column("rows", COUNT, "Rows of all types."),
                Column("files", COUNT, "Stored files."),
                Column("file_bytes", COUNT, "Bytes of the stored files."),
                Column("parquet_bytes", COUNT, "Bytes of the Parquet parts."),
                Column("errors", COUNT, "Errors that the source or the lake reported."),
                Column("first_created_at", TIME_TYPE, "When the oldest run was created."),
                Column("last_created_at", TIME_TYPE, "When the youngest run was created."),
                Column("last_committed_at", TIME_TYPE, "When the lake last took a run."),
                Column("digest", TEXT, "Content digest of the project: equal digests mean equal content."),
            ),
        ),
        "runs": Table(
            "One row per run.",
            (
                _PROJECT,
                _RUN,
                Column("sys_id", TEXT, "Neptune's short id, from sys/id."),
                Column("custom_run_id", TEXT, "Id that the user chose, from sys/custom_run_id."),
                Column("name", TEXT, "Name of the run or experiment, from sys/name."),
                Column("description", TEXT, "Description, from sys/description."),
                Column("created_at", TIME_TYPE, "Creation, from sys/creation_time or else from the source's listing."),
                Column("modified_at", TIME_TYPE, "Last change, from sys/modification_time."),
                Column(
                    "pinged_at", TIME_TYPE, "Last sign of life, from sys/ping_time: Neptune keeps no time of ending."
                ),
                Column("running_seconds", NUMBER, "Seconds the run was running, from sys/running_time."),
                Column("run_state", TEXT, "State in Neptune, from sys/state."),
                Column("owner", TEXT, "Owner, from sys/owner."),
                Column("failed", FLAG, "Whether the run failed, from sys/failed."),
                Column("trashed", FLAG, "Whether the run is in the trash, from sys/trashed."),
                Column("archived", FLAG, "Whether the run is archived, from sys/archived."),
                Column("tags", TEXTS, "Tags, from sys/tags."),
                Column("group_tags", TEXTS, "Group tags, from sys/group_tags."),
                Column("parent", TEXT, "Run it was forked from, as recorded."),
                Column("fork_step", STEP_TYPE, "Step of the parent at which it was forked."),
                Column("attributes", COUNT, "Attributes of all types."),
                Column("metrics", COUNT, "Float series."),
                Column("points", COUNT, "Points of all float series."),
                Column("rows", COUNT, "Rows of all types."),
                Column("files", COUNT, "Stored files."),
                Column("file_bytes", COUNT, "Bytes of the stored files."),
                Column("parquet_bytes", COUNT, "Bytes of the run's Parquet parts."),
                Column("lake_state", TEXT, "complete if everything that the source promised arrived, else partial."),
                Column("errors", COUNT, "Errors that the source or the lake reported for the run."),
                Column("first_error", TEXT, "The first of these errors."),
                Column("in_place", FLAG, "Whether the data stays where the export lies."),
                Column("committed_at", TIME_TYPE, "When the lake took the run."),
                Column("vanished_at", TIME_TYPE, "When the run was found gone from the source; null if it is there."),
                Column("source", TEXT, "Kind of source that the run came from."),
                Column("digest", TEXT, "Content digest of the run: equal digests mean equal content."),
            ),
        ),
        "attributes": Table(
            "One row per attribute path and type of a project.",
            (
                _PROJECT,
                _PATH,
                _TYPE,
                Column("runs", COUNT, "Runs that have the attribute."),
                Column("rows", COUNT, "Rows in all runs: points of series, one otherwise."),
                Column(
                    "first_seen", TIME_TYPE, "Earliest timestamp of a point; creation of the run where there is none."
                ),
                Column("last_seen", TIME_TYPE, "Latest timestamp of a point; creation of the run where there is none."),
            ),
        ),
        "metrics": Table(
            "One row per float series of a run.",
            (
                _PROJECT,
                _RUN,
                _PATH,
                Column("count", COUNT, "Points, whatever their value."),
                Column("nan_count", COUNT, "Points that are not a number."),
                Column("positive_infinity_count", COUNT, "Points that are +infinity."),
                Column("negative_infinity_count", COUNT, "Points that are -infinity."),
                Column("first_value", NUMBER, "Value at the lowest step, exact; may be NaN or infinite."),
                Column("last_value", NUMBER, "Value at the highest step, exact; may be NaN or infinite."),
                Column("min_value", NUMBER, "Smallest finite value, exact; null if none is finite."),
                Column("max_value", NUMBER, "Largest finite value, exact; null if none is finite."),
                Column(
                    "mean_value",
                    NUMBER,
                    "Mean of the finite values; its last digits may differ between computations, because they are "
                    "summed in no fixed order.",
                ),
                Column("first_step", STEP_TYPE, "Lowest step."),
                Column("last_step", STEP_TYPE, "Highest step."),
                Column("first_time", TIME_TYPE, "Earliest timestamp."),
                Column("last_time", TIME_TYPE, "Latest timestamp."),
            ),
        ),
        "params": Table(
            "One row per parameter of a run: every attribute that is neither series nor file.",
            (
                _PROJECT,
                _RUN,
                _PATH,
                _TYPE,
                Column("text", TEXT, "The value as text: integers and floats exact, times in ISO 8601, sets as JSON."),
                Column("int_value", pa.int64(), "Value of an int."),
                Column("float_value", NUMBER, "Value of a float; may be NaN or infinite."),
                Column("string_value", TEXT, "Value of a string."),
                Column("bool_value", FLAG, "Value of a bool."),
                Column("datetime_value", TIME_TYPE, "Value of a datetime."),
                Column("string_set_value", TEXTS, "Members of a string set."),
            ),
        ),
        "files": Table(
            "One row per stored file; members of a file set have one row each.",
            (
                _PROJECT,
                _RUN,
                _PATH,
                _TYPE,
                Column("step", STEP_TYPE, "Step of a file of a series; null otherwise."),
                Column("member", TEXT, "Path inside the file set; null for single files."),
                Column("path", TEXT, "Path in the project's files directory."),
                Column("size", COUNT, "Bytes."),
                Column("sha256", TEXT, "SHA-256 of the content, in hex."),
                Column("location", TEXT, "Absolute path or URL."),
            ),
        ),
        "lineage": Table(
            "One row per run: where it was forked from.",
            (
                _PROJECT,
                _RUN,
                Column("parent", TEXT, "Run it was forked from, as recorded; null if it is not a fork."),
                Column("parent_run_id", TEXT, "That run's id in the lake; null if the lake does not hold it."),
                Column("fork_step", STEP_TYPE, "Step of the parent at which it was forked."),
                Column("depth", COUNT, "Forks between it and its root: 0 for a root; null in and below a cycle."),
                Column(
                    "root", TEXT, "The run at the start of its line that the lake holds; null in and below a cycle."
                ),
                Column("orphan", FLAG, "It names a parent that the lake does not hold."),
                Column("cyclic", FLAG, "Its line of parents runs in a circle."),
            ),
        ),
    }
)


def columns(table: str) -> list[tuple[str, str, str]]:
    """Return (name, Arrow type as text, description) of every column of a table, in order."""
    return [(column.name, str(column.type), column.description) for column in TABLES[table].columns]


log = logging.getLogger(__name__)


def _moment(column: str) -> str:
    """Return the SQL of a time from milliseconds since 1970; null where DuckDB's times do not reach."""
    fits = f"{column} BETWEEN -9223372022400000 AND 9223372036854775"
    return f"CASE WHEN {fits} THEN make_timestamptz({column} * 1000) END AS {column}"


_FACTS: Final = {
    "series_facts": f"* EXCLUDE (digest) REPLACE ({_moment('first_time')}, {_moment('last_time')})",
    "params_facts": f"* EXCLUDE (digest) REPLACE ({_moment('datetime_value')}), datetime_value AS milliseconds",
}
"""Columns of the statistics as these tables have them."""

_STAMPED: Final = ("attribute_path", "attribute_type", "step", "timestamp")
_SERIES_COLUMNS: Final = (*_STAMPED, "float_value")
_PARAMETER_COLUMNS: Final = (*_STAMPED, *sorted({VALUE_COLUMN[kind] for kind in PARAMETER_TYPES}))

BATCH_ROWS: Final = 65_536
"""Rows of a batch that a table is read by."""


class Summary:
    """A project that was scanned once, ready to be read table by table. A context manager: closing frees its scratch.

    Memory is bounded by ``settings.memory_mb``; what does not fit goes to a scratch directory.
    """

    def __init__(self, project: LakeProject, settings: SummarySettings, lake_settings: LakeSettings) -> None:
        self.project_id = project.project_id
        self.digest = project.digest
        self._directory_of_scratch = lake_settings.scratch
        self._directory = TempDirectory("summary", lake_settings.scratch)
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
        """Return one table as a stream of batches in the schema of :data:`~neptune_assets.summary.tables.TABLES`.

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
        """Yield SELECT statements for :meth:`query` that give the lake's rows, repaired, some runs at a time.

        Raises LakeDamagedError if a part of them is not what was recorded.
        """
        for run in self._project.runs():
            if run.record.hashed and (run_ids is None or run.run_id in run_ids):
                run.check()
        for rows in project_rows(self._project, run_ids):
            yield rows.sql(self._empty_part)

    def _scan(self) -> None:
        self._facts_tables()
        known = self._take_statistics()
        missing = [run for run in self._project.runs() if run.run_id not in known]
        if missing:
            self._measure(missing)
        self._check_rows()
        self._con.execute(f"CREATE TABLE run_facts AS {_sql('run_facts')}")

    def _facts_tables(self) -> None:
        """Make the empty tables of what is known of series and parameters, in the columns of the statistics."""
        self._empty_part = literal(plain_path(self._write_empty("rows", SCHEMA)))
        for name, schema in (("series_facts", SERIES), ("params_facts", PARAMS)):
            source = parquet([plain_path(self._write_empty(name, schema))])
            self._con.execute(f"CREATE TABLE {name} AS SELECT {_FACTS[name]} FROM {source}")  # noqa: S608

    def _write_empty(self, name: str, schema: pa.Schema) -> str:
        path = Path(self._scratch) / f"{name}-empty.parquet"
        with pq.ParquetWriter(path, schema, store_decimal_as_integer=True):
            return str(path)

    def _take_statistics(self) -> set[str]:
        """Take what the lake's writer found out, and return the runs that need not be read because of it."""
        paths, storage = self._project.statistics(), self._project.lake.storage
        if paths is None or not all(usable_statistics(storage, path) for path in paths.values()):
            return set()
        intact = self._project.intact()
        self._con.execute("CREATE TEMP TABLE intact AS SELECT unnest($1) AS run_id", [sorted(intact)])
        for table, path in paths.items():
            self._insert(table, path, "SEMI JOIN manifest USING (run_id, digest) SEMI JOIN intact USING (run_id)")
        records = self._project.records()
        known = {run_id for run_id, rows in self._counted().items() if rows == records[run_id].total_rows}
        # A run that is not there as a whole is read as a whole.
        self._con.execute("CREATE OR REPLACE TEMP TABLE intact AS SELECT unnest($1) AS run_id", [sorted(known)])
        for table in paths:
            self._con.execute(f"DELETE FROM {table} WHERE run_id NOT IN (SELECT run_id FROM intact)")  # noqa: S608
        return known

    def _insert(self, table: str, path: str, condition: str = "") -> None:
        source = parquet([plain_path(path)])
        self._con.execute(f"INSERT INTO {table} BY NAME SELECT {_FACTS[table]} FROM {source} {condition}")  # noqa: S608

    def _measure(self, runs: Sequence[LakeRun]) -> None:
        """Read runs that nothing is known of, as the writer does while it writes them, and keep what was found."""
        project, lake = self._project, self._project.lake
        found = StatisticsFiles(lake.storage, lake.layout, self.project_id, self._directory_of_scratch)
        large = StatisticsFiles(lake.storage, lake.layout, self.project_id, self._directory_of_scratch)
        try:
            for run in runs:
                statistics = measured(run)
                facts = statistics.facts(run.run_id, run.record.digest)
                if facts is not None:
                    found.add(facts)
                else:
                    without = statistics.facts(run.run_id, run.record.digest, parameters=False)
                    assert without is not None  # noqa: S101 - None is for parameters only
                    large.add(without)
                    self._insert("params_facts", self._write_parameters(run))
            for files in (found, large):
                for name, path in files.added().items():
                    self._insert(f"{name}_facts", path)
            if project.scope is Scope.RUNS:
                self._keep(found)
        finally:
            found.close()
            large.close()

    def _write_parameters(self, run: LakeRun) -> str:
        """Write the parameters of a run that has too many to be held, and return where."""
        path = Path(self._scratch) / "parameters.parquet"
        names = [name for name in PARAMS.names if name != "digest"]
        with pq.ParquetWriter(path, PARAMS, store_decimal_as_integer=True) as writer:
            for batch in run.batches(PARAMETER_TYPES, names, 4_096):
                nulls = pa.nulls(batch.num_rows, pa.string())
                columns = [nulls if field.name == "digest" else batch[field.name].cast(field.type) for field in PARAMS]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=PARAMS))
        return str(path)

    def _keep(self, found: StatisticsFiles) -> None:
        """Put what was found beside the lake, so that the next summary need not read these runs."""
        lake = self._project.lake
        try:
            with project_lock(lake.storage, lake.layout.manifest(self.project_id, Scope.RUNS), self.project_id):
                found.save(lake.project(self.project_id).records())
        except LakeBusyError:
            log.info("The statistics of %s are not kept: the project is being written.", self.project_id)
        except (OSError, NeptuneAssetsError) as error:
            log.warning(
                "The statistics of %s cannot be kept: %s. The next summary reads the runs again.",
                self.project_id,
                error,
            )

    def _counted(self) -> dict[str, int]:
        return dict(
            self._con.execute(
                "SELECT run_id, sum(row_count)::BIGINT FROM (SELECT run_id, row_count FROM series_facts "
                "UNION ALL SELECT run_id, 1 FROM params_facts) GROUP BY run_id"
            ).fetchall()
        )

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


def measured(run: LakeRun) -> RunStatistics:
    """Read a run as its writer did, once, and return what is to be known of its series and parameters.

    Raises LakeError if a part cannot be read, LakeDamagedError if it is not what was recorded: by the sha256 of its
    parts, or, where there is none, by the digest of all rows.
    """
    attributes = Attributes()
    statistics = RunStatistics(attributes.names)
    if not run.record.hashed:
        digest = run.new_digest(attributes)
        for batch in run.batches():
            rows = pack(batch, attributes)
            digest.update(rows)
            statistics.update(rows)
        run.compare(digest.hexdigest())
        return statistics
    series = [kind for kind in AttributeType if kind not in PARAMETER_TYPES]
    for batch in run.batches(series, _SERIES_COLUMNS):
        statistics.update(pack(batch, attributes))
    for batch in run.batches(PARAMETER_TYPES, _PARAMETER_COLUMNS):
        statistics.update(pack(batch, attributes))
    return statistics


def _sql(name: str) -> str:
    return files("neptune_assets.summary").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    # DuckDB counts microseconds, the lake milliseconds; everything else already has its type.
    columns = [
        column.cast(field.type, safe=field.type != TIME_TYPE)
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
