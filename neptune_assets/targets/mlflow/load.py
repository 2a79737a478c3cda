"""MLflow as a target: finds, replaces, reads back and removes runs.

Two ways to write, one result. Where the tracking URI is a database whose schema was tested, a run is one transaction:
others see the old run or the new one, and its address in MLflow stays the same. Otherwise it goes through MLflow's
client (see :mod:`~neptune_assets.targets.mlflow.rest`), and a replaced run gets a new MLflow id.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from mlflow.exceptions import MlflowException

from neptune_assets import settings
from neptune_assets.errors import TargetError
from neptune_assets.lake.reader import LakeRun
from neptune_assets.schema import AttributeType
from neptune_assets.targets.mlflow import artifacts, mapping, rest, verify
from neptune_assets.targets.mlflow.client import Client, mlflow_errors
from neptune_assets.targets.mlflow.config import connection
from neptune_assets.targets.mlflow.database import DIRECT_DIALECTS, PARAMS, TAGS, TESTED_REVISIONS, Database, HeldRun
from neptune_assets.targets.mlflow.mapping import MlflowPlan
from neptune_assets.targets.mlflow.points import PointStream
from neptune_assets.targets.protocol import Plan, Receipt, TargetRun, Verdict

log = logging.getLogger(__name__)


class MlflowTarget:
    """One connection to MLflow, for one load or one verification. Not shared between threads."""

    def __init__(self, target: settings.MlflowTarget, lake: settings.LakeSettings) -> None:
        self._settings = target
        self._connection = connection(target, lake)
        self._client = Client(self._connection)
        self._held: dict[str, list[HeldRun]] = {}
        self._listed: set[str] = set()

    @property
    def name(self) -> str:
        """The word that settings and assets use for this target."""
        return "mlflow"

    def check(self) -> None:
        """Raise TargetError with the next action if MLflow cannot be used; creates and migrates a new database."""
        self._client.check()
        if self._connection.dialect in DIRECT_DIALECTS and self._settings.direct and self._database is None:
            log.warning(
                "The schema of MLflow's database %s was not tested with direct loads: the slower client is used.",
                self._connection.shown,
            )

    def plan(self, run: LakeRun) -> MlflowPlan:
        """Say what loading the run will do. Writes nothing."""
        return mapping.make_plan(
            run,
            naming=self._settings.naming,
            prefix=self._settings.experiment_prefix,
            step_multiplier=self._settings.step_multiplier,
            case_sensitive=self._connection.case_sensitive,
        )

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
        with mlflow_errors(f"loading run {run.run_id!r}", self._connection.shown):
            experiment_id, location = self._client.experiment(plan.experiment)
            if self._database is not None:
                loaded, receipt = self._replace_in_database(self._database, run, plan, old, experiment_id, location)
            else:
                loaded, receipt = self._replace_through_client(run, plan, old, experiment_id)
        self._held[loaded.key] = [loaded]
        return receipt

    def verify(self, run: LakeRun, receipt: Receipt) -> Verdict:
        """Read back metrics, params, tags, times and artifacts and compare them with the lake."""
        plan = self.plan(run)
        with mlflow_errors(f"reading back run {run.run_id!r}", self._connection.shown):
            differences = self._differences(run, plan, receipt)
        return Verdict(run.run_id, tuple(differences[: verify.MAX_DIFFERENCES]))

    def remove(self, project_id: str, run_id: str) -> None:
        """Take the run out of MLflow: for good from a database, into MLflow's trash through a server."""
        old = self._of_run(project_id, run_id)
        with mlflow_errors(f"removing run {run_id!r}", self._connection.shown):
            if self._database is not None:
                with self._database.writing() as tx:
                    tx.delete([item.uuid for item in old])
            else:
                for item in old:
                    rest.delete_run(self._client.api, item.uuid)
            for item in old:
                self._artifacts(item.artifact_uri).delete()
        self._held[mapping.external_key(project_id, run_id)] = []

    def runs(self, project_id: str) -> Iterator[TargetRun]:
        """Everything of this project that loads left in MLflow."""
        self._list(project_id, again=True)
        for key in sorted(self._held):
            for item in self._held[key]:
                if mapping.external_key(project_id, item.run_id) == key:
                    yield TargetRun(project_id, item.run_id, item.uuid, self._digest(item))

    def close(self) -> None:
        """Let go of connections."""
        if "_database" in self.__dict__ and self._database is not None:
            self._database.close()

    # -- finding

    @cached_property
    def _database(self) -> Database | None:
        """The tracking database, if it may be written directly."""
        if self._connection.dialect not in DIRECT_DIALECTS or not self._settings.direct:
            return None
        if self._connection.database_file is not None and not self._connection.database_file.exists():
            self._client.check()
        database = Database(self._connection)
        with mlflow_errors("reading its schema revision", self._connection.shown):
            revision = database.revision()
        if revision is None:
            self._client.check()
            revision = database.revision()
        if revision in TESTED_REVISIONS:
            return database
        database.close()
        return None

    @property
    def _fingerprint(self) -> str:
        """Changes whenever settings or code would map a run differently."""
        chosen = self._settings
        return f"{mapping.VERSION}:{chosen.naming}:{chosen.experiment_prefix}:{chosen.step_multiplier or 'auto'}"[:200]

    def _digest(self, run: HeldRun) -> str | None:
        if run.digest is None or run.mapping == self._fingerprint:
            return run.digest
        return f"{run.digest} mapped as {run.mapping}"

    def _of_run(self, project_id: str, run_id: str) -> list[HeldRun]:
        self._list(project_id)
        return self._held.get(mapping.external_key(project_id, run_id), [])

    def _list(self, project_id: str, *, again: bool = False) -> None:
        """Ask MLflow once for all runs of the project; a load of one project has it for itself."""
        if project_id in self._listed and not again:
            return
        key = mapping.project_key(project_id)
        with mlflow_errors(f"listing the runs of {project_id}", self._connection.shown):
            if self._database is not None:
                found = self._database.held(key)
            else:
                found = rest.held(self._client.api, self._client.experiment_ids(), key)
        self._held = {}
        for run in found:
            self._held.setdefault(run.key, []).append(run)
        self._listed = {project_id}

    # -- writing

    def _replace_in_database(
        self, database: Database, run: LakeRun, plan: MlflowPlan, old: list[HeldRun], experiment_id: str, location: str
    ) -> tuple[HeldRun, Receipt]:
        key = mapping.external_key(run.project_id, run.run_id)
        # One address for ever, also when a user threw the run away in MLflow and loads it again.
        run_uuid = old[0].uuid if len(old) == 1 else key
        home = f"{location.rstrip('/')}/{run_uuid}"
        generation = uuid.uuid4().hex[:12]
        store = self._artifacts(f"{home}/{generation}")
        counts = artifacts.Counts()
        try:
            artifacts.write_artifacts(run, plan, store, counts)
            with database.writing() as tx:
                tx.delete(sorted({run_uuid, key, *(item.uuid for item in old)}))
                tx.run(
                    run_uuid=run_uuid,
                    experiment_id=int(experiment_id),
                    name=plan.run_name,
                    # MLflow cannot read a run back that has no user; this is the word its own client uses.
                    user_id=plan.user or "unknown",
                    status="FAILED" if plan.failed else "FINISHED",
                    start_time=plan.start,
                    end_time=plan.end,
                    artifact_uri=store.uri,
                )
                stream = PointStream(run, plan.metric_keys, plan.step_multiplier, plan.start)
                tx.metrics(run_uuid, stream)
                notes, checks = self._after_points(plan, stream, store, counts)
                tx.texts(run_uuid, PARAMS, plan.params.items())
                tags = self._tags(run, plan)
                tx.texts(run_uuid, TAGS, tags.items())
                tx.link(run_uuid, self._children(key))
        except Exception:
            store.delete()
            raise
        self._clear(home, generation, [item.artifact_uri for item in old if item.artifact_uri != store.uri])
        loaded = HeldRun.from_tags(run_uuid, store.uri, tags)
        return loaded, self._receipt(run, loaded, plan, counts, notes, checks, store)

    def _replace_through_client(
        self, run: LakeRun, plan: MlflowPlan, old: list[HeldRun], experiment_id: str
    ) -> tuple[HeldRun, Receipt]:
        client = self._client.api
        # What another load left unfinished goes first, so that never more than one of them lies about.
        for item in old:
            if item.digest is None:
                self._discard(item)
        tags = self._tags(run, plan)
        first = {name: tags[name] for name in (mapping.KEY, mapping.PROJECT_KEY, mapping.PROJECT, mapping.RUN_ID)}
        created = client.create_run(experiment_id, start_time=plan.start, tags=first, run_name=plan.run_name)
        run_uuid = created.info.run_id
        store = self._artifacts(created.info.artifact_uri)
        counts = artifacts.Counts()
        artifacts.write_artifacts(run, plan, store, counts)
        stream = PointStream(run, plan.metric_keys, plan.step_multiplier, plan.start)
        rest.log_metrics(client, run_uuid, stream)
        notes, checks = self._after_points(plan, stream, store, counts)
        digest = {mapping.DIGEST: tags.pop(mapping.DIGEST)}
        rest.log_texts(client, run_uuid, dict(plan.params), tags)
        for child in self._children(mapping.external_key(run.project_id, run.run_id)):
            client.set_tag(child, mapping.PARENT_RUN, run_uuid)
        client.set_terminated(run_uuid, "FAILED" if plan.failed else "FINISHED", plan.end)
        for item in old:
            if item.digest is not None:
                self._discard(item)
        rest.log_texts(client, run_uuid, {}, digest)
        if any(item.digest is not None for item in old):
            notes.append("the run it replaces is in MLflow's trash until `mlflow gc`")
        loaded = HeldRun.from_tags(run_uuid, store.uri, {**tags, **digest})
        return loaded, self._receipt(run, loaded, plan, counts, notes, checks, store)

    def _after_points(
        self, plan: MlflowPlan, stream: PointStream, store: artifacts.Artifacts, counts: artifacts.Counts
    ) -> tuple[list[str], dict[str, str]]:
        """Write what the points left over, count them, and return notes and checks."""
        artifacts.write_sidecar(store, stream.sidecar)
        checks = {"artifacts": artifacts.write_manifest(store), "points": str(stream.logged)}
        if stream.rows:
            counts.take(AttributeType.FLOAT_SERIES, written=stream.logged, mapped=stream.rows - stream.logged)
        long = [kind for _, kind in plan.long_params]
        for kind, rows in plan.rows.items():
            if mapping.is_written(kind):
                counts.take(kind, written=rows - long.count(kind) - plan.nulls.get(kind, 0), mapped=long.count(kind))
            else:
                counts.take(kind, mapped=rows - plan.nulls.get(kind, 0))
            if plan.nulls.get(kind):
                counts.take(kind, dropped=plan.nulls[kind], reason="the source had no value")
        notes = list(plan.notes)
        words = {
            "infinite": "infinite points cannot be metrics in MLflow",
            "step": "points have a step that the multiplier does not make a whole 64-bit number",
            "time": "points are dated before 1970, which MLflow refuses",
            "negative_zero": "points are -0.0 and stand in MLflow as 0.0",
        }
        notes += [
            f"{count:,} {words[reason]}; they are exact in {artifacts.SIDECAR_FILE}"
            for reason, count in sorted(stream.apart.items())
        ]
        if stream.filled:
            notes.append(f"{stream.filled:,} points had no time and got the run's start time")
        return notes, checks

    def _tags(self, run: LakeRun, plan: MlflowPlan) -> dict[str, str]:
        """Return all tags in the order they are written, the digest last."""
        tags = {"mlflow.runName": plan.run_name, **plan.tags}
        if plan.user is not None:
            tags["mlflow.user"] = plan.user
        if plan.parent is not None:
            parents = self._of_run(run.project_id, plan.parent)
            if len(parents) == 1 and plan.parent != run.run_id:
                tags[mapping.PARENT_RUN] = parents[0].uuid
        return {**tags, mapping.MAPPING: self._fingerprint, mapping.DIGEST: run.record.digest}

    def _children(self, key: str) -> list[str]:
        """Return the MLflow ids of forks that were loaded before their parent."""
        return [
            item.uuid for runs in self._held.values() for item in runs if item.parent_key == key and item.key != key
        ]

    def _receipt(
        self,
        run: LakeRun,
        loaded: HeldRun,
        plan: MlflowPlan,
        counts: artifacts.Counts,
        notes: list[str],
        checks: dict[str, str],
        store: artifacts.Artifacts,
    ) -> Receipt:
        return Receipt(
            project_id=run.project_id,
            run_id=run.run_id,
            target_id=loaded.uuid,
            digest=run.record.digest,
            rows_in=counts.rows_in,
            written=counts.written,
            mapped=counts.mapped,
            dropped=counts.drops(),
            notes=notes,
            bytes_written=sum(size for size, _ in store.written.values()),
            checks=checks,
        )

    def _artifacts(self, uri: str) -> artifacts.Artifacts:
        return artifacts.Artifacts(uri, self._connection.uri)

    def _discard(self, item: HeldRun) -> None:
        rest.delete_run(self._client.api, item.uuid)
        try:
            self._artifacts(item.artifact_uri).delete()
        except MlflowException as error:
            log.warning("Artifacts of the replaced MLflow run %s were not deleted: %s", item.uuid, error)

    def _clear(self, home: str, generation: str, old_uris: list[str]) -> None:
        """Delete artifacts of the run that was replaced, and what loads that died left beside them."""
        for name in self._artifacts(home).children():
            if name != generation:
                self._artifacts(f"{home}/{name}").delete()
        for uri in old_uris:
            if not uri.startswith(f"{home}/"):
                self._artifacts(uri).delete()

    # -- reading back

    def _differences(self, run: LakeRun, plan: MlflowPlan, receipt: Receipt) -> list[str]:
        expected, latest = verify.expected_points(run, plan)
        tags = self._tags(run, plan)
        tags.pop(mapping.PARENT_RUN, None)
        info: dict[str, Any] | None
        if self._database is not None:
            info = self._database.run_row(receipt.target_id)
            if info is None:
                return [f"MLflow run {receipt.target_id} is gone"]
            held = verify.sum_points(self._database.points(receipt.target_id))
            held_latest: dict[str, Any] = self._database.latest(receipt.target_id)
            params, held_tags = (self._database.texts(receipt.target_id, table) for table in (PARAMS, TAGS))
        else:
            try:
                found = self._client.api.get_run(receipt.target_id)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return [f"MLflow run {receipt.target_id} is gone"]
                raise
            info = {**dict(found.info), "name": found.info.run_name}
            keys = {*expected, *found.data.metrics}
            held = verify.sum_points(rest.read_points(self._client.api, receipt.target_id, sorted(keys)))
            latest, held_latest = {}, {}
            params, held_tags = dict(found.data.params), dict(found.data.tags)
        row = {
            "name": plan.run_name,
            "status": "FAILED" if plan.failed else "FINISHED",
            "start_time": plan.start,
            "end_time": plan.end,
            "lifecycle_stage": "active",
        }
        return [
            *verify.compare_texts("the run's", row, {name: info[name] for name in row}, subset=False),
            *verify.compare_points(expected, held),
            *verify.compare_texts("latest value of metric", latest, held_latest, subset=False),
            *verify.compare_texts("param", plan.params, params, subset=False),
            *verify.compare_texts("tag", tags, held_tags, subset=True),
            *verify.compare_artifacts(self._artifacts(str(info["artifact_uri"])), receipt),
        ]
