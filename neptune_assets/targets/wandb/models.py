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

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from neptune_assets.errors import TargetError, UnknownProjectError
from neptune_assets.lake.reader import Lake, LakeRun
from neptune_assets.schema import AttributeType, Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.concurrency import natural
from neptune_assets.targets.model_scope import SourceRuns, scoped_project_id, scoped_run
from neptune_assets.targets.profile import ValueCounts
from neptune_assets.targets.protocol import Plan, Receipt, TargetRun, UnsupportedValues, Verdict
from neptune_assets.targets.wandb import client as api
from neptune_assets.targets.wandb.artifacts import (
    DIGEST,
    TAGS,
    VERSION,
    ModelEntry,
    alias_of,
    artifact_of,
    collection_name,
    entry_of,
    model_of,
    parameters_of,
    registry_name,
    version_record,
)
from neptune_assets.targets.wandb.client import CollectionName, HeldVersion, check_rows, upload
from neptune_assets.targets.wandb.codec import json_text
from neptune_assets.targets.wandb.load import WandbTarget
from neptune_assets.targets.wandb.mapping import run_key
from neptune_assets.targets.wandb.settings import WandbSettings
from neptune_assets.targets.wandb.staged_runs import Marker, ProjectNames, StagedProject, read_marker
from neptune_assets.targets.wandb.staging import Destination
from neptune_assets.targets.wandb.verify import Content, differences

REGISTRY: Final = "wandb-registry-"
"""What the projects begin with that W&B keeps registries as."""
_STAGES: Final = frozenset({"staging", "production", "archived"})


class ModelRegistry:
    """The collections of models of one W&B project, and the registry that they are linked into, if any.

    W&B numbers versions itself and never gives a number twice, and the files of a version never change. So a version
    whose files changed, or that is late, is logged anew together with those of ours that follow it. Everything else of
    a version can be changed in place. What is not ours is never changed.
    """

    def __init__(self, client: api.Queries, entity: str, project: str, project_id: str, registry: str | None) -> None:
        """``project_id`` is the Neptune project whose models these are, ``registry`` the registry's name."""
        self._client, self._entity, self._project, self._project_id = client, entity, project, project_id
        self._registry = registry
        self._organization: str | None = None
        self._held: dict[str, list[HeldVersion]] = {}

    def versions(self, collection: str) -> list[HeldVersion]:
        """Return our versions of a collection, first to last; asked for once until something changes."""
        if collection not in self._held:
            found = api.model_versions(self._client, self._entity, self._project, collection)
            self._held[collection] = [version for version in found if version.is_of(self._project_id)]
        return self._held[collection]

    def forget(self) -> None:
        """Ask W&B anew from now on."""
        self._held.clear()

    def finished(self, collection: str, version_id: str, digest: str) -> bool:
        """True if the version is there once, was loaded from what has this digest, and is linked where it must be."""
        mine = self._of(collection, version_id)
        if len(mine) != 1 or mine[0].finished != digest:
            return False
        return self._registry is None or self._linked_place(collection) in mine[0].aliases

    def make_room(self, entry: ModelEntry, digest: str) -> list[HeldVersion]:
        """Delete what keeps a version with these files from its place; return those that have to be logged again."""
        mine, held = self._of(entry.collection, entry.version_id), self.versions(entry.collection)
        place = natural(entry.version_id)
        earlier = [version.index for version in held if natural(version.metadata[VERSION]) < place]
        later = [version for version in held if natural(version.metadata[VERSION]) > place]
        if len(mine) == 1 and mine[0].digest == digest and mine[0].committed:
            index = mine[0].index
            if all(number < index for number in earlier) and all(version.index > index for version in later):
                return []
        for version in [*mine, *later]:
            api.delete(self._client, version)
        self.forget()
        return later

    def restore(self, lost: HeldVersion) -> None:
        """Give a version that was logged again what the deleted one had, aliases of other people's included."""
        again = self._only(lost.metadata[VERSION], self._place_of(lost).name, lost.digest)
        api.update(
            self._client,
            again,
            description=lost.description,
            metadata=json_text(dict(lost.metadata)),
            tags=lost.tags - again.tags,
            untag=(),
        )
        for place, aliases in lost.aliases.items():
            if place not in again.aliases:
                api.link(self._client, again, place)
            api.change_aliases(self._client, again, place, aliases - {"latest"}, add=True)
        self.forget()

    def settle(self, entry: ModelEntry, digest: str, lake_digest: str) -> int:
        """Bring a version that was logged up to date, its digest in the lake last; return its number in W&B."""
        version = self._only(entry.version_id, entry.collection, digest)
        metadata = json_text({**entry.metadata, DIGEST: lake_digest})
        # Its stage has to stand there before aliases can be settled; the digest comes once they are.
        before = set(version.metadata.get(TAGS) or ())
        api.update(
            self._client,
            version,
            description=entry.description,
            metadata=json_text(dict(entry.metadata)),
            tags=set(entry.tags) - version.tags,
            untag=version.tags & before - set(entry.tags),
        )
        place = self._place_of(version)
        if self._registry is not None and self._linked_place(entry.collection) not in version.aliases:
            api.link(self._client, version, self._linked_place(entry.collection))
        self.forget()
        self._settle_aliases(entry.collection, place)
        version = self._only(entry.version_id, entry.collection, digest)
        api.update(self._client, version, description=entry.description, metadata=metadata, tags=(), untag=())
        self.forget()
        return version.index

    def differences(self, entry: ModelEntry, digest: str, lake_digest: str) -> Iterator[str]:
        """Yield how a version is not what it must be; more tags and aliases than that may be there."""
        mine = [item for item in self._of(entry.collection, entry.version_id) if item.committed]
        if len(mine) != 1:
            yield f"W&B holds the model version {len(mine)} times"
            return
        version, held = mine[0], self.versions(entry.collection)
        if version.digest != digest:
            yield "the files of the model version are others"
        if version.description != entry.description:
            yield f"the description is {version.description[:100]!r} instead of {entry.description[:100]!r}"
        wanted: Mapping[str, Any] = {**entry.metadata, DIGEST: lake_digest}
        for key in sorted({*wanted, *version.metadata}):
            if wanted.get(key) != version.metadata.get(key):
                yield f"the metadata's {key!r} is not as in the lake"
        if missing := sorted(set(entry.tags) - version.tags):
            yield f"tag {missing[0]!r} is missing"
        order = [item.metadata[VERSION] for item in held]
        if order != sorted(order, key=natural):
            yield f"the versions of {entry.collection} are not in Neptune's order"
        yield from self._alias_differences(entry, version, held)

    def describe(self, collection: str, description: str) -> None:
        """Give a model's collection its description, if there is one: W&B makes it with the first version."""
        api.describe_collection(self._client, CollectionName(self._entity, self._project, collection), description)

    def is_described(self, collection: str, description: str) -> bool:
        """True if a model's collection has this description, or there is no collection."""
        place = CollectionName(self._entity, self._project, collection)
        return api.describe_collection(self._client, place, description, ask_only=True)

    # -- internals

    def _of(self, collection: str, version_id: str) -> list[HeldVersion]:
        return [item for item in self.versions(collection) if item.is_of(self._project_id, version_id)]

    def _only(self, version_id: str, collection: str, digest: str) -> HeldVersion:
        self.forget()
        found = [item for item in self._of(collection, version_id) if item.digest == digest and item.committed]
        if len(found) != 1:
            raise TargetError(
                f"W&B holds version {version_id} of the model {collection} {len(found)} times after it was uploaded.",
                hint="Load again.",
            )
        return found[0]

    def _place_of(self, version: HeldVersion) -> CollectionName:
        """Return the collection that a version was logged to, in W&B's own words."""
        own = (p for p in version.aliases if p.project == self._project and p.entity == self._entity)
        return next(own, CollectionName(self._entity, self._project, ""))

    def _linked_place(self, collection: str) -> CollectionName:
        """Return the collection of the registry; its name tells models of several projects apart."""
        if self._organization is None:
            self._organization = api.organization_of(self._client, self._entity)
        return CollectionName(
            self._organization, f"{REGISTRY}{self._registry}", registry_name(self._project, collection)
        )

    def _settle_aliases(self, collection: str, own: CollectionName) -> None:
        """Let each stage's alias name our last version in it, unless it names somebody else's; each version its id."""
        held = self.versions(collection)
        others = self._aliases_of_others(collection)
        places = [own] if self._registry is None else [own, self._linked_place(collection)]
        last = {stage: version.id for version in held if (stage := version.stage) is not None}
        for place in places:
            for version in held:
                if place not in version.aliases:
                    continue
                now, named = version.aliases[place], alias_of(version.metadata[VERSION])
                wanted = {stage for stage, holder in last.items() if holder == version.id}
                stages = {*_STAGES, *last} & now
                api.change_aliases(self._client, version, place, stages - wanted, add=False)
                more = {*wanted, *([named] if named else [])} - now - others.get(place, frozenset())
                api.change_aliases(self._client, version, place, more, add=True)
        self.forget()

    def _aliases_of_others(self, collection: str) -> dict[CollectionName, frozenset[str]]:
        found: dict[CollectionName, frozenset[str]] = {}
        for version in api.model_versions(self._client, self._entity, self._project, collection):
            if not version.is_of(self._project_id):
                for place, aliases in version.aliases.items():
                    found[place] = found.get(place, frozenset()) | aliases
        return found

    def _alias_differences(self, entry: ModelEntry, version: HeldVersion, held: list[HeldVersion]) -> Iterator[str]:
        places = [self._place_of(version)]
        if self._registry is not None:
            linked = self._linked_place(entry.collection)
            if linked not in version.aliases:
                yield f"it is not linked into {linked.project}/{linked.name}"
            places.append(linked)
        if entry.stage is None:
            return
        last = [item for item in held if item.stage == entry.stage][-1:]
        others = self._aliases_of_others(entry.collection)
        for place in places:
            if not last or last[0].id != version.id or entry.stage in others.get(place, ()):
                continue
            if entry.stage not in version.aliases.get(place, ()):
                yield f"alias {entry.stage!r} is missing in {place.project}/{place.name}"


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
        self._origins = SourceRuns(lake)
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

    def _place(self, run: LakeRun, directory: Path) -> Destination:
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

    def _version_facts(self, place: Destination) -> dict[str, str]:
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
            raise TargetError(f"Version {run.run_id} is no longer staged.", hint="Load again.")
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


class ModelsTarget:
    """One connection to W&B and its models, for models or for model versions. Not shared between threads."""

    def __init__(self, target: WandbSettings, lake: LakeSettings, scope: Scope) -> None:
        self.scope = scope
        self._runs = ModelRuns(target, lake, scope)

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
        plan = self._runs.plan(scoped_run(run, self.scope))
        if self.scope is Scope.MODELS or self._runs.has_entity:
            return plan
        return replace(plan, notes=(*plan.notes, NO_ENTITY))

    def unsupported_values(self, values: ValueCounts, plan: Plan) -> Sequence[UnsupportedValues]:
        """Say which values W&B cannot hold, and what becomes of them."""
        return self._runs.unsupported_values(values, plan)

    def find(self, project_id: str, run_id: str) -> TargetRun | None:
        """Find a model or version: it is finished if its run is, and its entry in W&B too, and its link up to date."""
        held = self._runs.find(scoped_project_id(project_id, self.scope), run_id)
        return None if held is None else replace(held, project_id=project_id)

    def replace(self, run: LakeRun, plan: Plan) -> Receipt:
        """Stage exactly this model or version; where a key is configured upload it, and bring its entry up to date."""
        receipt = self._runs.replace(scoped_run(run, self.scope), plan)
        notes = self._runs.settle(scoped_run(run, self.scope))
        return replace(receipt, project_id=run.project_id, notes=(*receipt.notes, *notes))

    def verify(self, run: LakeRun, receipt: Receipt) -> Verdict:
        """Read back the staged run and, where it is uploaded, the entry, and compare them with the lake."""
        verdict = self._runs.verify(scoped_run(run, self.scope), receipt)
        if not verdict.ok:
            return verdict
        return Verdict(run.run_id, tuple(self._runs.entry_differences(scoped_run(run, self.scope))))

    def remove(self, project_id: str, run_id: str) -> None:
        """Remove the staged model or version. Raises TargetError if it was uploaded."""
        self._runs.remove(scoped_project_id(project_id, self.scope), run_id)

    def runs(self, project_id: str) -> Iterator[TargetRun]:
        """Yield every staged model or version of the project."""
        self._runs.forget()
        for held in self._runs.runs(scoped_project_id(project_id, self.scope)):
            yield replace(held, project_id=project_id)

    def close(self) -> None:
        """Forget what was read."""
        self._runs.close()
