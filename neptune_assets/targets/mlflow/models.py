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

MLflow numbers versions itself, always one above the highest that ever was. Versions are therefore kept in Neptune's
order by creating them in it; one that arrives late, or that cannot be changed in place, is created anew together with
those of ours that follow it, and their numbers grow. Entries are found by a tag of ours; what has no such tag is
somebody else's and is never changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from neptune_assets.lake.reader import LakeRun
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.targets import naming
from neptune_assets.targets.concurrency import natural
from neptune_assets.targets.mlflow import mapping
from neptune_assets.targets.mlflow.connection import Client, connection
from neptune_assets.targets.mlflow.load import MlflowTarget
from neptune_assets.targets.mlflow.settings import MlflowSettings
from neptune_assets.targets.model_scope import SourceRuns, scoped_project_id, scoped_run
from neptune_assets.targets.profile import Attribute, ValueCounts
from neptune_assets.targets.protocol import Plan, Receipt, TargetRun, UnsupportedValues, Verdict

OURS: Final = ("neptune_assets.", "neptune.", "neptune/")
"""What tags of ours begin with; all others on an entry of ours are kept."""

VERSION_ID: Final = "neptune.version_id"
STAGE: Final = "neptune.stage"

_ILLEGAL: Final = re.compile(r"[^\w.\- ]")
_ALIAS: Final = re.compile(r"(?!(?:[vV]\d+|(?i:latest|none))$)[A-Za-z0-9_\-]{1,255}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One model version as it is, or as it must be. ``number`` is MLflow's; 0 before it has one."""

    version_id: str
    key: str
    source: str
    run_id: str
    run_link: str | None
    description: str
    tags: Mapping[str, str]
    number: int = 0

    @property
    def digest(self) -> str | None:
        """Digest of the content that stands behind the entry; None where it is not finished."""
        return self.tags.get(mapping.DIGEST)

    @property
    def unchangeable(self) -> tuple[str, str, str]:
        """What MLflow does not let anybody change in a version."""
        return self.source, self.run_id, self.run_link or ""


class ModelRegistry:
    """The registry behind one MLflow client."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    # -- models

    def model(self, key: str) -> RegisteredModel | None:
        """Return the registered model that a load of ours made under this key."""
        found = self._client.search_registered_models(f"tags.`{mapping.KEY}` = '{key}'", max_results=10)
        return next(iter(sorted(found, key=lambda model: str(model.name))), None)

    def models(self, project_key: str) -> list[RegisteredModel]:
        """Return all registered models of one project that loads of ours made."""
        found: list[RegisteredModel] = []
        token: str | None = None
        while True:
            page = self._client.search_registered_models(
                f"tags.`{mapping.PROJECT_KEY}` = '{project_key}'", max_results=1000, page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found

    def create_model(self, wanted: str, key: str, project_key: str) -> RegisteredModel:
        """Create a registered model; its name gets a digest if the wanted one is somebody else's."""
        name = _ILLEGAL.sub("_", wanted)[: mapping.MAX_KEY].strip(" .") or "_"
        for candidate in (name, naming.shorten(name, key, mapping.MAX_KEY)):
            try:
                return self._client.create_registered_model(
                    candidate, {mapping.KEY: key, mapping.PROJECT_KEY: project_key}
                )
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                # Either somebody else's, or ours: the answer to its creation was lost and it was sent again.
                found = self._client.get_registered_model(candidate)
                if found.tags.get(mapping.KEY) == key:
                    return found
        raise MlflowException(f"models {name!r} and its like exist already")

    def settle_model(self, model: RegisteredModel, description: str, tags: Mapping[str, str]) -> None:
        """Bring description and tags of a registered model up to date, the digest last."""
        name, held = str(model.name), dict(model.tags)
        _change_tags(
            held,
            tags,
            lambda key, value: self._client.set_registered_model_tag(name, key, value),
            lambda key: self._client.delete_registered_model_tag(name, key),
            lambda: (
                (model.description or "") == description
                or self._client.update_registered_model(name, description=description)
            ),
        )

    def remove_model(self, model: RegisteredModel) -> None:
        """Delete a registered model; one that still has versions only loses our tags."""
        name = str(model.name)
        if self._versions(name):
            for key in model.tags:
                if key.startswith(OURS):
                    self._client.delete_registered_model_tag(name, key)
        else:
            self._client.delete_registered_model(name)

    # -- versions

    def entries(self, name: str) -> list[Entry]:
        """Return our versions of a registered model in MLflow's order."""
        found = [_entry(version) for version in self._versions(name) if mapping.KEY in version.tags]
        return sorted(found, key=lambda entry: entry.number)

    def place(self, name: str, wanted: Entry) -> int:
        """Make the registry hold this version once, in Neptune's order, the digest last; return its number."""
        held = self.entries(name)
        mine = [entry for entry in held if entry.key == wanted.key]
        later = [entry for entry in held if natural(entry.version_id) > natural(wanted.version_id)]
        earlier = [entry.number for entry in held if natural(entry.version_id) < natural(wanted.version_id)]
        in_order = (
            len(mine) == 1
            and all(entry.number > mine[0].number for entry in later)
            and all(number < mine[0].number for number in earlier)
        )
        if in_order and mine[0].unchangeable == wanted.unchangeable:
            number = mine[0].number
            self._change(name, mine[0], wanted)
        else:
            aliases = self._aliases(name)
            for entry in [*mine, *later]:
                self._client.delete_model_version(name, str(entry.number))
            kept = mine[0] if mine else None
            foreign = {key: value for key, value in (kept.tags if kept else {}).items() if not key.startswith(OURS)}
            number = self._create(
                name, replace(wanted, tags={**foreign, **wanted.tags}), aliases.get(kept.number, ()) if kept else ()
            )
            for entry in later:
                self._create(name, entry, aliases.get(entry.number, ()))
        self._settle_aliases(name)
        self._client.set_model_version_tag(name, str(number), mapping.DIGEST, wanted.tags[mapping.DIGEST])
        return number

    def remove_version(self, name: str, key: str) -> None:
        """Delete our version of this key; aliases of its stage move on to another of ours."""
        for entry in self.entries(name):
            if entry.key == key:
                self._client.delete_model_version(name, str(entry.number))
        self._settle_aliases(name)

    def aliases(self, name: str) -> dict[str, int]:
        """Return alias -> version number."""
        held = self._client.get_registered_model(name).aliases or {}
        return {alias: int(number) for alias, number in held.items()}

    def _versions(self, name: str) -> list[ModelVersion]:
        found: list[ModelVersion] = []
        token: str | None = None
        while True:
            page = self._client.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _create(self, name: str, entry: Entry, aliases: tuple[str, ...]) -> int:
        tags = {key: value for key, value in entry.tags.items() if key != mapping.DIGEST}
        self._client.create_model_version(
            name,
            entry.source,
            run_id=entry.run_id,
            tags=tags,
            run_link=entry.run_link,
            description=entry.description,
            await_creation_for=0,
        )
        # A creation whose answer was lost is sent again by MLflow's client, and then there are two.
        number, *twice = [item.number for item in self.entries(name) if item.key == entry.key]
        for extra in twice:
            self._client.delete_model_version(name, str(extra))
        for alias in aliases:
            self._client.set_registered_model_alias(name, alias, str(number))
        if entry.number and entry.digest is not None:
            # One that was there before and only got a new number is as finished as it was.
            self._client.set_model_version_tag(name, str(number), mapping.DIGEST, entry.digest)
        return number

    def _change(self, name: str, held: Entry, wanted: Entry) -> None:
        number = str(held.number)
        _change_tags(
            dict(held.tags),
            {key: value for key, value in wanted.tags.items() if key != mapping.DIGEST},
            lambda key, value: self._client.set_model_version_tag(name, number, key, value),
            lambda key: self._client.delete_model_version_tag(name, number, key),
            lambda: (
                held.description == wanted.description
                or self._client.update_model_version(name, number, wanted.description)
            ),
        )

    def _aliases(self, name: str) -> dict[int, tuple[str, ...]]:
        found: dict[int, tuple[str, ...]] = {}
        for alias, number in self.aliases(name).items():
            found[number] = (*found.get(number, ()), alias)
        return found

    def _settle_aliases(self, name: str) -> None:
        """Let each stage's alias name our latest version in it, unless it names somebody else's version."""
        held = self.entries(name)
        numbers = {entry.number for entry in held}
        wanted = {stage: entry.number for entry in held if (stage := alias_of(entry.tags.get(STAGE)))}
        now = self.aliases(name)
        for stage in sorted({*wanted, *(_STAGES & now.keys())}):
            if stage in now and now[stage] not in numbers:
                continue
            if stage not in wanted:
                self._client.delete_registered_model_alias(name, stage)
            elif now.get(stage) != wanted[stage]:
                self._client.set_registered_model_alias(name, stage, str(wanted[stage]))


_STAGES: Final = frozenset({"staging", "production", "archived"})


def alias_of(stage: str | None) -> str | None:
    """Return the alias that stands for a Neptune stage; there is none for ``none``."""
    return stage if stage is not None and _ALIAS.fullmatch(stage) else None


def _entry(version: ModelVersion) -> Entry:
    tags = dict(version.tags)
    return Entry(
        version_id=tags.get(VERSION_ID, ""),
        key=tags[mapping.KEY],
        source=str(version.source),
        run_id=str(version.run_id or ""),
        run_link=version.run_link or None,
        description=version.description or "",
        tags=tags,
        number=int(version.version),
    )


def _change_tags(held: Mapping[str, str], wanted: Mapping[str, str], put: Any, take: Any, between: Any) -> None:
    """Take the digest away, make our tags what they must be, do ``between``, and put the digest back last."""
    if mapping.DIGEST in held:
        take(mapping.DIGEST)
    for key in held:
        if key.startswith(OURS) and key not in wanted and key != mapping.DIGEST:
            take(key)
    for key, value in wanted.items():
        if held.get(key) != value and key != mapping.DIGEST:
            put(key, value)
    between()
    if mapping.DIGEST in wanted:
        put(mapping.DIGEST, wanted[mapping.DIGEST])


def compare_version(wanted: Entry, held: Sequence[Entry], aliases: Mapping[str, int], model: str) -> Iterator[str]:
    """Yield how a model version differs from what it must be.

    ``held`` are our versions of the model in MLflow's order, ``aliases`` all aliases of it with the number they name.
    """
    mine = [entry for entry in held if entry.key == wanted.key]
    if len(mine) != 1:
        yield f"the registry holds version {wanted.version_id!r} {len(mine)} times"
        return
    if mine[0].unchangeable != wanted.unchangeable:
        yield f"source, run and link are {mine[0].unchangeable} instead of {wanted.unchangeable}"
    yield from compare_entry(wanted.description, wanted.tags, mine[0].description, mine[0].tags)
    if [entry.version_id for entry in held] != sorted((entry.version_id for entry in held), key=natural):
        yield f"the versions of {model} are not in Neptune's order"
    stage = alias_of(wanted.tags.get(STAGE))
    if stage is None:
        return
    of_stage = [entry for entry in held if entry.tags.get(STAGE) == stage]
    named = next((entry for entry in held if entry.number == aliases.get(stage)), None)
    if stage not in aliases:
        yield f"alias {stage!r} is missing"
    elif named is not None and of_stage and named.key != of_stage[-1].key:
        # An alias that names somebody else's version is theirs.
        yield f"alias {stage!r} names {named.version_id} instead of {of_stage[-1].version_id}"


def compare_entry(
    description: str, tags: Mapping[str, str], held_description: str, held_tags: Mapping[str, str]
) -> Iterator[str]:
    """Yield how description and tags differ from what they must be; more tags than that may be there."""
    if description != held_description:
        yield f"the description is {held_description[:100]!r} instead of {description[:100]!r}"
    for key, value in sorted(tags.items()):
        if held_tags.get(key) != value:
            yield f"tag {key!r} is {held_tags.get(key, '')[:100]!r} instead of {value[:100]!r}"


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
        self._linked = MlflowTarget(target, lake)
        """Runs of the project, which versions link to."""
        self._sources = SourceRuns(lake)
        self._held: dict[str, _Held] | None = None

    @property
    def name(self) -> str:
        """The word that ledgers and reports use for this target."""
        return f"mlflow_{self.scope.value}"

    def check(self) -> None:
        """Raise TargetError with the next action if MLflow or its registry cannot be used."""
        self._runs.check()
        with self._connection.errors("listing registered models"):
            self._registry.models("")

    def is_new(self) -> bool:
        """True if the database is a file that is not there yet."""
        return self._runs.is_new()

    def plan(self, run: LakeRun) -> Plan:
        """Say what loading the model or version will do. Writes nothing."""
        return self._runs.plan(scoped_run(run, self.scope))

    def unsupported_values(self, values: ValueCounts, plan: Plan) -> Sequence[UnsupportedValues]:
        """Return the values that MLflow cannot hold, and what becomes of them."""
        return self._runs.unsupported_values(values, plan)

    def find(self, project_id: str, run_id: str) -> TargetRun | None:
        """Find a model or version: it is finished if both its run and its entry are, and its link is up to date."""
        held = self._runs.find(scoped_project_id(project_id, self.scope), run_id)
        if held is None:
            return None
        return TargetRun(project_id, run_id, held.target_id, self._finished(project_id, run_id, held.digest))

    def replace(self, run: LakeRun, plan: Plan) -> Receipt:
        """Make MLflow hold exactly this model or version: first its run, then its entry."""
        receipt = self._runs.replace(scoped_run(run, self.scope), plan)
        self._held = None
        with self._connection.errors(f"registering {run.run_id!r}"):
            note = self._register(run, receipt.target_id)
        return replace(receipt, project_id=run.project_id, notes=(*receipt.notes, note))

    def verify(self, run: LakeRun, receipt: Receipt) -> Verdict:
        """Read back the run and the entry and compare them with the lake."""
        verdict = self._runs.verify(scoped_run(run, self.scope), receipt)
        with self._connection.errors(f"reading back {run.run_id!r} from the registry"):
            differences = self._differences(run, receipt.target_id)
        return Verdict(run.run_id, (*verdict.differences, *differences))

    def remove(self, project_id: str, run_id: str) -> None:
        """Take a model or version out of MLflow: the entry, then the run that holds it."""
        key = self._key(project_id, run_id)
        with self._connection.errors(f"removing {run_id!r}"):
            if self.scope is Scope.MODELS:
                model = self._registry.model(key)
                if model is not None:
                    self._registry.remove_model(model)
            else:
                for model in self._models_of(project_id):
                    self._registry.remove_version(str(model.name), key)
        self._held = None
        self._runs.remove(scoped_project_id(project_id, self.scope), run_id)

    def runs(self, project_id: str) -> Iterator[TargetRun]:
        """Everything of this project and kind that loads left in MLflow, entries whose run is gone among them."""
        self._held = None
        with_run: set[str] = set()
        for held in self._runs.runs(scoped_project_id(project_id, self.scope)):
            digest = self._finished(project_id, held.run_id, held.digest)
            with_run.add(self._key(project_id, held.run_id))
            yield TargetRun(project_id, held.run_id, held.target_id, digest)
        for key, entry in sorted(self._entries_of(project_id).items()):
            if key not in with_run:
                yield TargetRun(project_id, entry.neptune_id, entry.uuid, None)

    def close(self) -> None:
        """Let go of connections."""
        self._runs.close()
        self._linked.close()

    # -- internals

    def _linked_run(self, project_id: str, neptune_run: str) -> str:
        """Return the MLflow id of a run of the project, "" if it was not loaded."""
        held = self._linked.find(project_id, neptune_run) if neptune_run else None
        return held.target_id if held is not None and held.digest is not None else ""

    @cached_property
    def _registry(self) -> ModelRegistry:
        return ModelRegistry(self._client)

    def _key(self, project_id: str, run_id: str) -> str:
        return mapping.external_key(scoped_project_id(project_id, self.scope), run_id)

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
        return digest if entry.linked == self._linked_run(project_id, entry.neptune_run) else None

    def _entries_of(self, project_id: str) -> dict[str, _Held]:
        """Return all entries of this kind by key, asked for once after each change."""
        if self._held is None:
            with self._connection.errors(f"listing the registry of {project_id}"):
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
        return str(self._client.get_run(uuid).info.experiment_id)

    @cached_property
    def _client(self) -> Client:
        return Client(self._connection)

    def _texts(self, run: LakeRun, uuid: str) -> tuple[str, dict[str, str], dict[str, str]]:
        """Return description, tags and the tags that say what the thing is, all of one model or version."""
        values: dict[Attribute, Any] = {
            attribute: value for attribute, value in mapping.parameters(run) if value is not None
        }
        sys = {path: value for (path, _), value in values.items() if path.startswith("sys/")}
        facts = {
            mapping.KEY: self._key(run.project_id, run.run_id),
            mapping.PROJECT_KEY: mapping.project_key(f"{run.project_id}/{Scope.MODELS.value}"),
            mapping.PROJECT: mapping.tag_text(run.project_id),
            MODEL_ID: run.run_id,
            RUN: uuid,
        }
        if sys.get("sys/name"):
            facts["neptune.name"] = mapping.tag_text(str(sys["sys/name"]))
        if self.scope is Scope.MODEL_VERSIONS:
            facts[VERSION_ID] = run.run_id
            facts[MODEL_ID] = str(sys.get("sys/model_id") or run.run_id.rpartition("-")[0] or run.run_id)
            if sys.get("sys/stage"):
                facts[STAGE] = mapping.tag_text(str(sys["sys/stage"]))
            neptune_run = self._sources.neptune_run(run.project_id, values)
            if neptune_run is not None:
                facts[mapping.RUN_ID] = mapping.tag_text(neptune_run)
                if uuid_of_run := self._linked_run(run.project_id, neptune_run):
                    facts[LINKED] = uuid_of_run
        keys = naming.distinct_keys(
            {attribute: f"neptune/{attribute[0]}" for attribute in sorted(values)},
            mapping.clean_key,
            limit=mapping.MAX_KEY,
            fold_case=True,
        )
        tags = {keys[a]: mapping.tag_text(mapping.param_text(a[1], value)) for a, value in values.items()}
        description = mapping.tag_text(str(sys.get("sys/description") or ""))
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
