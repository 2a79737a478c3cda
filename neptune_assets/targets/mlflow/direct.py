"""The direct way into MLflow: one run is one transaction in the tracking database.

Others see the old run or the new one, and its address in MLflow stays the same. Artifacts are written before the
transaction into a directory of their own, which the transaction points to; what it replaces is deleted afterwards.
"""

from __future__ import annotations

import uuid

from neptune_assets.targets.mlflow import artifacts, verify
from neptune_assets.targets.mlflow.database import PARAMS, TAGS, Database, HeldRun
from neptune_assets.targets.mlflow.jobs import Accounts, Content, Job
from neptune_assets.targets.protocol import Receipt


class Direct:
    """Writes and reads runs in MLflow's tracking database."""

    def __init__(self, database: Database, tracking_uri: str) -> None:
        self._database = database
        self._tracking_uri = tracking_uri

    def held(self, project_key: str) -> list[HeldRun]:
        """Return the runs of one project that loads left in MLflow and nobody deleted."""
        return self._database.held(project_key)

    def replace(self, job: Job) -> tuple[HeldRun, Receipt]:
        """Make MLflow hold exactly this run."""
        run, plan, old = job.run, job.plan, job.old
        # One address for ever, also when a user threw the run away in MLflow and loads it again.
        run_uuid = old[0].uuid if len(old) == 1 else job.key
        home = f"{job.location.rstrip('/')}/{run_uuid}"
        generation = uuid.uuid4().hex[:12]
        store = self._artifacts(f"{home}/{generation}")
        accounts = Accounts(job, store)
        try:
            artifacts.write_artifacts(run, plan, store, accounts.counts)
            with self._database.writing() as tx:
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
                stream = job.stream()
                tx.metrics(run_uuid, stream)
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
        with self._database.writing() as tx:
            tx.delete([item.uuid for item in runs])

    def content(self, run_uuid: str, expected: set[str]) -> Content | None:
        """Return what the database holds of a run, None if it is gone. Reads every metric, not only ``expected``."""
        info = self._database.run_row(run_uuid)
        if info is None:
            return None
        return Content(
            info,
            verify.sum_points(self._database.points(run_uuid)),
            self._database.latest(run_uuid),
            self._database.texts(run_uuid, PARAMS),
            self._database.texts(run_uuid, TAGS),
        )

    def close(self) -> None:
        """Let go of connections."""
        self._database.close()

    def _artifacts(self, uri: str) -> artifacts.Artifacts:
        return artifacts.Artifacts(uri, self._tracking_uri)

    def _clear(self, home: str, generation: str, old_uris: list[str]) -> None:
        """Delete artifacts of the run that was replaced, and what loads that died left beside them."""
        for name in self._artifacts(home).children():
            if name != generation:
                self._artifacts(f"{home}/{name}").delete()
        for uri in old_uris:
            if not uri.startswith(f"{home}/"):
                self._artifacts(uri).delete()
