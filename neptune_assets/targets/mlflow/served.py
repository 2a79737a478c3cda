"""The way into MLflow call by call: tracking servers, and databases whose schema was not tested.

There is no transaction. A new MLflow run is filled beside the old one and has no digest until everything is there;
then the old one goes, then the digest is set. Whatever has no digest is partial and is thrown away next time. A run
that is replaced gets a new MLflow id. The calls are those of :mod:`~neptune_assets.targets.mlflow.rest` or
:mod:`~neptune_assets.targets.mlflow.calls`.
"""

from __future__ import annotations

import logging
from functools import cached_property

from mlflow.exceptions import MlflowException

from neptune_assets.errors import LakeError
from neptune_assets.targets.mlflow import artifacts, mapping, verify
from neptune_assets.targets.mlflow.artifact_store import Artifacts
from neptune_assets.targets.mlflow.calls import Calls
from neptune_assets.targets.mlflow.client import Client
from neptune_assets.targets.mlflow.database import HeldRun
from neptune_assets.targets.mlflow.jobs import Accounts, Content, Job
from neptune_assets.targets.mlflow.rest import Rest
from neptune_assets.targets.protocol import Receipt

log = logging.getLogger(__name__)


class Served:
    """Writes and reads runs call by call, ``in_flight`` requests at once where there is a server."""

    def __init__(self, client: Client, in_flight: int) -> None:
        self._client = client
        self._in_flight = in_flight

    @property
    def runs_at_once(self) -> int:
        """As many as requests at once; MLflow's client on a database takes one run after the other."""
        return self._in_flight if self._client.connection.dialect is None else 1

    @cached_property
    def _calls(self) -> Rest | Calls:
        if self._client.connection.dialect is None:
            return Rest(self._client.connection, self._in_flight)
        return Calls(self._client.api)

    def held(self, project_key: str) -> list[HeldRun]:
        """Return the runs of one project that loads left in MLflow and nobody deleted."""
        condition = f"tags.`{mapping.PROJECT_KEY}` = '{project_key}'"
        return self._calls.held(self._client.experiment_ids(), condition)

    def replace(self, job: Job) -> tuple[HeldRun, Receipt]:
        """Make MLflow hold exactly this run. The digest goes in last."""
        calls, run, plan = self._calls, job.run, job.plan
        # What another load left unfinished goes first, so that never more than one of them lies about.
        for item in job.old:
            if item.digest is None:
                self._discard(item)
        tags = dict(job.tags)
        first = {name: tags[name] for name in (mapping.KEY, mapping.PROJECT_KEY, mapping.PROJECT, mapping.RUN_ID)}
        run_uuid, uri = calls.create_run(job.experiment_id, plan.run_name, plan.start, first)
        store = self._artifacts(uri)
        accounts = Accounts(job, store)
        try:
            artifacts.write_artifacts(run, plan, store, accounts.counts)
            stream = job.stream()
            calls.log_metrics(run_uuid, stream)
            accounts.settle(stream)
        except LakeError:
            # The lake is to blame, and MLflow can be asked: nothing half is left beside the run that it holds.
            self._discard(HeldRun.from_tags(run_uuid, store.uri, first))
            raise
        digest = {mapping.DIGEST: tags.pop(mapping.DIGEST)}
        calls.log_texts(run_uuid, plan.params, tags)
        for child in job.children:
            calls.log_texts(child, {}, {mapping.PARENT_RUN: run_uuid})
        calls.finish(run_uuid, "FAILED" if plan.failed else "FINISHED", plan.end)
        for ghost in calls.ghosts(run_uuid):
            calls.delete_run(ghost)
        for item in job.old:
            if item.digest is not None:
                self._discard(item)
        calls.log_texts(run_uuid, {}, digest)
        if any(item.digest is not None for item in job.old):
            accounts.notes.append("the run it replaces is in MLflow's trash until `mlflow gc`")
        return HeldRun.from_tags(run_uuid, store.uri, {**tags, **digest}), accounts.receipt(run_uuid)

    def remove(self, runs: list[HeldRun]) -> None:
        """Put runs into MLflow's trash."""
        for item in runs:
            self._calls.delete_run(item.uuid)

    def content(self, run_uuid: str, expected: set[str]) -> Content | None:
        """Return what MLflow holds of a run, None if it is gone. Its metrics and those ``expected`` are read."""
        found = self._calls.run(run_uuid)
        if found is None:
            return None
        info, params, tags, metrics = found
        points = verify.sum_points(self._calls.points(run_uuid, sorted({*expected, *metrics})))
        return Content(info, points, None, params, tags)

    def close(self) -> None:
        """Nothing is kept open."""

    def _artifacts(self, uri: str) -> Artifacts:
        return Artifacts(uri, self._client.connection.uri)

    def _discard(self, item: HeldRun) -> None:
        self._calls.delete_run(item.uuid)
        try:
            self._artifacts(item.artifact_uri).delete()
        except MlflowException as error:
            log.warning("Artifacts of the replaced MLflow run %s were not deleted: %s", item.uuid, error)
