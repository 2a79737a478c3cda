"""MLflow's tracking database, written and read without MLflow: what its tables are is said by MLflow's own models.

A schema revision that was not tested is refused, and the load then goes through MLflow's client. Everything of a run is
written in one transaction.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

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

from neptune_assets.targets.mlflow import mapping
from neptune_assets.targets.mlflow.config import Connection
from neptune_assets.targets.mlflow.points import Latest, Points
from neptune_assets.targets.mlflow.session import Session

TESTED_REVISIONS: Final = frozenset({"dc11669786a5"})
"""Alembic revisions of MLflow's schema that a direct load was tested with (MLflow 3.17)."""

EXPERIMENTS, RUNS, TAGS, PARAMS = (model.__table__ for model in (SqlExperiment, SqlRun, SqlTag, SqlParam))
METRICS, LATEST = SqlMetric.__table__, SqlLatestMetric.__table__

_INDEXED: Final = (mapping.KEY, mapping.RUN_ID, mapping.DIGEST, mapping.MAPPING, mapping.PARENT_KEY)


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
    def from_tags(cls, uuid: str, artifact_uri: str, tags: Mapping[str, str]) -> HeldRun:
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
    """MLflow's tracking database. Every transaction is a connection of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """A transaction that only reads."""
        with Session(self._connection, writes=False) as session:
            yield Reader(session)

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """A transaction that writes: everything in it becomes visible at once, or nothing."""
        with Session(self._connection, writes=True) as session:
            yield Transaction(session)
            session.commit()


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
        for uuid, uri, key, value in self._session.rows(query):
            tags.setdefault(uuid, {})[key] = value
            uris[uuid] = uri
        return [HeldRun.from_tags(uuid, uris[uuid], found) for uuid, found in sorted(tags.items())]

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
