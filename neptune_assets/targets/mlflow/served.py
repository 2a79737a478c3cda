"""The way into MLflow through its client: tracking servers, and databases whose schema was not tested.

There is no transaction: a new run is filled beside the old one, and a replaced run gets a new MLflow id.
See :mod:`~neptune_assets.targets.mlflow.rest` for the requests.
"""

from __future__ import annotations

import logging

from mlflow.exceptions import MlflowException

from neptune_assets.targets.mlflow import artifacts, mapping, rest, verify
from neptune_assets.targets.mlflow.client import Client
from neptune_assets.targets.mlflow.database import HeldRun
from neptune_assets.targets.mlflow.jobs import Accounts, Content, Job
from neptune_assets.targets.protocol import Receipt

log = logging.getLogger(__name__)


class Served:
    """Writes and reads runs through MLflow's client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def held(self, project_key: str) -> list[HeldRun]:
        """Return the runs of one project that loads left in MLflow and nobody deleted."""
        return rest.held(self._client.api, self._client.experiment_ids(), project_key)

    def replace(self, job: Job) -> tuple[HeldRun, Receipt]:
        """Make MLflow hold exactly this run. The digest goes in last."""
        client, run, plan = self._client.api, job.run, job.plan
        # What another load left unfinished goes first, so that never more than one of them lies about.
        for item in job.old:
            if item.digest is None:
                self._discard(item)
        tags = dict(job.tags)
        first = {name: tags[name] for name in (mapping.KEY, mapping.PROJECT_KEY, mapping.PROJECT, mapping.RUN_ID)}
        created = client.create_run(job.experiment_id, start_time=plan.start, tags=first, run_name=plan.run_name)
        run_uuid = created.info.run_id
        store = self._artifacts(created.info.artifact_uri)
        accounts = Accounts(job, store)
        artifacts.write_artifacts(run, plan, store, accounts.counts)
        stream = job.stream()
        rest.log_metrics(client, run_uuid, stream)
        accounts.settle(stream)
        digest = {mapping.DIGEST: tags.pop(mapping.DIGEST)}
        rest.log_texts(client, run_uuid, dict(plan.params), tags)
        for child in job.children:
            client.set_tag(child, mapping.PARENT_RUN, run_uuid)
        client.set_terminated(run_uuid, "FAILED" if plan.failed else "FINISHED", plan.end)
        for item in job.old:
            if item.digest is not None:
                self._discard(item)
        rest.log_texts(client, run_uuid, {}, digest)
        if any(item.digest is not None for item in job.old):
            accounts.notes.append("the run it replaces is in MLflow's trash until `mlflow gc`")
        return HeldRun.from_tags(run_uuid, store.uri, {**tags, **digest}), accounts.receipt(run_uuid)

    def remove(self, runs: list[HeldRun]) -> None:
        """Put runs into MLflow's trash."""
        for item in runs:
            rest.delete_run(self._client.api, item.uuid)

    def content(self, run_uuid: str, expected: set[str]) -> Content | None:
        """Return what MLflow holds of a run, None if it is gone. Its metrics and those ``expected`` are read."""
        try:
            found = self._client.api.get_run(run_uuid)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        keys = sorted({*expected, *found.data.metrics})
        return Content(
            {**dict(found.info), "name": found.info.run_name},
            verify.sum_points(rest.read_points(self._client.api, run_uuid, keys)),
            None,
            dict(found.data.params),
            dict(found.data.tags),
        )

    def close(self) -> None:
        """Nothing is kept open."""

    def _artifacts(self, uri: str) -> artifacts.Artifacts:
        return artifacts.Artifacts(uri, self._client.connection.uri)

    def _discard(self, item: HeldRun) -> None:
        rest.delete_run(self._client.api, item.uuid)
        try:
            self._artifacts(item.artifact_uri).delete()
        except MlflowException as error:
            log.warning("Artifacts of the replaced MLflow run %s were not deleted: %s", item.uuid, error)
