"""Keeping our versions in W&B's collections of models as they must be: in order, once, with aliases, tags and links.

W&B numbers versions itself and never gives a number twice, and the files of a version never change. So a version whose
files changed, or that comes late, is logged anew together with those of ours that follow it. Everything else of a
version can be changed in place. What is not ours is never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from neptune_assets.errors import TargetError
from neptune_assets.targets.order import natural
from neptune_assets.targets.wandb import model_versions as api
from neptune_assets.targets.wandb.model_entry import DIGEST, TAGS, VERSION, ModelEntry, alias_of, registry_name
from neptune_assets.targets.wandb.model_versions import HeldVersion, Place
from neptune_assets.targets.wandb.records import json_text

REGISTRY: Final = "wandb-registry-"
"""What the projects begin with that W&B keeps registries as."""
_STAGES: Final = frozenset({"staging", "production", "archived"})


class ModelRegistry:
    """The collections of models of one W&B project, and the registry that they are linked into, if any."""

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
        api.describe_collection(self._client, Place(self._entity, self._project, collection), description)

    def is_described(self, collection: str, description: str) -> bool:
        """True if a model's collection has this description, or there is no collection."""
        place = Place(self._entity, self._project, collection)
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

    def _place_of(self, version: HeldVersion) -> Place:
        """Return the collection that a version was logged to, in W&B's own words."""
        own = (p for p in version.aliases if p.project == self._project and p.entity == self._entity)
        return next(own, Place(self._entity, self._project, ""))

    def _linked_place(self, collection: str) -> Place:
        """Return the collection of the registry; its name tells models of several projects apart."""
        if self._organization is None:
            self._organization = api.organization_of(self._client, self._entity)
        return Place(self._organization, f"{REGISTRY}{self._registry}", registry_name(self._project, collection))

    def _settle_aliases(self, collection: str, own: Place) -> None:
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

    def _aliases_of_others(self, collection: str) -> dict[Place, frozenset[str]]:
        found: dict[Place, frozenset[str]] = {}
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
