"""MLflow's tracking database, written and read without MLflow: its tables are those of MLflow's own models.

One run is one transaction: others see the old run or the new one, and its address in MLflow stays the same. Artifacts
are written before the transaction into a directory of their own, which the transaction points to; what it replaces is
deleted afterwards. A schema revision that was not tested is refused, and the load then goes through MLflow's client.
"""

from __future__ import annotations

import errno
import importlib
import logging
import time
import uuid as uuids
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from threading import Condition, Lock
from typing import Any, Final, TypeVar
from urllib.parse import quote

import adbc_driver_manager
import adbc_driver_manager.dbapi
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from mlflow.store.tracking.dbmodels.models import (
    SqlExperiment,
    SqlLatestMetric,
    SqlMetric,
    SqlParam,
    SqlRun,
    SqlTag,
)
from sqlalchemy.dialects import postgresql, sqlite

from neptune_assets import durable
from neptune_assets.errors import TargetError, TargetUnavailableError
from neptune_assets.lake.storage import next_action
from neptune_assets.targets.mlflow import artifacts, backend, mapping
from neptune_assets.targets.mlflow.artifacts import Artifacts
from neptune_assets.targets.mlflow.backend import Accounts, Content, ExistingRun, Experiments, Job
from neptune_assets.targets.mlflow.connection import Connection
from neptune_assets.targets.mlflow.points import Latest, Points
from neptune_assets.targets.protocol import Receipt

log = logging.getLogger(__name__)

_locks: Final[dict[str, ReadWriteLock]] = {}
_making: Final = Lock()


class ReadWriteLock:
    """One file in this process: one writer at a time, readers beside it until it puts its pages into the file.

    SQLite lets others read while a writer works, but not while it puts its pages into the file. Whoever meets it then
    gets "locked" and has to ask again and again; here both wait for their turn instead. Not reentrant.
    """

    def __init__(self) -> None:
        self._writer = Lock()
        self._changed = Condition()
        self._readers = 0
        self._exclusive = False

    def acquire_read(self) -> None:
        """Wait until no writer is exclusive."""
        with self._changed:
            self._changed.wait_for(lambda: not self._exclusive)
            self._readers += 1

    def release_read(self) -> None:
        """Let a writer that waits for readers go on."""
        with self._changed:
            self._readers -= 1
            self._changed.notify_all()

    def acquire_write(self) -> None:
        """Wait for the writer before."""
        self._writer.acquire()

    def upgrade(self) -> None:
        """Block new readers and wait for current ones. Writer only, until it releases."""
        with self._changed:
            self._exclusive = True
            self._changed.wait_for(lambda: self._readers == 0)

    def release_write(self) -> None:
        """Let readers and the next writer go on."""
        with self._changed:
            self._exclusive = False
            self._changed.notify_all()
        self._writer.release()


def lock_of(file: str) -> ReadWriteLock:
    """Return the lock to a file, the same for everybody in this process."""
    with _making:
        return _locks.setdefault(file, ReadWriteLock())


DIRECT_DIALECTS: Final = frozenset({"sqlite", "postgresql"})
"""Databases that can be written directly; all others go through MLflow's own client."""

BATCH_ROWS: Final = 65_536

_DIALECTS: Final[dict[str, Any]] = {
    "sqlite": sqlite.dialect(paramstyle="qmark"),
    "postgresql": postgresql.dialect(paramstyle="numeric_dollar"),  # type: ignore[no-untyped-call]
}
_BUSY_MS: Final = 60_000
_CACHE_KB: Final = 32 << 10
"""SQLite writes a transaction that outgrows this into the file early and then keeps readers out until it ends."""
_READ_CACHE_KB: Final = 4 << 10
"""The rows of a run are side by side: reading them back needs no more."""
_CACHED_ROWS: Final = _CACHE_KB << 10 >> 9
"""Rows of metrics, at half a kilobyte with all indexes, that surely stay in the cache."""

_TRANSIENT: Final = ("08", "40", "53", "55P03", "57P")
"""PostgreSQL's classes of errors that trying again can heal: connection, conflict, resources, lock, shutdown."""


@contextmanager
def database_errors(doing: str, shown: str) -> Iterator[None]:
    """Turn what the driver raises while ``doing`` something into TargetErrors."""
    try:
        yield
    except adbc_driver_manager.Error as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:500]
        if _is_transient(error):
            raise TargetUnavailableError(
                f"MLflow's database {shown} did not answer while {doing}: {first}.",
                hint="Check that it is up and not locked, then load again; finished runs are not loaded twice.",
            ) from error
        if "disk is full" in str(error) or "No space left" in str(error):
            raise TargetError(f"MLflow's database {shown}: {first}.", hint=next_action(errno.ENOSPC)) from error
        raise TargetError(
            f"MLflow's database {shown} refused {doing}: {first}.",
            hint="Look at the database's own log; `direct: false` loads through MLflow's client instead.",
        ) from error


class Session:
    """One connection, from the first statement to :meth:`close` one transaction; what is not committed is undone.

    In one process, sessions of one SQLite file wait for each other instead of asking for its lock again and again:
    one that ``writes`` for the one before, one that reads while another puts its pages into the file.
    """

    def __init__(self, connection: Connection, *, writes: bool) -> None:
        self._dialect = _DIALECTS[str(connection.dialect)]
        self._writes = writes
        self._rows = 0
        self._lock: ReadWriteLock | None = None
        self._file = connection.database_file
        self.is_file = self._file is not None
        if connection.database_file is not None:
            lock = lock_of(str(connection.database_file))
            if writes:
                lock.acquire_write()
            else:
                lock.acquire_read()
            self._lock = lock
        try:
            self._connection: Any = _connect(connection)
        except BaseException:
            self._release()
            raise
        if connection.database_file is not None:
            try:
                cache = _CACHE_KB if writes else _READ_CACHE_KB
                for pragma in (f"busy_timeout = {_BUSY_MS}", f"cache_size = -{cache}"):
                    self._run(f"PRAGMA {pragma}")
            except BaseException:
                self.close()
                raise

    def execute(self, statement: sa.Executable) -> None:
        """Run a statement that returns nothing."""
        self._run(*self._compiled(statement))

    def rows(self, statement: sa.Executable) -> list[tuple[Any, ...]]:
        """Run a query and return its rows."""
        with self._connection.cursor() as cursor:
            cursor.execute(*self._compiled(statement))
            found: list[tuple[Any, ...]] = cursor.fetchall()
            return found

    def batches(self, statement: sa.Executable) -> Iterator[pa.RecordBatch]:
        """Run a query and yield its rows as Arrow, in bounded memory."""
        with self._connection.cursor() as cursor:
            if self.is_file:
                cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(BATCH_ROWS)})
                cursor.execute(*self._compiled(statement))
            else:
                # PostgreSQL's driver streams (by COPY) only what has no parameters; else it holds the whole answer.
                cursor.execute(self._literal(statement))
            yield from cursor.fetch_record_batch()

    def insert(self, table: sa.Table, rows: pa.RecordBatch) -> None:
        """Append rows to a table, by the names of their columns."""
        if rows.num_rows:
            self._rows += rows.num_rows
            if self._lock is not None and self._rows > _CACHED_ROWS:
                self._lock.upgrade()
            with self._connection.cursor() as cursor:
                cursor.adbc_ingest(table.name, rows, mode="append")

    def commit(self) -> None:
        """Make everything since the last commit visible at once."""
        if self._lock is not None and self._writes:
            self._lock.upgrade()
        self._connection.commit()
        if self._file is not None and self._writes:
            # Else a power cut may bring the journal back, which undoes the commit; what it replaced is gone by then.
            durable.sync(self._file.parent)

    def close(self) -> None:
        """Undo what was not committed and let go of the connection."""
        try:
            self._connection.close()
        finally:
            self._release()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, sql: str, values: Sequence[Any] | None = None) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, values)

    def _compiled(self, statement: sa.Executable) -> tuple[str, list[Any] | None]:
        compiled: Any = statement.compile(  # type: ignore[attr-defined]
            dialect=self._dialect, compile_kwargs={"render_postcompile": True}
        )
        values = [compiled.params[name] for name in compiled.positiontup or ()]
        return compiled.string, values or None

    def _literal(self, statement: sa.Executable) -> str:
        """The statement with its values written into it, quoted by SQLAlchemy."""
        compiled = statement.compile(  # type: ignore[attr-defined]
            dialect=self._dialect, compile_kwargs={"literal_binds": True}
        )
        return str(compiled)

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            if self._writes:
                lock.release_write()
            else:
                lock.release_read()


class _Shared:
    """Stands for what several connections share, which none of them may close."""

    def close(self) -> None:
        """Leave it open."""


_connecting: Final = Lock()
"""The driver counts connections of one database, and not for several threads."""


def _connect(connection: Connection) -> Any:
    address = _address(connection)
    if connection.database_file is not None:
        return importlib.import_module("adbc_driver_sqlite.dbapi").connect(address)
    # Opening a database, other than connecting to it, reads all its types, which takes longer than loading a run.
    with _connecting:
        opened = adbc_driver_manager.AdbcConnection(_postgres(address))
    return adbc_driver_manager.dbapi.Connection(_Shared(), opened)  # type: ignore[arg-type]


@cache
def _postgres(address: str) -> adbc_driver_manager.AdbcDatabase:
    opened: adbc_driver_manager.AdbcDatabase = importlib.import_module("adbc_driver_postgresql").connect(address)
    return opened


def _address(connection: Connection) -> str:
    if connection.database_file is not None:
        return f"file:{quote(str(connection.database_file))}?mode=rw"
    url = sa.make_url(connection.uri).set(drivername="postgresql")
    return url.render_as_string(hide_password=False)


def _is_transient(error: adbc_driver_manager.Error) -> bool:
    if error.sqlstate:
        return error.sqlstate.startswith(_TRANSIENT)
    text = str(error)
    return "database is locked" in text or ("libpq" in text and isinstance(error, adbc_driver_manager.OperationalError))


T = TypeVar("T")

_END: Final = object()


@contextmanager
def prefetch(items: Iterable[T]) -> Iterator[Iterator[T]]:
    """Make the first item, then hand out an iterator that makes the next one while the caller works on the last.

    What making an item raises is raised where the item would have come. Two items are held at most.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:

        def made(following: Future[Any]) -> Iterator[T]:
            while (item := following.result()) is not _END:
                following = pool.submit(next, source, _END)
                yield item

        first = pool.submit(next, source, _END)
        wait([first])
        yield made(first)


TESTED_REVISIONS: Final = frozenset({"dc11669786a5"})
"""Alembic revisions of MLflow's schema that a direct load was tested with (MLflow 3.17)."""

EXPERIMENTS, RUNS, TAGS, PARAMS = (model.__table__ for model in (SqlExperiment, SqlRun, SqlTag, SqlParam))
METRICS, LATEST = SqlMetric.__table__, SqlLatestMetric.__table__

_INDEXED: Final = (mapping.KEY, mapping.RUN_ID, mapping.DIGEST, mapping.MAPPING, mapping.PARENT_KEY)


class Reader:
    """Reads what the database holds at one moment."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def revision(self) -> str | None:
        """Return the schema revision; None if the database is empty."""
        tables = (
            sa.select(sa.literal_column("count(*)"))
            .select_from(sa.text("sqlite_master"))
            .where(sa.text("name = 'alembic_version'"))
            if self._session.is_file
            else sa.select(sa.func.count(sa.func.to_regclass("alembic_version")))
        )
        if not self._session.rows(tables)[0][0]:
            return None
        found = self._session.rows(sa.text("SELECT version_num FROM alembic_version"))
        return str(found[0][0]) if found else None

    def experiment(self, name: str) -> tuple[str, str, str] | None:
        """Return (id, artifact location, lifecycle stage) of an experiment, None if there is none of that name."""
        columns = (EXPERIMENTS.c.experiment_id, EXPERIMENTS.c.artifact_location, EXPERIMENTS.c.lifecycle_stage)
        query = sa.select(*columns).where(EXPERIMENTS.c.name == name, EXPERIMENTS.c.workspace == "default")
        found = self._session.rows(query)
        return (str(found[0][0]), str(found[0][1]), str(found[0][2])) if found else None

    def existing_runs(self, project_key: str) -> list[ExistingRun]:
        """Return the runs of one project that loads left here and nobody deleted."""
        ours = sa.select(TAGS.c.run_uuid).where(TAGS.c.key == mapping.PROJECT_KEY, TAGS.c.value == project_key)
        query = (
            sa.select(RUNS.c.run_uuid, RUNS.c.artifact_uri, TAGS.c.key, TAGS.c.value)
            .join(TAGS, TAGS.c.run_uuid == RUNS.c.run_uuid)
            .where(RUNS.c.lifecycle_stage == "active", RUNS.c.run_uuid.in_(ours), TAGS.c.key.in_(_INDEXED))
        )
        tags: dict[str, dict[str, str]] = {}
        uris: dict[str, str] = {}
        for uuid, uri, key, value in self._session.rows(query):
            tags.setdefault(uuid, {})[key] = value
            uris[uuid] = uri
        return [ExistingRun.from_tags(uuid, uris[uuid], found) for uuid, found in sorted(tags.items())]

    def run_row(self, uuid: str) -> dict[str, Any] | None:
        """Return the row of a run in the table of runs."""
        found = self._session.rows(sa.select(RUNS).where(RUNS.c.run_uuid == uuid))
        return dict(zip(RUNS.c.keys(), found[0], strict=True)) if found else None

    def texts(self, uuid: str, table: sa.Table) -> dict[str, str]:
        """Return the params or tags of a run."""
        return dict(self._session.rows(sa.select(table.c.key, table.c.value).where(table.c.run_uuid == uuid)))

    def points(self, uuid: str) -> Iterator[Points]:
        """Read the metric points of a run in portions."""
        columns = (METRICS.c.key, METRICS.c.step, METRICS.c.timestamp, METRICS.c.value, METRICS.c.is_nan)
        for batch in self._session.batches(sa.select(*columns).where(METRICS.c.run_uuid == uuid)):
            if batch.num_rows:
                yield _points(batch)

    def latest(self, uuid: str) -> dict[str, tuple[int, int, float, bool]]:
        """Return what MLflow shows as the latest value of each metric: key -> (step, time, value, is_nan)."""
        query = sa.select(LATEST.c.key, LATEST.c.step, LATEST.c.timestamp, LATEST.c.value, LATEST.c.is_nan)
        found = self._session.rows(query.where(LATEST.c.run_uuid == uuid))
        return {row[0]: (row[1], row[2], row[3], bool(row[4])) for row in found}


class Transaction:
    """The writes of one run."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create_experiment(self, name: str, location: str) -> None:
        """Insert an experiment as MLflow does. Fails if one of that name is there."""
        now = time.time_ns() // 1_000_000
        self._session.execute(
            sa.insert(EXPERIMENTS).values(
                name=name,
                artifact_location=location,
                lifecycle_stage="active",
                creation_time=now,
                last_update_time=now,
                workspace="default",
            )
        )

    def delete(self, uuids: Sequence[str]) -> None:
        """Take runs out, as if they had never been there."""
        for uuid in uuids:
            for table in (METRICS, LATEST, PARAMS, TAGS, RUNS):
                self._session.execute(sa.delete(table).where(table.c.run_uuid == uuid))

    def run(self, **columns: Any) -> None:
        """Insert the run itself."""
        fixed = {"source_type": "UNKNOWN", "source_name": "", "entry_point_name": "", "source_version": ""}
        self._session.execute(
            sa.insert(RUNS).values(**fixed, lifecycle_stage="active", deleted_time=sa.null(), **columns)
        )

    def metrics(self, uuid: str, portions: Iterable[Points]) -> int:
        """Insert all metric points and the latest of each; return their number."""
        latest = Latest()
        count = 0
        for points in portions:
            latest.add(points)
            count += len(points)
            self._session.insert(METRICS, _metric_rows(uuid, points))
        ends = list(latest.rows())
        if ends:
            keys, steps, times, values, is_nan = zip(*ends, strict=True)
            codes = np.arange(len(keys), dtype=np.intp)
            columns = (np.array(steps, np.int64), np.array(times, np.int64), np.array(values, np.float64))
            self._session.insert(
                LATEST, _metric_rows(uuid, Points(list(keys), codes, *columns, np.array(is_nan, np.bool_)))
            )
        return count

    def texts(self, uuid: str, table: sa.Table, texts: Iterable[tuple[str, str]]) -> None:
        """Insert params or tags, in this order."""
        rows = list(texts)
        columns = [pa.array([row[place] for row in rows], pa.string()) for place in (0, 1)]
        self._session.insert(
            table, pa.RecordBatch.from_arrays([*columns, pa.repeat(uuid, len(rows))], ["key", "value", "run_uuid"])
        )

    def link(self, parent_uuid: str, children: Iterable[str]) -> None:
        """Make runs that are there already children of another."""
        for child in children:
            self._session.execute(sa.delete(TAGS).where(TAGS.c.run_uuid == child, TAGS.c.key == mapping.PARENT_RUN))
            self._session.execute(sa.insert(TAGS).values(run_uuid=child, key=mapping.PARENT_RUN, value=parent_uuid))


def _metric_rows(uuid: str, points: Points) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [
            pa.array(points.keys, pa.string()).take(pa.array(points.codes)),
            pa.array(points.values),
            pa.array(points.times),
            pa.array(points.steps),
            pa.array(points.is_nan),
            pa.repeat(uuid, len(points)),
        ],
        ["key", "value", "timestamp", "step", "is_nan", "run_uuid"],
    )


def _points(batch: pa.RecordBatch) -> Points:
    """Turn rows of the metrics table into columns."""
    keys = batch["key"].dictionary_encode()
    return Points(
        keys.dictionary.to_pylist(),
        keys.indices.to_numpy().astype(np.intp),
        batch["step"].cast(pa.int64()).to_numpy(),
        batch["timestamp"].cast(pa.int64()).to_numpy(),
        batch["value"].cast(pa.float64()).to_numpy() + 0.0,
        pc.cast(batch["is_nan"], pa.bool_()).to_numpy(zero_copy_only=False),
    )


_FILE_RUNS: Final = 3
_SERVER_RUNS: Final = 64


class DatabaseBackend:
    """Writes and reads runs in MLflow's tracking database."""

    def __init__(self, connection: Connection, tested_revisions: Collection[str] = TESTED_REVISIONS) -> None:
        self._connection = connection
        self._tested = tested_revisions
        self._experiments = Experiments(connection.artifact_root, self._find_experiment, self._create_experiment)

    @property
    def runs_at_once(self) -> int:
        """One run is written into a SQLite file while others are prepared and read back; a server has no such limit."""
        return _FILE_RUNS if self._connection.database_file is not None else _SERVER_RUNS

    def usable(self) -> bool:
        """True if the schema of the database is one that direct loads were tested with."""
        return self.revision() in self._tested

    def check(self) -> None:
        """Raise TargetError or TargetUnavailableError if the database cannot be read, or was upgraded meanwhile."""
        if not self.usable():
            raise TargetError(
                f"The schema of MLflow's database {self._connection.display_url} is no longer one that was tested.",
                hint="Load again: MLflow's client is used then.",
            )

    def revision(self) -> str | None:
        """Return the revision of the schema, None if there is none yet."""
        file = self._connection.database_file
        if file is not None and not file.exists():
            return None
        with self._errors("reading its schema revision"), self._reading() as reader:
            return reader.revision()

    def experiment(self, name: str) -> tuple[str, str]:
        """Return (id, artifact location) of the experiment, created if it is missing."""
        with self._errors(f"looking for experiment {name!r}"):
            return self._experiments.get(name)

    def _find_experiment(self, name: str) -> tuple[str, str, str] | None:
        with self._reading() as reader:
            return reader.experiment(name)

    def _create_experiment(self, name: str, location: str | None) -> None:
        try:
            with self._writing() as tx:
                tx.create_experiment(name, str(location))
        except adbc_driver_manager.IntegrityError:
            log.debug("Another load created experiment %r at the same moment.", name)

    def existing_runs(self, project_key: str) -> list[ExistingRun]:
        """Return the runs of one project that loads left in MLflow and nobody deleted."""
        with self._errors("listing runs"), self._reading() as reader:
            return reader.existing_runs(project_key)

    def replace(self, job: Job) -> tuple[ExistingRun, Receipt]:
        """Make MLflow hold exactly this run."""
        with self._errors(f"loading run {job.run.run_id!r}"):
            return self._replace(job)

    def _replace(self, job: Job) -> tuple[ExistingRun, Receipt]:
        run, plan, old = job.run, job.plan, job.old
        # One address for ever, also when a user threw the run away in MLflow and loads it again.
        run_uuid = old[0].uuid if len(old) == 1 else job.key
        home = f"{job.location.rstrip('/')}/{run_uuid}"
        generation = uuids.uuid4().hex[:12]
        store = self._artifacts(f"{home}/{generation}")
        accounts = Accounts(job, store)
        try:
            artifacts.write_artifacts(run, plan, store, accounts.counts)
            stream = job.stream()
            # What waits for its turn to write has its first points ready.
            with prefetch(stream) as portions, self._writing() as tx:
                tx.delete(sorted({run_uuid, job.key, *(item.uuid for item in old)}))
                tx.run(
                    run_uuid=run_uuid,
                    experiment_id=int(job.experiment_id),
                    name=plan.run_name,
                    # MLflow cannot read a run back that has no user; this is the word its own client uses.
                    user_id=plan.user or "unknown",
                    status="FAILED" if plan.failed else "FINISHED",
                    start_time=plan.start,
                    end_time=plan.end,
                    artifact_uri=store.uri,
                )
                tx.metrics(run_uuid, portions)
                accounts.settle(stream)
                tx.texts(run_uuid, PARAMS, plan.params.items())
                tx.texts(run_uuid, TAGS, job.tags.items())
                tx.link(run_uuid, job.children)
        except Exception:
            store.delete()
            raise
        self._clear(home, generation, [item.artifact_uri for item in old if item.artifact_uri != store.uri])
        return ExistingRun.from_tags(run_uuid, store.uri, dict(job.tags)), accounts.receipt(run_uuid)

    def remove(self, runs: list[ExistingRun]) -> None:
        """Delete runs for good."""
        with self._errors("removing runs"), self._writing() as tx:
            tx.delete([item.uuid for item in runs])

    def content(self, run_uuid: str, expected: set[str]) -> Content | None:
        """Return what the database holds of a run, None if it is gone. Reads every metric, not only ``expected``."""
        with self._errors("reading back"), self._reading() as reader:
            info = reader.run_row(run_uuid)
            if info is None:
                return None
            return Content(
                info,
                backend.sum_points(reader.points(run_uuid)),
                reader.latest(run_uuid),
                reader.texts(run_uuid, PARAMS),
                reader.texts(run_uuid, TAGS),
            )

    @contextmanager
    def _reading(self) -> Iterator[Reader]:
        """A transaction that only reads. Every transaction is a connection of its own."""
        with Session(self._connection, writes=False) as session:
            yield Reader(session)

    @contextmanager
    def _writing(self) -> Iterator[Transaction]:
        """A transaction that writes: everything in it becomes visible at once, or nothing."""
        with Session(self._connection, writes=True) as session:
            yield Transaction(session)
            session.commit()

    def _errors(self, doing: str) -> AbstractContextManager[None]:
        return database_errors(doing, self._connection.display_url)

    def _artifacts(self, uri: str) -> Artifacts:
        return Artifacts(uri, self._connection)

    def _clear(self, home: str, generation: str, old_uris: list[str]) -> None:
        """Delete artifacts of the run that was replaced, and what loads that died left beside them."""
        for name in self._artifacts(home).children():
            if name != generation:
                self._artifacts(f"{home}/{name}").delete()
        for uri in old_uris:
            if not uri.startswith(f"{home}/"):
                self._artifacts(uri).delete()
