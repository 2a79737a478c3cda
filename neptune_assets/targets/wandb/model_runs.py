"""The runs that hold what Neptune's models and model versions have, staged with the entries that log them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from neptune_assets.errors import TargetError, UnknownProjectError
from neptune_assets.lake.reader import Lake, LakeRun
from neptune_assets.schema import AttributeType, Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.origins import Origins
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
from neptune_assets.targets.wandb.settings import WandbSettings
from neptune_assets.targets.wandb.staging import Place
from neptune_assets.targets.wandb.upload import check_rows, upload
from neptune_assets.targets.wandb.verify import differences

_NUMBER: Final = re.compile(r"(?<=-)[0-9]{1,9}$")
NO_ENTITY: Final = (
    "It is a run only, and no version of a W&B model, because targets.wandb.entity is not set: "
    "wandb names the entity in every version that it logs offline."
)


class _OfProject(ProjectNames):
    """Models go into the W&B project of their runs."""

    def name(self, project_id: str) -> str:
        """Return the W&B project of a place, or of a project."""
        return super().name(_project_of(project_id))

    def keep(self, project_id: str) -> None:
        """Remember it beside the project's staged runs."""
        super().keep(_project_of(project_id))


class ModelRuns(WandbTarget):
    """The runs that hold what models or versions have. Projects are places here: ``<project>/<kind>``."""

    def __init__(self, target: WandbSettings, lake: LakeSettings, scope: Scope) -> None:
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
