"""Writing a run straight into MLflow's tracking database: everything of the run in one transaction.

MLflow's own table models say what the tables are; a schema revision that was not tested is refused, and the load then
goes through MLflow's client. SQLite is written through Python's own driver and no other: two SQLite libraries in one
process release each other's file locks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlRun, SqlTag

from neptune_assets.targets.mlflow import mapping
from neptune_assets.targets.mlflow.config import Connection
from neptune_assets.targets.mlflow.points import Latest, Points

TESTED_REVISIONS: Final = frozenset({"dc11669786a5"})
"""Alembic revisions of MLflow's schema that a direct load was tested with (MLflow 3.17)."""

DIRECT_DIALECTS: Final = frozenset({"sqlite"})
"""Databases that a direct load was tested with; all others go through MLflow's own client."""

RUNS, TAGS, PARAMS = SqlRun.__table__, SqlTag.__table__, SqlParam.__table__
METRICS, LATEST = SqlMetric.__table__, SqlLatestMetric.__table__

_INDEXED: Final = (mapping.KEY, mapping.RUN_ID, mapping.DIGEST, mapping.MAPPING, mapping.PARENT_KEY)
_ROWS: Final = 10_000
_ROWS_READ: Final = 65_536


@dataclass(frozen=True, slots=True)
class HeldRun:
    """A run that a load of ours left in MLflow, finished or not."""

    uuid: str
    key: str
    run_id: str
    digest: str | None
    mapping: str | None
    parent_key: str | None
    artifact_uri: str

    @classmethod
    def from_tags(cls, uuid: str, artifact_uri: str, tags: dict[str, str]) -> HeldRun:
        """Build one from the run's tags."""
        return cls(
            uuid,
            tags.get(mapping.KEY, ""),
            tags.get(mapping.RUN_ID, ""),
            tags.get(mapping.DIGEST),
            tags.get(mapping.MAPPING),
            tags.get(mapping.PARENT_KEY),
            artifact_uri,
        )


class Database:
    """MLflow's tracking database, opened by itself, beside MLflow's own client."""

    def __init__(self, connection: Connection) -> None:
        self._sqlite = connection.dialect == "sqlite"
        if self._sqlite:
            options = {"timeout": 60.0, "isolation_level": None, "check_same_thread": False}
            self.engine = sa.create_engine(connection.uri, poolclass=sa.NullPool, connect_args=options)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        else:
            self.engine = sa.create_engine(connection.uri, poolclass=sa.NullPool)

    def close(self) -> None:
        """Let go of connections."""
        self.engine.dispose()

    def revision(self) -> str | None:
        """Return the schema revision; None if the database is empty."""
        with self.reading() as tx:
            if not sa.inspect(tx).has_table("alembic_version"):
                return None
            return tx.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads."""
        with self.engine.connect().execution_options(reading=True) as tx, tx.begin():
            yield tx

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """A transaction that writes: everything in it becomes visible at once, or nothing."""
        with self.engine.connect() as tx, tx.begin():
            yield Transaction(tx, sqlite=self._sqlite)

    def held(self, project_key: str) -> list[HeldRun]:
        """Return the runs of one project that loads left here and nobody deleted."""
        ours = sa.select(TAGS.c.run_uuid).where(TAGS.c.key == mapping.PROJECT_KEY, TAGS.c.value == project_key)
        query = (
            sa.select(RUNS.c.run_uuid, RUNS.c.artifact_uri, TAGS.c.key, TAGS.c.value)
            .join(TAGS, TAGS.c.run_uuid == RUNS.c.run_uuid)
            .where(RUNS.c.lifecycle_stage == "active", RUNS.c.run_uuid.in_(ours), TAGS.c.key.in_(_INDEXED))
        )
        tags: dict[str, dict[str, str]] = {}
        uris: dict[str, str] = {}
        with self.reading() as tx:
            for uuid, uri, key, value in tx.execute(query):
                tags.setdefault(uuid, {})[key] = value
                uris[uuid] = uri
        return [HeldRun.from_tags(uuid, uris[uuid], found) for uuid, found in sorted(tags.items())]

    def run_row(self, uuid: str) -> dict[str, Any] | None:
        """Return the row of a run in the table of runs."""
        with self.reading() as tx:
            row = tx.execute(sa.select(RUNS).where(RUNS.c.run_uuid == uuid)).mappings().first()
        return dict(row) if row is not None else None

    def texts(self, uuid: str, table: sa.Table) -> dict[str, str]:
        """Return the params or tags of a run."""
        with self.reading() as tx:
            return {
                row[0]: row[1]
                for row in tx.execute(sa.select(table.c.key, table.c.value).where(table.c.run_uuid == uuid))
            }

    def points(self, uuid: str) -> Iterator[Points]:
        """Read the metric points of a run in portions."""
        columns = (METRICS.c.key, METRICS.c.step, METRICS.c.timestamp, METRICS.c.value, METRICS.c.is_nan)
        query = sa.select(*columns).where(METRICS.c.run_uuid == sa.bindparam("uuid"))
        with self.reading() as tx:
            if not self._sqlite:
                result = tx.execution_options(yield_per=_ROWS_READ).execute(query, {"uuid": uuid})
                for portion in result.partitions():
                    yield _points([tuple(row) for row in portion])
                return
            # As in writing: plain tuples from the driver, without a layer that wraps each.
            cursor = tx.connection.cursor()
            try:
                cursor.execute(str(query.compile(self.engine)), (uuid,))
                while rows := cursor.fetchmany(_ROWS_READ):
                    yield _points(rows)
            finally:
                cursor.close()

    def latest(self, uuid: str) -> dict[str, tuple[int, int, float, bool]]:
        """Return what MLflow shows as the latest value of each metric: key -> (step, time, value, is_nan)."""
        query = sa.select(LATEST.c.key, LATEST.c.step, LATEST.c.timestamp, LATEST.c.value, LATEST.c.is_nan)
        with self.reading() as tx:
            return {
                row[0]: (row[1], row[2], row[3], bool(row[4]))
                for row in tx.execute(query.where(LATEST.c.run_uuid == uuid))
            }


class Transaction:
    """The writes of one run."""

    def __init__(self, tx: sa.Connection, *, sqlite: bool) -> None:
        self._tx = tx
        self._sqlite = sqlite

    def delete(self, uuids: Sequence[str]) -> None:
        """Take runs out, as if they had never been there."""
        for uuid in uuids:
            for table in (METRICS, LATEST, PARAMS, TAGS, RUNS):
                self._tx.execute(sa.delete(table).where(table.c.run_uuid == uuid))

    def run(self, **columns: Any) -> None:
        """Insert the run itself."""
        fixed = {"source_type": "UNKNOWN", "source_name": "", "entry_point_name": "", "source_version": ""}
        self._tx.execute(sa.insert(RUNS).values(**fixed, lifecycle_stage="active", deleted_time=None, **columns))

    def metrics(self, uuid: str, portions: Iterable[Points]) -> int:
        """Insert all metric points and the latest of each; return their number."""
        latest = Latest()
        count = 0
        for points in portions:
            latest.add(points)
            count += len(points)
            keys = np.asarray(points.keys, dtype=object)[points.codes] if len(points) else np.empty(0, object)
            columns = (keys, points.values, points.times, points.steps, points.is_nan)
            rows = zip(*(column.tolist() for column in columns), strict=True)
            self._insert(METRICS, ("key", "value", "timestamp", "step", "is_nan"), uuid, rows)
        ends = ((key, value, time, step, is_nan) for key, step, time, value, is_nan in latest.rows())
        self._insert(LATEST, ("key", "value", "timestamp", "step", "is_nan"), uuid, ends)
        return count

    def texts(self, uuid: str, table: sa.Table, texts: Iterable[tuple[str, str]]) -> None:
        """Insert params or tags, in this order."""
        self._insert(table, ("key", "value"), uuid, texts)

    def link(self, parent_uuid: str, children: Iterable[str]) -> None:
        """Make runs that are there already children of another."""
        for child in children:
            self._tx.execute(sa.delete(TAGS).where(TAGS.c.run_uuid == child, TAGS.c.key == mapping.PARENT_RUN))
            self._tx.execute(sa.insert(TAGS).values(run_uuid=child, key=mapping.PARENT_RUN, value=parent_uuid))

    def _insert(self, table: sa.Table, columns: Sequence[str], uuid: str, rows: Iterable[tuple[Any, ...]]) -> None:
        if self._sqlite:
            names = ", ".join(f'"{name}"' for name in (*columns, "run_uuid"))
            places = ", ".join("?" * len(columns))
            # The driver itself takes an iterator and is several times faster than any layer above it.
            cursor: Any = self._tx.connection.cursor()
            try:
                cursor.executemany(
                    f'INSERT INTO "{table.name}" ({names}) VALUES ({places}, ?)',  # noqa: S608 - MLflow's own names
                    ((*row, uuid) for row in rows),
                )
            finally:
                cursor.close()
            return
        statement = sa.insert(table)
        portion: list[dict[str, Any]] = []
        for row in rows:
            portion.append({**dict(zip(columns, row, strict=True)), "run_uuid": uuid})
            if len(portion) == _ROWS:
                self._tx.execute(statement, portion)
                portion = []
        if portion:
            self._tx.execute(statement, portion)


def _points(rows: Sequence[tuple[Any, ...]]) -> Points:
    """Turn rows of (key, step, time, value, is_nan) into columns."""
    keys, steps, times, values, is_nan = zip(*rows, strict=True)
    encoded = pa.array(keys, pa.string()).dictionary_encode()
    return Points(
        encoded.dictionary.to_pylist(),
        encoded.indices.to_numpy().astype(np.intp),
        np.array(steps, np.int64),
        np.array(times, np.int64),
        np.array(values, np.float64) + 0.0,
        np.array(is_nan, np.bool_),
    )


def _begin_sqlite(tx: sa.Connection) -> None:
    """Begin in a way that SQLite keeps: its driver would begin late and end early by itself."""
    tx.exec_driver_sql("BEGIN" if tx.get_execution_options().get("reading") else "BEGIN IMMEDIATE")
