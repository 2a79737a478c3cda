"""MLflow as a target: finds, replaces, reads back and removes runs.

Two ways to write, one result. Where the tracking URI is a database whose schema was tested, it is written directly
(:mod:`~neptune_assets.targets.mlflow.database`), otherwise MLflow's client is used
(:mod:`~neptune_assets.targets.mlflow.api`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

from neptune_assets.errors import TargetError
from neptune_assets.lake.reader import LakeRun
from neptune_assets.retries import RetryPolicy
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.mlflow import backend, mapping
from neptune_assets.targets.mlflow.api import REQUEST_RETRIES, ApiBackend
from neptune_assets.targets.mlflow.artifacts import Artifacts
from neptune_assets.targets.mlflow.backend import ExistingRun, ExistingRuns, Job
from neptune_assets.targets.mlflow.connection import Client, connection
from neptune_assets.targets.mlflow.database import DIRECT_DIALECTS, TESTED_REVISIONS, DatabaseBackend
from neptune_assets.targets.mlflow.mapping import MlflowPlan
from neptune_assets.targets.mlflow.settings import MlflowSettings
from neptune_assets.targets.profile import ValueCounts
from neptune_assets.targets.protocol import Plan, Receipt, TargetRun, UnsupportedValues, Verdict

log = logging.getLogger(__name__)


class MlflowTarget:
    """One connection to MLflow, for one load or one verification; several threads may each load a run."""

    def __init__(
        self,
        target: MlflowSettings,
        lake: LakeSettings,
        *,
        retries: RetryPolicy = REQUEST_RETRIES,
        tested_revisions: Collection[str] = TESTED_REVISIONS,
    ) -> None:
        """``retries`` is for requests to a server, ``tested_revisions`` are the schemas that are written directly."""
        self._settings = target
        self._connection = connection(target, lake)
        self._retries = retries
        self._tested = tested_revisions
        self._existing = ExistingRuns(self._ask)

    @property
    def name(self) -> str:
        """The word that settings and assets use for this target."""
        return "mlflow"

    def check(self) -> None:
        """Raise TargetError with the next action if MLflow cannot be used; creates and migrates a new database."""
        self._backend.check()
        of_client = isinstance(self._backend, ApiBackend) and self._connection.dialect in DIRECT_DIALECTS
        if of_client and self._settings.direct:
            log.warning(
                "The schema of MLflow's database %s was not tested with direct loads: the slower client is used.",
                self._connection.display_url,
            )

    @property
    def runs_at_once(self) -> int:
        """How many runs are worth loading at once."""
        return self._backend.runs_at_once

    def plan(self, run: LakeRun) -> MlflowPlan:
        """Say what loading the run will do. Writes nothing."""
        # One opened run is one state of the lake and has one plan, which loading and reading back both ask for.
        plans: dict[Any, MlflowPlan] = run.derived.setdefault(MlflowPlan, {})
        key = (run.project_id, self._fingerprint, self._connection.case_sensitive)
        if key not in plans:
            plans[key] = mapping.make_plan(
                run,
                naming=self._settings.naming,
                prefix=self._settings.experiment_prefix,
                step_multiplier=self._settings.step_multiplier,
                case_sensitive=self._connection.case_sensitive,
            )
        return plans[key]

    def is_new(self) -> bool:
        """True if the database is a file that is not there yet."""
        file = self._connection.database_file
        return file is not None and not file.exists()

    def unsupported_values(self, values: ValueCounts, plan: Plan) -> Sequence[UnsupportedValues]:
        """Return the values of a run that MLflow cannot hold, and what becomes of them."""
        if not isinstance(plan, MlflowPlan):
            raise TypeError("this plan was made by another target")
        return mapping.unsupported(values, plan)

    def find(self, project_id: str, run_id: str) -> TargetRun | None:
        """Find a run by the hash of project and run id that its tags hold. Raises TargetError if two are complete."""
        found = self._of_run(project_id, run_id)
        finished = [run for run in found if run.digest is not None]
        if len(finished) > 1:
            raise TargetError(
                f"MLflow holds run {run_id!r} of {project_id} {len(finished)} times: "
                f"{', '.join(run.uuid for run in finished)}.",
                hint="Delete all but one of them in MLflow, then load again.",
            )
        if not found:
            return None
        # Something unfinished beside a finished run is cleared away by loading again.
        whole = finished[0] if finished and len(found) == 1 else None
        digest = self._digest(whole) if whole is not None else None
        return TargetRun(project_id, run_id, (whole or found[0]).uuid, digest)

    def replace(self, run: LakeRun, plan: Plan) -> Receipt:
        """Make MLflow hold exactly this run. The digest goes in last."""
        if not isinstance(plan, MlflowPlan):
            raise TypeError("this plan was made by another target")
        old = self._of_run(run.project_id, run.run_id)
        key = mapping.external_key(run.project_id, run.run_id)
        with self._connection.errors(f"loading run {run.run_id!r}"):
            experiment_id, location = self._backend.experiment(plan.experiment)
            tags = {**self._parent_tag(run, plan), **self._tags(run, plan)}
            job = Job(run, plan, tags, experiment_id, location, old, self._existing.forks_of(key))
            loaded, receipt = self._backend.replace(job)
        self._existing.put(loaded.key, [loaded])
        return receipt

    def verify(self, run: LakeRun, receipt: Receipt) -> Verdict:
        """Read back metrics, params, tags, times and artifacts and compare them with the lake."""
        plan = self.plan(run)
        with self._connection.errors(f"reading back run {run.run_id!r}"):
            differences = self._differences(run, plan, receipt)
        return Verdict(run.run_id, tuple(differences[: backend.MAX_DIFFERENCES]))

    def remove(self, project_id: str, run_id: str) -> None:
        """Take the run out of MLflow: for good from a database, into MLflow's trash through a server."""
        old = self._of_run(project_id, run_id)
        with self._connection.errors(f"removing run {run_id!r}"):
            self._backend.remove(old)
            for item in old:
                Artifacts(item.artifact_uri, self._connection).delete()
        self._existing.put(mapping.external_key(project_id, run_id), [])

    def runs(self, project_id: str) -> Iterator[TargetRun]:
        """Everything of this project that loads left in MLflow."""
        self._existing.ask(project_id, again=True)
        for key in self._existing.all_keys():
            for item in self._existing.of(key):
                if mapping.external_key(project_id, item.run_id) == key:
                    yield TargetRun(project_id, item.run_id, item.uuid, self._digest(item))

    def close(self) -> None:
        """Nothing is kept open."""

    # -- finding

    @cached_property
    def _backend(self) -> DatabaseBackend | ApiBackend:
        """How runs are written and read: straight into the tracking database if that may be, else the client."""
        api = ApiBackend(self._connection, self._settings.http_connections, self._retries)
        if self._connection.dialect not in DIRECT_DIALECTS or not self._settings.direct:
            return api
        direct = DatabaseBackend(self._connection, self._tested)
        if not direct.usable():
            # MLflow itself creates a new database, and refuses an old one that needs to be upgraded.
            Client(self._connection).release()
        return direct if direct.usable() else api

    @property
    def _fingerprint(self) -> str:
        """Changes whenever settings or code would map a run differently."""
        chosen = self._settings
        return f"{mapping.VERSION}:{chosen.naming}:{chosen.experiment_prefix}:{chosen.step_multiplier or 'auto'}"[:200]

    def _digest(self, run: ExistingRun) -> str | None:
        if run.digest is None or run.mapping == self._fingerprint:
            return run.digest
        return f"{run.digest} mapped as {run.mapping}"

    def _of_run(self, project_id: str, run_id: str) -> list[ExistingRun]:
        self._existing.ask(project_id)
        return self._existing.of(mapping.external_key(project_id, run_id))

    def _ask(self, project_id: str) -> list[ExistingRun]:
        with self._connection.errors(f"listing the runs of {project_id}"):
            return self._backend.existing_runs(mapping.project_key(project_id))

    def _tags(self, run: LakeRun, plan: MlflowPlan) -> dict[str, str]:
        """Return the run's own tags in the order they are written, the digest last."""
        tags = {"mlflow.runName": plan.run_name, **plan.tags}
        if plan.user is not None:
            tags["mlflow.user"] = plan.user
        return {**tags, mapping.MAPPING: self._fingerprint, mapping.DIGEST: run.record.digest}

    def _parent_tag(self, run: LakeRun, plan: MlflowPlan) -> dict[str, str]:
        """Return the tag that makes a fork the child of its parent, if that is there."""
        parents = self._of_run(run.project_id, plan.parent) if plan.parent not in {None, run.run_id} else []
        return {mapping.PARENT_RUN: parents[0].uuid} if len(parents) == 1 else {}

    # -- reading back

    def _differences(self, run: LakeRun, plan: MlflowPlan, receipt: Receipt) -> list[str]:
        expected, latest = backend.expected_points(run, plan)
        tags = self._tags(run, plan)
        held = self._backend.content(receipt.target_id, {*expected})
        if held is None:
            return [f"MLflow run {receipt.target_id} is gone"]
        row = {
            "name": plan.run_name,
            "status": "FAILED" if plan.failed else "FINISHED",
            "start_time": plan.start,
            "end_time": plan.end,
            "lifecycle_stage": "active",
        }
        store = Artifacts(str(held.info["artifact_uri"]), self._connection)
        return [
            *backend.compare_texts("the run's", row, {name: held.info[name] for name in row}, subset=False),
            *backend.compare_points(expected, held.points),
            *(
                backend.compare_texts("latest value of metric", latest, held.latest, subset=False)
                if held.latest is not None
                else ()
            ),
            *backend.compare_texts("param", plan.params, held.params, subset=False),
            *backend.compare_texts("tag", tags, held.tags, subset=True),
            *backend.compare_artifacts(store, receipt, content=self._settings.verify_files == "full"),
        ]
