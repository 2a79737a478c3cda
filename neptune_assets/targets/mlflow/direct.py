"""The direct way into MLflow: one run is one transaction in the tracking database.

Others see the old run or the new one, and its address in MLflow stays the same. Artifacts are written before the
transaction into a directory of their own, which the transaction points to; what it replaces is deleted afterwards.
"""

from __future__ import annotations

import logging
import uuid
from contextlib import AbstractContextManager
from threading import Lock
from typing import Final

import adbc_driver_manager

from neptune_assets.errors import TargetError
from neptune_assets.lake.layout import safe_name
from neptune_assets.targets.mlflow import artifacts, verify
from neptune_assets.targets.mlflow.artifact_store import Artifacts
from neptune_assets.targets.mlflow.config import Connection
from neptune_assets.targets.mlflow.database import PARAMS, TAGS, TESTED_REVISIONS, Database, HeldRun
from neptune_assets.targets.mlflow.jobs import Accounts, Content, Job
from neptune_assets.targets.mlflow.read_ahead import read_ahead
from neptune_assets.targets.mlflow.session import database_errors
from neptune_assets.targets.protocol import Receipt

log = logging.getLogger(__name__)

_FILE_RUNS: Final = 3
_SERVER_RUNS: Final = 64


class Direct:
    """Writes and reads runs in MLflow's tracking database."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._database = Database(connection)
        self._experiments: dict[str, tuple[str, str]] = {}
        self._experiments_lock = Lock()

    @property
    def runs_at_once(self) -> int:
        """One run is written into a SQLite file while others are prepared and read back; a server has no such limit."""
        return _FILE_RUNS if self._connection.database_file is not None else _SERVER_RUNS

    def usable(self) -> bool:
        """True if the schema of the database is one that direct loads were tested with."""
        return self.revision() in TESTED_REVISIONS

    def check(self) -> None:
        """Raise TargetError or TargetUnavailableError if the database cannot be read, or was upgraded meanwhile."""
        if not self.usable():
            raise TargetError(
                f"The schema of MLflow's database {self._connection.shown} is no longer one that was tested.",
                hint="Load again: MLflow's client is used then.",
            )

    def revision(self) -> str | None:
        """Return the revision of the schema, None if there is none yet."""
        file = self._connection.database_file
        if file is not None and not file.exists():
            return None
        with self._errors("reading its schema revision"), self._database.reading() as reader:
            return reader.revision()

    def experiment(self, name: str) -> tuple[str, str]:
        """Return (id, artifact location) of the experiment, created if it is missing."""
        with self._experiments_lock:
            if name not in self._experiments:
                self._experiments[name] = self._experiment(name)
            return self._experiments[name]

    def _experiment(self, name: str) -> tuple[str, str]:
        with self._errors(f"looking for experiment {name!r}"):
            with self._database.reading() as reader:
                found = reader.experiment(name)
            if found is None:
                root = str(self._connection.artifact_root).rstrip("/")
                try:
                    with self._database.writing() as tx:
                        tx.create_experiment(name, f"{root}/{safe_name(name)}")
                except adbc_driver_manager.IntegrityError:
                    log.debug("Another load created experiment %r at the same moment.", name)
                with self._database.reading() as reader:
                    found = reader.experiment(name)
        if found is None or found[2] != "active":
            raise TargetError(
                f"MLflow experiment {name!r} is deleted.",
                hint=f"Restore it (`mlflow experiments restore -x {found and found[0]}`) or set experiment_prefix.",
            )
        return found[0], found[1]

    def held(self, project_key: str) -> list[HeldRun]:
        """Return the runs of one project that loads left in MLflow and nobody deleted."""
        with self._errors("listing runs"), self._database.reading() as reader:
            return reader.held(project_key)

    def replace(self, job: Job) -> tuple[HeldRun, Receipt]:
        """Make MLflow hold exactly this run."""
        with self._errors(f"loading run {job.run.run_id!r}"):
            return self._replace(job)

    def _replace(self, job: Job) -> tuple[HeldRun, Receipt]:
        run, plan, old = job.run, job.plan, job.old
        # One address for ever, also when a user threw the run away in MLflow and loads it again.
        run_uuid = old[0].uuid if len(old) == 1 else job.key
        home = f"{job.location.rstrip('/')}/{run_uuid}"
        generation = uuid.uuid4().hex[:12]
        store = self._artifacts(f"{home}/{generation}")
        accounts = Accounts(job, store)
        try:
            artifacts.write_artifacts(run, plan, store, accounts.counts)
            stream = job.stream()
            # What waits for its turn to write has its first points ready.
            with read_ahead(stream) as portions, self._database.writing() as tx:
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
        return HeldRun.from_tags(run_uuid, store.uri, dict(job.tags)), accounts.receipt(run_uuid)

    def remove(self, runs: list[HeldRun]) -> None:
        """Delete runs for good."""
        with self._errors("removing runs"), self._database.writing() as tx:
            tx.delete([item.uuid for item in runs])

    def content(self, run_uuid: str, expected: set[str]) -> Content | None:
        """Return what the database holds of a run, None if it is gone. Reads every metric, not only ``expected``."""
        with self._errors("reading back"), self._database.reading() as reader:
            info = reader.run_row(run_uuid)
            if info is None:
                return None
            return Content(
                info,
                verify.sum_points(reader.points(run_uuid)),
                reader.latest(run_uuid),
                reader.texts(run_uuid, PARAMS),
                reader.texts(run_uuid, TAGS),
            )

    def close(self) -> None:
        """Nothing is kept open."""

    def _errors(self, doing: str) -> AbstractContextManager[None]:
        return database_errors(doing, self._connection.shown)

    def _artifacts(self, uri: str) -> Artifacts:
        return Artifacts(uri, self._connection.uri)

    def _clear(self, home: str, generation: str, old_uris: list[str]) -> None:
        """Delete artifacts of the run that was replaced, and what loads that died left beside them."""
        for name in self._artifacts(home).children():
            if name != generation:
                self._artifacts(f"{home}/{name}").delete()
        for uri in old_uris:
            if not uri.startswith(f"{home}/"):
                self._artifacts(uri).delete()
