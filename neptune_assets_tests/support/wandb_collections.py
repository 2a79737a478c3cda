"""Collections of artifacts as W&B keeps them, for the local stub: numbered versions, aliases, tags, links, deletion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class StubArtifact:
    name: str
    type: str
    digest: str
    state: str = "PENDING"
    metadata: str = ""
    aliases: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    """Files by their path in the artifact; the manifest that was sent last is ``wandb_manifest.json``."""
    commits: int = 0
    number: str = ""
    creator: str = ""
    index: int = 0
    description: str = ""
    tags: list[str] = field(default_factory=list)
    links: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)
    """Collections of registries that it is linked into, as (entity, project, name), with its aliases there."""


class Collections:
    """Versions of collections as the server numbers them, and the calls that change them."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str, str], list[StubArtifact]] = {}
        """By (entity, project, name), first to last, deleted ones among them."""
        self.descriptions: dict[tuple[str, str, str], str] = {}
        self.organizations = {"team": "org-entity"}
        self.operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "NeptuneAssetsModel": self._collection,
            "NeptuneAssetsVersions": self._versions,
            "NeptuneAssetsUpdate": self._update,
            "NeptuneAssetsAddAliases": lambda given: self._alias(given, add=True),
            "NeptuneAssetsDeleteAliases": lambda given: self._alias(given, add=False),
            "NeptuneAssetsDelete": self._delete,
            "NeptuneAssetsLink": self._link,
            "NeptuneAssetsDescribe": self._describe,
            "NeptuneAssetsOrganization": self._organization,
        }
        self.changes = 0

    def versions(self, name: str, project: str = "proj", entity: str = "team") -> list[StubArtifact]:
        return [item for item in self.held.get((entity, project, name), []) if item.state != "DELETED"]

    def of(self, number: str) -> StubArtifact:
        return next(item for items in self.held.values() for item in items if item.number == number)

    def created(self, place: tuple[str, str, str], made: StubArtifact, aliases: list[str]) -> StubArtifact:
        """Number a version, or find the one with the same digest."""
        items = self.held.setdefault(place, [])
        same = [item for item in items if item.digest == made.digest and item.state != "DELETED"]
        if same:
            made = same[0]
        else:
            made.index = len(items)
            items.append(made)
        for alias in aliases:
            self._move(place, made, alias)
        return made

    def _move(self, place: tuple[str, str, str], to: StubArtifact, alias: str) -> None:
        for items in self.held.values():
            for item in items:
                held = item.links.get(place, []) if place not in self.held else item.aliases
                if alias in held and (place not in self.held or item in self.held[place]):
                    held.remove(alias)
        to.links.get(place, to.aliases).append(alias)

    def _collection(self, given: dict[str, Any]) -> dict[str, Any]:
        place = (given["entity"], given["project"], given["name"])
        found = {"id": "|".join(place), "description": self.descriptions.get(place)} if place in self.held else None
        return {"project": {"artifactType": {"artifactCollection": found}}}

    def _versions(self, given: dict[str, Any]) -> dict[str, Any]:
        place = (given["entity"], given["project"], given["name"])
        if place not in self.held:
            return {"project": {"artifactType": None}}
        begin = int(given.get("after") or 0)
        page = self.held[place][begin : begin + 2]  # small pages, so that there are several
        nodes = [{"node": self._node(place, item)} for item in page]
        more = begin + 2 < len(self.held[place])
        info = {"endCursor": str(begin + 2), "hasNextPage": more}
        return {"project": {"artifactType": {"artifactCollection": {"artifacts": {"edges": nodes, "pageInfo": info}}}}}

    def _node(self, place: tuple[str, str, str], item: StubArtifact) -> dict[str, Any]:
        members = {place: item.aliases, **item.links}
        return {
            "id": item.number,
            "versionIndex": item.index,
            "digest": item.digest,
            "state": item.state,
            "description": item.description or None,
            "metadata": item.metadata or None,
            "tags": [{"name": tag} for tag in item.tags],
            "createdBy": {"name": item.creator},
            "artifactMemberships": {
                "edges": [
                    {
                        "node": {
                            "aliases": [{"alias": alias} for alias in aliases],
                            "artifactCollection": {
                                "__typename": "ArtifactSequence" if where == place else "ArtifactPortfolio",
                                "name": where[2],
                                "project": {"name": where[1], "entity": {"name": where[0]}},
                            },
                        }
                    }
                    for where, aliases in members.items()
                ]
            },
        }

    def _update(self, given: dict[str, Any]) -> dict[str, Any]:
        change = given["input"]
        item = self.of(change["artifactID"])
        item.description, item.metadata = change["description"], change["metadata"]
        item.tags = [tag for tag in item.tags if {"tagName": tag} not in change["tagsToDelete"]]
        item.tags += [tag["tagName"] for tag in change["tagsToAdd"]]
        self.changes += 1
        return {"updateArtifact": {"artifact": {"id": item.number}}}

    def _alias(self, given: dict[str, Any], *, add: bool) -> dict[str, Any]:
        item = self.of(given["input"]["artifactID"])
        for change in given["input"]["aliases"]:
            place = (change["entityName"], change["projectName"], change["artifactCollectionName"])
            if add:
                self._move(place, item, change["alias"])
            else:
                item.links.get(place, item.aliases).remove(change["alias"])
        self.changes += 1
        return {"aliases": {"success": True}}

    def _delete(self, given: dict[str, Any]) -> dict[str, Any]:
        item = self.of(given["input"]["artifactID"])
        assert given["input"]["deleteAliases"] is True
        item.state, item.aliases, item.links = "DELETED", [], {}
        item.number = f"deleted {id(item)}"
        self.changes += 1
        return {"deleteArtifact": {"artifact": {"id": item.number}}}

    def _link(self, given: dict[str, Any]) -> dict[str, Any]:
        change = given["input"]
        place = (change["entityName"], change["projectName"], change["artifactPortfolioName"])
        self.of(change["artifactID"]).links.setdefault(place, [])
        self.changes += 1
        return {"linkArtifact": {"versionIndex": 0}}

    def _describe(self, given: dict[str, Any]) -> dict[str, Any]:
        entity, project, name = given["input"]["artifactSequenceID"].split("|")
        self.descriptions[entity, project, name] = given["input"]["description"]
        self.changes += 1
        return {"updateArtifactSequence": {"artifactCollection": {"id": name}}}

    def _organization(self, given: dict[str, Any]) -> dict[str, Any]:
        name = self.organizations.get(given["entity"])
        return {"entity": {"organization": None if name is None else {"orgEntity": {"name": name}}}}
