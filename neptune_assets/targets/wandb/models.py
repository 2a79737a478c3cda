"""Neptune's models and model versions as W&B targets: each a run that holds everything, and a version of a collection.

Metadata of a W&B artifact are small, and it has no series. So all that a model or version has is loaded as a run, with
the same guarantees as any other run, and that run's log has the version, too: ``wandb sync`` uploads both.

| Neptune | W&B |
|-|-|
| model ``PRJ-MOD`` | a run of job type ``model``; the collection ``PRJ-MOD`` of type ``model``, with its description |
| version ``PRJ-MOD-3`` | a run of job type ``model_version``; the collection's next version, in Neptune's order |
| files | the version's files, but for series and texts, which are the run's |
| sys/stage | the last version of a stage has it as its alias; each has its Neptune id as one |
| sys/tags, sys/description, parameters | tags, description, metadata |
| a text that is the id of a run of the project | the version is an output of that run, if it was loaded before |
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from neptune_assets import settings
from neptune_assets.errors import TargetError, UnknownProjectError
from neptune_assets.lake.reader import Lake, LakeRun
from neptune_assets.schema import AttributeType, Scope
from neptune_assets.targets.origins import Origins
from neptune_assets.targets.protocol import Plan, Receipt, TargetRun, Unfit, Verdict
from neptune_assets.targets.ruled import RuledRun
from neptune_assets.targets.rules import Rules
from neptune_assets.targets.survey import ValueCounts
from neptune_assets.targets.wandb.config import Marker, StagedProject, read_marker
from neptune_assets.targets.wandb.content import Content
from neptune_assets.targets.wandb.load import WandbTarget
from neptune_assets.targets.wandb.model_entry import (
    VERSION,
    ModelEntry,
    artifact_of,
    collection_name,
    entry_of,
    model_of,
    parameters_of,
    version_record,
)
from neptune_assets.targets.wandb.model_registry import ModelRegistry
from neptune_assets.targets.wandb.model_versions import HeldVersion
from neptune_assets.targets.wandb.naming import run_key
from neptune_assets.targets.wandb.projects import ProjectNames
from neptune_assets.targets.wandb.staging import Place
from neptune_assets.targets.wandb.upload import check_rows, upload
from neptune_assets.targets.wandb.verify import differences

_NUMBER: Final = re.compile(r"(?<=-)[0-9]{1,9}$")
NO_ENTITY: Final = (
    "It is a run only, and no version of a W&B model, because targets.wandb.entity is not set: "
    "wandb names the entity in every version that it logs offline."
)


class ModelsTarget:
    """One connection to W&B and its models, for models or for model versions. Not shared between threads."""

    def __init__(self, target: settings.WandbTarget, lake: settings.LakeSettings, scope: Scope) -> None:
        self.scope = scope
        self._runs = _ModelRuns(target, lake, scope)

    @property
    def name(self) -> str:
        """The word that ledgers and reports use for this target."""
        return f"wandb_{self.scope.value}"

    def check(self) -> None:
        """Raise TargetError with the next action if runs cannot be staged or the server refuses the key."""
        self._runs.check()

    def is_new(self) -> bool:
        """True if nothing was ever staged and nothing will be uploaded."""
        return self._runs.is_new()

    def plan(self, run: LakeRun) -> Plan:
        """Say what loading the model or version will do. Writes nothing."""
        plan = self._runs.plan(self._filed(run))
        if self.scope is Scope.MODELS or self._runs.has_entity:
            return plan
        return replace(plan, notes=(*plan.notes, NO_ENTITY))

    def unfit(self, values: ValueCounts, plan: Plan) -> Sequence[Unfit]:
        """Say which values W&B cannot hold, and what becomes of them."""
        return self._runs.unfit(values, plan)

    def find(self, project_id: str, run_id: str) -> TargetRun | None:
        """Find a model or version: it is finished if its run is, and its entry in W&B too, and its link up to date."""
        held = self._runs.find(self._place(project_id), run_id)
        return None if held is None else replace(held, project_id=project_id)

    def replace(self, run: LakeRun, plan: Plan) -> Receipt:
        """Stage exactly this model or version; where a key is configured upload it, and bring its entry up to date."""
        receipt = self._runs.replace(self._filed(run), plan)
        notes = self._runs.settle(self._filed(run))
        return replace(receipt, project_id=run.project_id, notes=(*receipt.notes, *notes))

    def verify(self, run: LakeRun, receipt: Receipt) -> Verdict:
        """Read back the staged run and, where it is uploaded, the entry, and compare them with the lake."""
        verdict = self._runs.verify(self._filed(run), receipt)
        if not verdict.ok:
            return verdict
        return Verdict(run.run_id, tuple(self._runs.entry_differences(self._filed(run))))

    def remove(self, project_id: str, run_id: str) -> None:
        """Remove the staged model or version. Raises TargetError if it was uploaded."""
        self._runs.remove(self._place(project_id), run_id)

    def runs(self, project_id: str) -> Iterator[TargetRun]:
        """Yield every staged model or version of the project."""
        self._runs.forget()
        for held in self._runs.runs(self._place(project_id)):
            yield replace(held, project_id=project_id)

    def close(self) -> None:
        """Forget what was read."""
        self._runs.close()

    def _place(self, project_id: str) -> str:
        """Return what stands for the project where runs of this kind are staged; no project is named like this."""
        return f"{project_id}/{self.scope.value}"

    def _filed(self, run: LakeRun) -> LakeRun:
        # It reads its rows through the run it was made of, so another name for the project does no harm.
        filed = copy.copy(run) if isinstance(run, RuledRun) else RuledRun(run, Rules(settings.NameRules()))
        filed.project_id = self._place(run.project_id)
        return filed


class _OfProject(ProjectNames):
    """Models go into the W&B project of their runs."""

    def name(self, project_id: str) -> str:
        return super().name(_project_of(project_id))

    def keep(self, project_id: str) -> None:
        super().keep(_project_of(project_id))


class _ModelRuns(WandbTarget):
    """The runs that hold what models or versions have. Projects are places here: ``<project>/<kind>``."""

    def __init__(self, target: settings.WandbTarget, lake: settings.LakeSettings, scope: Scope) -> None:
        word = scope.value.removesuffix("s")
        change = {"job_type": word, "job_type_attribute": None, "file_sets": "run_files", "forks": "own"}
        super().__init__(target.model_copy(update=change), lake)
        self._scope = scope
        self._names = _OfProject(self._settings, lake, self._root)
        self._loaded = WandbTarget(target, lake)
        """The project's own runs."""
        self._origins = Origins(lake)
        self._registries: dict[str, ModelRegistry] = {}

    @property
    def has_entity(self) -> bool:
        """True if versions can be logged."""
        return bool(self._settings.entity)

    def forget(self) -> None:
        """Ask W&B anew from now on."""
        for registry in self._registries.values():
            registry.forget()

    def settle(self, run: LakeRun) -> list[str]:
        """Bring the entry of an uploaded model or version up to date; return what is to be noted of it."""
        entry = self._entry(run)
        if self._scope is Scope.MODEL_VERSIONS and entry is None:
            return [NO_ENTITY]
        if self._client is None or not self.has_entity:
            return []
        registry = self._registry(run.project_id)
        if entry is None:
            registry.describe(collection_name(run.run_id), self._description(run))
            return []
        number = registry.settle(entry, self._marker(run).version["digest"], run.record.digest)
        self._describe_model(entry.project_id, entry, registry)
        return [f"version v{number} of the model {entry.collection}"]

    def entry_differences(self, run: LakeRun) -> Iterator[str]:
        """Yield how the entry of an uploaded model or version is not what it must be."""
        if self._client is None or not self.has_entity:
            return
        registry, entry = self._registry(run.project_id), self._entry(run)
        if entry is None:
            if not registry.is_described(collection_name(run.run_id), self._description(run)):
                yield f"the model {collection_name(run.run_id)} has another description"
            return
        yield from registry.differences(entry, self._marker(run).version["digest"], run.record.digest)

    # -- what stands where

    def _place(self, run: LakeRun, directory: Path) -> Place:
        place = super()._place(run, directory)
        entry = self._entry(run)
        group = run.run_id if self._scope is Scope.MODELS else model_of(run.run_id, parameters_of(run))
        if entry is None:
            return replace(place, group=group)
        return replace(place, group=group, entry=entry, artifacts_from=directory)

    def _entry(self, run: LakeRun) -> ModelEntry | None:
        if self._scope is Scope.MODELS or not self.has_entity:
            return None
        project_id = _project_of(run.project_id)
        neptune_run = self._origins.neptune_run(project_id, parameters_of(run))
        own = run_key(run.project_id, run.run_id)
        linked = self._linked(project_id, neptune_run or "")
        return entry_of(run, project_id, own, neptune_run, linked, settled=self._client is not None)

    def _linked(self, project_id: str, neptune_run: str) -> str:
        """Return the W&B id of a run of the project, "" if it was not loaded."""
        held = self._loaded.find(project_id, neptune_run) if neptune_run else None
        return held.target_id if held is not None and held.digest is not None else ""

    def _named_after(self, run: LakeRun) -> int | None:
        """Let the directories of a model's versions be in Neptune's order by name, which people sync them in."""
        number = _NUMBER.search(run.run_id)
        if self._scope is Scope.MODELS or number is None:
            return super()._named_after(run)
        return int(number[0]) * 1_000

    def _version_facts(self, place: Place) -> dict[str, str]:
        if place.entry is None:
            return {}
        metadata: Mapping[str, Any] = place.entry.metadata
        return {
            "neptune_run": metadata.get("neptune_run") or "",
            "linked": metadata.get("wandb_run_of_origin") or "",
            "aliases": self._aliases,
        }

    @property
    def _aliases(self) -> str:
        """Say who gives versions their aliases; runs that were staged to do it otherwise are staged anew."""
        return "logged" if self._client is None else "settled"

    def _current(self, marker: Marker | None) -> bool:
        if marker is None or not super()._current(marker):
            return False
        version = marker.version
        if version and version.get("aliases") != self._aliases:
            return False
        wanted = self._linked(_project_of(marker.project_id), version.get("neptune_run", ""))
        return version.get("linked", "") == wanted

    def _is_synced(self, directory: Path, marker: Marker) -> bool:
        if not super()._is_synced(directory, marker):
            return False
        if not marker.version:
            return True
        registry = self._registry(marker.project_id)
        return registry.finished(marker.version["collection"], marker.run_id, marker.digest)

    def _staged_differences(self, run: LakeRun, directory: Path, marker: Marker) -> tuple[list[str], Content]:
        entry = self._entry(run)
        if entry is None:
            return super()._staged_differences(run, directory, marker)

        def version(staged: list[Any]) -> Any:
            made = artifact_of(entry, staged, directory / "files")
            return version_record(entry, made, entity=marker.entity, project=marker.wandb_project, directory=directory)

        return differences(run, self._layout(run), directory, marker.wandb_run, version)

    def _marker(self, run: LakeRun) -> Marker:
        found = StagedProject(self._root, run.project_id).directories(run_key(run.project_id, run.run_id))
        marker = read_marker(found[0]) if len(found) == 1 else None
        if marker is None or not marker.version:
            raise TargetError(f"Version {run.run_id} is not staged any more.", hint="Load again.")
        return marker

    def _registry(self, place: str) -> ModelRegistry:
        assert self._client is not None  # noqa: S101 (only asked where a key is configured)
        if place not in self._registries:
            entity, project = self._settings.entity or "", self._names.name(place)
            self._registries[place] = ModelRegistry(
                self._client, entity, project, _project_of(place), self._settings.registry
            )
        return self._registries[place]

    # -- writing

    def _send(self, run: LakeRun, directory: Path, marker: Marker) -> None:
        assert self._client is not None  # noqa: S101 (only called where a key is configured)
        entry = self._entry(run)
        if entry is None:
            super()._send(run, directory, marker)
            return
        # What cannot be uploaded must not make room for itself.
        check_rows(self._client, directory, marker)
        registry = self._registry(run.project_id)
        registry.forget()
        later = registry.make_room(entry, marker.version["digest"])
        super()._send(run, directory, marker)
        for lost in later:
            if self._log_again(run.project_id, lost):
                registry.restore(lost)
        registry.forget()

    def _log_again(self, place: str, lost: HeldVersion) -> bool:
        """Upload a later version once more, which had to go to keep the order; False if it is to be loaded anew."""
        assert self._client is not None  # noqa: S101 (only called where a key is configured)
        project = StagedProject(self._root, place)
        for directory in project.directories(run_key(place, lost.metadata[VERSION])):
            marker = read_marker(directory)
            if marker is not None and marker.version.get("digest") == lost.digest:
                upload(self._client, project, directory, marker)
                return True
        return False

    def _description(self, run: LakeRun) -> str:
        return str(parameters_of(run).get(("sys/description", str(AttributeType.STRING))) or "")

    def _describe_model(self, project_id: str, entry: ModelEntry, registry: ModelRegistry) -> None:
        """Give the collection the description of its model, which W&B had nothing to write on before."""
        try:
            models = Lake(self._lake).project(project_id, Scope.MODELS)
        except UnknownProjectError:
            return
        model_id = str(entry.metadata["neptune_model"])
        if model_id in models.records():
            registry.describe(entry.collection, self._description(models.run(model_id)))


def _project_of(place: str) -> str:
    """Return the project of a place, which is a project's id with one part more; a project stays what it is."""
    workspace, name, *_ = place.split("/")
    return f"{workspace}/{name}"
