"""Entries of ours in MLflow's Model Registry: registered models, their versions in order, aliases.

MLflow numbers versions itself, always one above the highest that ever was. Versions are therefore kept in Neptune's
order by creating them in it; one that comes late, or that cannot be changed in place, is created anew together with
those of ours that follow it, and their numbers grow.
Entries are found by a tag of ours; what has no such tag is somebody else's and is never changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from neptune_assets.targets.mlflow import mapping, names
from neptune_assets.targets.order import natural

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
        name = _ILLEGAL.sub("_", wanted)[: names.MAX_KEY].strip(" .") or "_"
        for candidate in (name, names.shorten(name, key, names.MAX_KEY)):
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
