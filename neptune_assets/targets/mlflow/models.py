"""Neptune's models and model versions as MLflow targets: each one a run that holds everything, and a registry entry.

MLflow's registry knows tags, a description and an address, no params, series or files. So all that a model or version
has is loaded as a run of the experiment ``<project>/models`` or ``<project>/model_versions``, with the same guarantees
as any other run; the entry's source is that run, and its tags repeat the parameters.

| Neptune | MLflow's registry |
|-|-|
| model ``PRJ-MOD`` | registered model ``PRJ-MOD`` (with a digest if that name is taken) |
| version ``PRJ-MOD-3`` | the next version of it, in Neptune's order; the tag ``neptune.version_id`` has the id |
| sys/stage | tag ``neptune.stage``; the latest version of a stage has the stage as its alias |
| parameters | tags ``neptune/<path>``, cut where they are long; whole in the run |
| sys/description | description |
| a text that is the id of a run of the project | ``run_link``, and the tags ``neptune.run_id``, ``neptune.run`` |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mlflow.entities.model_registry import RegisteredModel

from neptune_assets.lake.reader import LakeRun
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.filing import filed, place_of
from neptune_assets.targets.mlflow import mapping, names, texts
from neptune_assets.targets.mlflow.client import Client, mlflow_errors
from neptune_assets.targets.mlflow.config import connection
from neptune_assets.targets.mlflow.load import MlflowTarget
from neptune_assets.targets.mlflow.model_checks import compare_entry, compare_version
from neptune_assets.targets.mlflow.model_links import ModelLinks
from neptune_assets.targets.mlflow.model_registry import STAGE, VERSION_ID, Entry, ModelRegistry
from neptune_assets.targets.mlflow.settings import MlflowSettings
from neptune_assets.targets.protocol import Plan, Receipt, TargetRun, Unfit, Verdict
from neptune_assets.targets.survey import ValueCounts

MODEL_ID = "neptune.model_id"
LINKED = "neptune.run"
"""Tag with the MLflow id of the run that a version links to."""


RUN = "neptune_assets.run"
"""Tag with the MLflow id of the run that holds what a model or version has."""


@dataclass(frozen=True, slots=True)
class _Held:
    """An entry of the registry as its tags tell it."""

    neptune_id: str
    uuid: str
    digest: str | None
    linked: str
    """MLflow id of the run of the project that a version links to, "" if none."""
    neptune_run: str

    @classmethod
    def of(cls, neptune_id: str, tags: Mapping[str, str]) -> _Held:
        """Read an entry of the model or version of this Neptune id."""
        linked = (tags.get(LINKED, ""), tags.get(mapping.RUN_ID, ""))
        return cls(neptune_id, tags.get(RUN, ""), tags.get(mapping.DIGEST), *linked)


class ModelsTarget:
    """One connection to MLflow and its registry, for models or for model versions. Not shared between threads."""

    def __init__(self, target: MlflowSettings, lake: LakeSettings, scope: Scope) -> None:
        self.scope = scope
        self._connection = connection(target, lake)
        self._runs = MlflowTarget(target, lake)
        """Runs that hold what models and versions have."""
        self._links = ModelLinks(target, lake)
        self._held: dict[str, _Held] | None = None

    @property
    def name(self) -> str:
        """The word that ledgers and reports use for this target."""
        return f"mlflow_{self.scope.value}"

    def check(self) -> None:
        """Raise TargetError with the next action if MLflow or its registry cannot be used."""
        self._runs.check()
        with mlflow_errors("listing registered models", self._connection.shown):
            self._registry.models("")

    def is_new(self) -> bool:
        """True if the database is a file that is not there yet."""
        return self._runs.is_new()

    def plan(self, run: LakeRun) -> Plan:
        """Say what loading the model or version will do. Writes nothing."""
        return self._runs.plan(filed(run, self.scope))

    def unfit(self, values: ValueCounts, plan: Plan) -> Sequence[Unfit]:
        """Say which values MLflow cannot hold, and what becomes of them."""
        return self._runs.unfit(values, plan)

    def find(self, project_id: str, run_id: str) -> TargetRun | None:
        """Find a model or version: it is finished if both its run and its entry are, and its link is up to date."""
        held = self._runs.find(place_of(project_id, self.scope), run_id)
        if held is None:
            return None
        return TargetRun(project_id, run_id, held.target_id, self._finished(project_id, run_id, held.digest))

    def replace(self, run: LakeRun, plan: Plan) -> Receipt:
        """Make MLflow hold exactly this model or version: first its run, then its entry."""
        receipt = self._runs.replace(filed(run, self.scope), plan)
        self._held = None
        with mlflow_errors(f"registering {run.run_id!r}", self._connection.shown):
            note = self._register(run, receipt.target_id)
        return replace(receipt, project_id=run.project_id, notes=(*receipt.notes, note))

    def verify(self, run: LakeRun, receipt: Receipt) -> Verdict:
        """Read back the run and the entry and compare them with the lake."""
        verdict = self._runs.verify(filed(run, self.scope), receipt)
        with mlflow_errors(f"reading back {run.run_id!r} from the registry", self._connection.shown):
            differences = self._differences(run, receipt.target_id)
        return Verdict(run.run_id, (*verdict.differences, *differences))

    def remove(self, project_id: str, run_id: str) -> None:
        """Take a model or version out of MLflow: the entry, then the run that holds it."""
        key = self._key(project_id, run_id)
        with mlflow_errors(f"removing {run_id!r}", self._connection.shown):
            if self.scope is Scope.MODELS:
                model = self._registry.model(key)
                if model is not None:
                    self._registry.remove_model(model)
            else:
                for model in self._models_of(project_id):
                    self._registry.remove_version(str(model.name), key)
        self._held = None
        self._runs.remove(place_of(project_id, self.scope), run_id)

    def runs(self, project_id: str) -> Iterator[TargetRun]:
        """Everything of this project and kind that loads left in MLflow, entries whose run is gone among them."""
        self._held = None
        with_run: set[str] = set()
        for held in self._runs.runs(place_of(project_id, self.scope)):
            digest = self._finished(project_id, held.run_id, held.digest)
            with_run.add(self._key(project_id, held.run_id))
            yield TargetRun(project_id, held.run_id, held.target_id, digest)
        for key, entry in sorted(self._entries_of(project_id).items()):
            if key not in with_run:
                yield TargetRun(project_id, entry.neptune_id, entry.uuid, None)

    def close(self) -> None:
        """Let go of connections."""
        self._runs.close()
        self._links.close()

    # -- internals

    @cached_property
    def _registry(self) -> ModelRegistry:
        return ModelRegistry(Client(self._connection).api)

    def _key(self, project_id: str, run_id: str) -> str:
        return mapping.external_key(place_of(project_id, self.scope), run_id)

    def _models_of(self, project_id: str) -> list[RegisteredModel]:
        return self._registry.models(mapping.project_key(f"{project_id}/{Scope.MODELS.value}"))

    def _finished(self, project_id: str, run_id: str, digest: str | None) -> str | None:
        """Return the digest if the entry has the same one and its link is up to date."""
        entry = self._entries_of(project_id).get(self._key(project_id, run_id))
        if digest is None or entry is None:
            return None
        # A digest with words behind it means that the run was mapped by other settings: it is loaded again anyway.
        if entry.digest is None or digest.split(" ")[0] != entry.digest:
            return None
        return digest if entry.linked == self._links.mlflow_run(project_id, entry.neptune_run) else None

    def _entries_of(self, project_id: str) -> dict[str, _Held]:
        """Return all entries of this kind by key, asked for once after each change."""
        if self._held is None:
            with mlflow_errors(f"listing the registry of {project_id}", self._connection.shown):
                self._held = dict(self._listed(project_id))
        return self._held

    def _listed(self, project_id: str) -> Iterator[tuple[str, _Held]]:
        for model in self._models_of(project_id):
            if self.scope is Scope.MODELS:
                # A version that came before its model made a bare one, which is none of the project's models yet.
                if MODEL_ID in model.tags:
                    yield model.tags[mapping.KEY], _Held.of(model.tags[MODEL_ID], model.tags)
                continue
            for entry in self._registry.entries(str(model.name)):
                yield entry.key, _Held.of(entry.version_id, entry.tags)

    def _register(self, run: LakeRun, uuid: str) -> str:
        description, tags, facts = self._texts(run, uuid)
        if self.scope is Scope.MODELS:
            model = self._model(run.project_id, run.run_id)
            self._registry.settle_model(model, description, tags)
            return f"registered as {model.name}"
        model = self._model(run.project_id, facts[MODEL_ID])
        number = self._registry.place(str(model.name), self._entry(run, uuid, description, tags))
        return f"registered as version {number} of {model.name}"

    def _model(self, project_id: str, model_id: str) -> RegisteredModel:
        """Return the registered model, created bare if it is missing: versions may come before their model."""
        place = f"{project_id}/{Scope.MODELS.value}"
        key = mapping.external_key(place, model_id)
        return self._registry.model(key) or self._registry.create_model(model_id, key, mapping.project_key(place))

    def _entry(self, run: LakeRun, uuid: str, description: str, tags: dict[str, str]) -> Entry:
        key, linked = self._key(run.project_id, run.run_id), tags.get(LINKED)
        link = f"#/experiments/{self._experiment_of(linked)}/runs/{linked}" if linked else None
        return Entry(run.run_id, key, f"runs:/{uuid}", uuid, link, description, tags)

    def _experiment_of(self, uuid: str) -> str:
        return str(self._api.get_run(uuid).info.experiment_id)

    @cached_property
    def _api(self) -> Any:
        return Client(self._connection).api

    def _texts(self, run: LakeRun, uuid: str) -> tuple[str, dict[str, str], dict[str, str]]:
        """Return description, tags and the tags that say what the thing is, all of one model or version."""
        values: dict[mapping.Attribute, Any] = {
            attribute: value for attribute, value in texts.parameters(run) if value is not None
        }
        sys = {path: value for (path, _), value in values.items() if path.startswith("sys/")}
        facts = {
            mapping.KEY: self._key(run.project_id, run.run_id),
            mapping.PROJECT_KEY: mapping.project_key(f"{run.project_id}/{Scope.MODELS.value}"),
            mapping.PROJECT: texts.tag_text(run.project_id),
            MODEL_ID: run.run_id,
            RUN: uuid,
        }
        if sys.get("sys/name"):
            facts["neptune.name"] = texts.tag_text(str(sys["sys/name"]))
        if self.scope is Scope.MODEL_VERSIONS:
            facts[VERSION_ID] = run.run_id
            facts[MODEL_ID] = str(sys.get("sys/model_id") or run.run_id.rpartition("-")[0] or run.run_id)
            if sys.get("sys/stage"):
                facts[STAGE] = texts.tag_text(str(sys["sys/stage"]))
            neptune_run = self._links.neptune_run(run.project_id, values)
            if neptune_run is not None:
                facts[mapping.RUN_ID] = texts.tag_text(neptune_run)
                if uuid_of_run := self._links.mlflow_run(run.project_id, neptune_run):
                    facts[LINKED] = uuid_of_run
        keys = names.distinct_keys(
            {attribute: f"neptune/{attribute[0]}" for attribute in sorted(values)}, fold_case=True
        )
        tags = {keys[a]: texts.tag_text(texts.param_text(a[1], value)) for a, value in values.items()}
        description = texts.tag_text(str(sys.get("sys/description") or ""))
        return description, {**tags, **facts, mapping.DIGEST: run.record.digest}, facts

    def _differences(self, run: LakeRun, uuid: str) -> Iterator[str]:
        description, tags, facts = self._texts(run, uuid)
        place = f"{run.project_id}/{Scope.MODELS.value}"
        model = self._registry.model(mapping.external_key(place, facts[MODEL_ID]))
        if model is None:
            yield f"registered model {facts[MODEL_ID]!r} is missing"
            return
        if self.scope is Scope.MODELS:
            yield from compare_entry(description, tags, model.description or "", model.tags)
            return
        name = str(model.name)
        wanted = self._entry(run, uuid, description, tags)
        yield from compare_version(wanted, self._registry.entries(name), self._registry.aliases(name), name)
