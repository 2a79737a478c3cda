"""Versions of a collection of models as W&B holds them: the queries and changes that W&B's API has for them.

Fields and mutations are those of the documents that wandb's own package sends.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from neptune_assets.errors import TargetError
from neptune_assets.targets.wandb.model_entry import DIGEST, PROJECT, STAGE, TYPE, VERSION, alias_of

_COLLECTION: Final = """query NeptuneAssetsModel($project: String!, $entity: String, $type: String!, $name: String!) {
  project(name: $project, entityName: $entity) { artifactType(name: $type) { artifactCollection(name: $name) {
    id description
  } } }
}"""
_VERSIONS: Final = """query NeptuneAssetsVersions(
  $project: String!, $entity: String, $type: String!, $name: String!, $after: String
) {
  project(name: $project, entityName: $entity) { artifactType(name: $type) { artifactCollection(name: $name) {
    artifacts(first: 50, after: $after) {
      edges { node {
        id versionIndex digest state description metadata tags { name }
        createdBy { ... on Run { name } }
        artifactMemberships { edges { node {
          aliases { alias } artifactCollection { __typename name project { name entity { name } } }
        } } }
      } }
      pageInfo { endCursor hasNextPage }
    }
  } } }
}"""
_UPDATE: Final = """mutation NeptuneAssetsUpdate($input: UpdateArtifactInput!) {
  updateArtifact(input: $input) { artifact { id } }
}"""
_ADD_ALIASES: Final = """mutation NeptuneAssetsAddAliases($input: AddAliasesInput!) {
  addAliases(input: $input) { success }
}"""
_DELETE_ALIASES: Final = """mutation NeptuneAssetsDeleteAliases($input: DeleteAliasesInput!) {
  deleteAliases(input: $input) { success }
}"""
_DELETE: Final = """mutation NeptuneAssetsDelete($input: DeleteArtifactInput!) {
  deleteArtifact(input: $input) { artifact { id } }
}"""
_LINK: Final = """mutation NeptuneAssetsLink($input: LinkArtifactInput!) {
  linkArtifact(input: $input) { versionIndex }
}"""
_DESCRIBE: Final = """mutation NeptuneAssetsDescribe($input: UpdateArtifactSequenceInput!) {
  updateArtifactSequence(input: $input) { artifactCollection { id } }
}"""
_ORGANIZATION: Final = """query NeptuneAssetsOrganization($entity: String!) {
  entity(name: $entity) { organization { orgEntity { name } } }
}"""


class Queries(Protocol):
    """Sends GraphQL documents, as :class:`~neptune_assets.targets.wandb.client.WandbClient` does."""

    def query(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Send a document and return its data."""


@dataclass(frozen=True, slots=True)
class Place:
    """A collection: of a project, or of a registry, which W&B keeps as a project of the organization."""

    entity: str
    project: str
    name: str


@dataclass(frozen=True, slots=True)
class HeldVersion:
    """A version as W&B holds it."""

    id: str
    index: int
    digest: str
    state: str
    description: str
    metadata: Mapping[str, Any]
    tags: frozenset[str]
    creator: str
    aliases: Mapping[Place, frozenset[str]]
    """Aliases by collection: its own, and those it is linked into."""

    @property
    def committed(self) -> bool:
        """True if all of its files arrived."""
        return self.state == "COMMITTED"

    @property
    def finished(self) -> str | None:
        """The digest in the lake of what it was loaded from; None if it is not as it must be yet."""
        digest = self.metadata.get(DIGEST)
        return digest if self.committed and isinstance(digest, str) else None

    @property
    def stage(self) -> str | None:
        """The alias that its stage wants."""
        return alias_of(self.metadata.get(STAGE))

    def is_of(self, project_id: str, version_id: str | None = None) -> bool:
        """True if it is a version of ours, of this Neptune project."""
        ours = self.metadata.get(PROJECT) == project_id and isinstance(self.metadata.get(VERSION), str)
        return ours and version_id in {None, self.metadata[VERSION]}


def model_versions(client: Queries, entity: str, project: str, collection: str) -> list[HeldVersion]:
    """Return all versions of a collection of models, first to last; none if there is no such collection."""
    found: list[HeldVersion] = []
    variables: dict[str, Any] = {"project": project, "entity": entity, "type": TYPE, "name": collection}
    more = True
    while more:
        held = _collection_of(client.query(_VERSIONS, variables)) or {}
        page = held.get("artifacts") or {"edges": [], "pageInfo": {}}
        found += [_held(edge["node"]) for edge in page["edges"] if edge["node"]["state"] != "DELETED"]
        more = bool(page["pageInfo"].get("hasNextPage"))
        variables = {**variables, "after": page["pageInfo"].get("endCursor")}
    return sorted(found, key=lambda version: version.index)


def describe_collection(client: Queries, place: Place, description: str, *, ask_only: bool = False) -> bool:
    """Give a collection its description if it has another; return whether it had it, or is not there."""
    variables = {"project": place.project, "entity": place.entity, "type": TYPE, "name": place.name}
    held = _collection_of(client.query(_COLLECTION, variables))
    if held is None or (held.get("description") or "") == description:
        return True
    if not ask_only:
        client.query(_DESCRIBE, {"input": {"artifactSequenceID": held["id"], "description": description}})
    return False


def update(
    client: Queries,
    version: HeldVersion,
    *,
    description: str,
    metadata: str,
    tags: Collection[str],
    untag: Collection[str],
) -> None:
    """Change what W&B lets be changed in a version. Metadata are JSON, and replaced as a whole."""
    change = {
        "artifactID": version.id,
        "description": description,
        "metadata": metadata,
        "tagsToAdd": [{"tagName": tag} for tag in sorted(tags)],
        "tagsToDelete": [{"tagName": tag} for tag in sorted(untag)],
    }
    client.query(_UPDATE, {"input": change})


def change_aliases(client: Queries, version: HeldVersion, place: Place, aliases: Collection[str], *, add: bool) -> None:
    """Add aliases of a version in a collection, or take them away."""
    if not aliases:
        return
    where = {"artifactCollectionName": place.name, "entityName": place.entity, "projectName": place.project}
    change = {"artifactID": version.id, "aliases": [{**where, "alias": alias} for alias in sorted(aliases)]}
    client.query(_ADD_ALIASES if add else _DELETE_ALIASES, {"input": change})


def delete(client: Queries, version: HeldVersion) -> None:
    """Delete a version with its aliases; its number is never given again."""
    client.query(_DELETE, {"input": {"artifactID": version.id, "deleteAliases": True}})


def link(client: Queries, version: HeldVersion, place: Place) -> None:
    """Link a version into a collection of a registry, which is made if it is not there."""
    change = {
        "artifactID": version.id,
        "artifactPortfolioName": place.name,
        "entityName": place.entity,
        "projectName": place.project,
        "aliases": [],
    }
    client.query(_LINK, {"input": change})


def organization_of(client: Queries, entity: str) -> str:
    """Return the entity of the organization that an entity belongs to. Raises TargetError if there is none."""
    found = (client.query(_ORGANIZATION, {"entity": entity}).get("entity") or {}).get("organization") or {}
    name = (found.get("orgEntity") or {}).get("name")
    if not name:
        raise TargetError(
            f"The W&B entity {entity!r} belongs to no organization, so there is no registry to link models into.",
            hint="Set targets.wandb.entity to a team of the organization, or leave out targets.wandb.registry.",
        )
    return str(name)


def _collection_of(data: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = (data.get("project") or {}).get("artifactType") or {}
    found = kind.get("artifactCollection")
    return found if isinstance(found, dict) else None


def _held(node: Mapping[str, Any]) -> HeldVersion:
    metadata = json.loads(node.get("metadata") or "{}")
    aliases: dict[Place, frozenset[str]] = {}
    for edge in (node.get("artifactMemberships") or {}).get("edges") or ():
        where = edge["node"]["artifactCollection"]
        place = Place(where["project"]["entity"]["name"], where["project"]["name"], where["name"])
        aliases[place] = frozenset(item["alias"] for item in edge["node"]["aliases"] or ())
    return HeldVersion(
        id=node["id"],
        index=int(node["versionIndex"] or 0),
        digest=node["digest"],
        state=node["state"],
        description=node.get("description") or "",
        metadata=metadata if isinstance(metadata, dict) else {},
        tags=frozenset(tag["name"] for tag in node.get("tags") or ()),
        creator=str((node.get("createdBy") or {}).get("name") or ""),
        aliases=aliases,
    )
