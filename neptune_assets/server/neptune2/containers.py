"""What 2.x clients name by one kind of id: runs, models, versions of models, and projects with metadata of their own.

An id is a uuid or ``workspace/project/SYS-ID``; a project's own id stands for its metadata, too. Runs that only the
lake has are given a uuid made of their name, which they keep when the store takes them over.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from neptune_assets.errors import UnknownProjectError
from neptune_assets.schema import AttributeType, Scope
from neptune_assets.server.catalog.tables import ProjectRuns, Run
from neptune_assets.server.neptune2.responses import NotFoundError
from neptune_assets.server.run_import import import_run, lake_uuid
from neptune_assets.server.store.runs import NewRun, encode
from neptune_assets.server.store.runs import Run as StoredRun

if TYPE_CHECKING:
    from neptune_assets.server.service import Service
    from neptune_assets.server.store.projects import ProjectStore
    from neptune_assets.server.store.writing import Writing

GIT: Final = "source_code/git"
"""Where a run's git information is, as one attribute or as the ones below it."""

_COMMIT: Final = {
    "commitId": "commit/commit_id",
    "message": "commit/message",
    "authorName": "commit/author_name",
    "authorEmail": "commit/author_email",
}
_DATE: Final = "commit/commit_date"
_NAMES: Final = frozenset({*_COMMIT.values(), _DATE, "branch", "remotes", "dirty"})


def git_attributes(info: Mapping[str, Any]) -> Iterator[tuple[str, AttributeType, Any]]:
    """Yield path, type and value of each attribute that git information becomes; datetimes in milliseconds."""
    commit = info.get("commit") or {}
    for key, name in _COMMIT.items():
        if isinstance(commit.get(key), str):
            yield f"{GIT}/{name}", AttributeType.STRING, commit[key]
    moment = _milliseconds(commit.get("commitDate"))
    if moment is not None:
        yield f"{GIT}/{_DATE}", AttributeType.DATETIME, moment
    if isinstance(info.get("currentBranch"), str):
        yield f"{GIT}/branch", AttributeType.STRING, info["currentBranch"]
    if isinstance(info.get("remotes"), list):
        yield f"{GIT}/remotes", AttributeType.STRING_SET, [str(remote) for remote in info["remotes"]]
    if isinstance(info.get("repositoryDirty"), bool):
        yield f"{GIT}/dirty", AttributeType.BOOL, info["repositoryDirty"]


def is_git(path: str) -> bool:
    """True for the attributes that :func:`git_attributes` makes."""
    return path.startswith(f"{GIT}/") and path[len(GIT) + 1 :] in _NAMES


def git_properties(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the properties of the one attribute, of the values (by path) of those that are in the store."""
    found = {path[len(GIT) + 1 :]: value for path, value in values.items() if is_git(path)}
    commit: dict[str, Any] = {key: found.get(name) for key, name in _COMMIT.items()}
    if found.get(_DATE) is not None:
        moment = datetime.fromtimestamp(found[_DATE] // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        commit["commitDate"] = f"{moment}.{found[_DATE] % 1000:03d}Z"
    return {
        "commit": commit,
        "currentBranch": found.get("branch"),
        "remotes": found.get("remotes"),
        "repositoryDirty": found.get("dirty"),
    }


def _milliseconds(text: Any) -> int | None:
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


RUNS: Final = "runs"
MODELS: Final = "models"
MODEL_VERSIONS: Final = "model_versions"
PROJECT: Final = "project"

SCOPES: Final = (RUNS, MODELS, MODEL_VERSIONS)
TYPES: Final = {RUNS: "run", MODELS: "model", MODEL_VERSIONS: "modelVersion", PROJECT: "project"}
"""Scopes of the store and the lake, and what the protocol calls what is in them."""
SCOPE_OF_TYPE: Final = {kind: scope for scope, kind in TYPES.items()}


@dataclass(frozen=True, slots=True)
class Container:
    """One thing with attributes. ``run`` is what the catalog knows of it; None for a project without metadata."""

    project_id: str
    scope: str
    uuid: str
    sys_id: str
    run: Run | None

    @property
    def trashed(self) -> bool:
        """True if it is in the trash."""
        return self.run is not None and self.run.trashed


def uuid_of(run: Run) -> str:
    """Return the uuid by which clients know a run of the catalog."""
    return run.uuid or lake_uuid(run.project, run.scope, run.run_id)


class Containers:
    """Finds containers by the ids of clients; keeps the uuids of the lake's runs once somebody asked for one."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._uuids: dict[tuple[str, str], tuple[ProjectRuns, dict[str, str]]] = {}
        self._projects: dict[str, str] = {}
        self._guard = threading.Lock()

    def project_id(self, identifier: str) -> str:
        """Return the name of a project given by name or uuid. Raises NotFoundError if there is none."""
        store = self._service.store
        if "/" not in identifier:
            for name in store.projects():
                if store.project(name).uuid == identifier:
                    return name
        elif identifier in self._service.catalog.projects():
            return identifier
        raise NotFoundError(f"There is no project {identifier!r}.")

    def project_id_to_write(self, identifier: str) -> str:
        """Return the name of a project that is there, or that writing to it makes. Raises NotFoundError otherwise."""
        try:
            return self.project_id(identifier)
        except NotFoundError:
            if self._service.may_be_made(identifier):
                return identifier
            raise

    def find(self, identifier: str) -> Container:
        """Return a container, as the catalog has it now. Raises NotFoundError if there is none."""
        parts = identifier.split("/")
        if len(parts) == 3:
            found = self._by_sys_id(f"{parts[0]}/{parts[1]}", parts[2])
        else:
            found = self._by_project(identifier) or self._by_uuid(identifier)
        if found is None:
            raise NotFoundError(f"There is no run, model or version {identifier!r}.")
        return found

    def container(self, run: Run) -> Container:
        """Return a run of the catalog as a container."""
        return Container(run.project, run.scope, uuid_of(run), run.sys_id, run)

    def project_to_write(self, identifier: str) -> ProjectStore:
        """Return the project of the store that a container is in, or will be. Raises NotFoundError if there is none."""
        project, _ = self._stored(identifier)
        return project or self._service.project_to_write(self._find_to_write(identifier).project_id)

    @contextmanager
    def writing(self, identifier: str) -> Iterator[tuple[ProjectStore, Writing, StoredRun]]:
        """Hold the right to write to a container, which is taken into the store if only the lake has it.

        Raises NotFoundError if there is none.
        """
        project, stored = self._stored(identifier)
        if project is None:
            container = self._find_to_write(identifier)
            project = self._service.project_to_write(container.project_id)
        with project.write() as writing:
            run = writing.run_by_uuid(stored) if stored is not None else self._to_write(project, writing, container)
            if run is None:
                raise NotFoundError(f"There is no run, model or version {identifier!r}.")
            yield project, writing, run

    def _find_to_write(self, identifier: str) -> Container:
        if self._service.may_be_made(identifier):
            self._service.project_to_write(identifier)
        return self.find(identifier)

    def _stored(self, identifier: str) -> tuple[ProjectStore | None, str | None]:
        """Return project and uuid where the id is a uuid that the store knows: what writes but the first one use."""
        name = self._projects.get(identifier)
        for candidate in [name] if name is not None else self._service.store.projects():
            try:
                project = self._service.store.project(candidate)
            except UnknownProjectError:
                continue
            with project.read() as connection:
                if connection.execute("SELECT 1 FROM runs WHERE uuid = ?", (identifier,)).fetchone() is not None:
                    self._projects[identifier] = candidate
                    return project, identifier
        self._projects.pop(identifier, None)
        return None, None

    def _to_write(self, project: ProjectStore, writing: Writing, container: Container) -> StoredRun | None:
        if container.scope == PROJECT:
            return writing.run(project.key, PROJECT) or new_project_container(project, writing)
        assert container.run is not None  # noqa: S101 - only a project can be without
        known = writing.run(container.run.run_id, container.scope)
        if known is not None:
            return known
        lake = self._service.lake
        if lake is None:
            return None
        run = lake.project(container.project_id, Scope(container.scope)).run(container.run.run_id)
        return import_run(writing, project, run, "2")

    def _by_project(self, identifier: str) -> Container | None:
        try:
            name = self.project_id(identifier)
        except NotFoundError:
            # The client asks for the attributes of a project before it writes to it, also of one that is not there yet.
            made = self._service.may_be_made(identifier)
            return Container(identifier, PROJECT, identifier, "", None) if made else None
        catalog = self._service.catalog
        catalog.refresh(name)
        if name in self._service.store.projects():
            project = self._service.store.project(name)
            return Container(
                name, PROJECT, project.uuid, project.key, catalog.runs(name, PROJECT).by_uuid(project.uuid)
            )
        return Container(name, PROJECT, name, "", None)

    def _by_sys_id(self, project_id: str, sys_id: str) -> Container | None:
        catalog = self._service.catalog
        if project_id not in catalog.projects():
            return None
        catalog.refresh(project_id)
        for scope in SCOPES:
            run = catalog.runs(project_id, scope).by_sys_id(sys_id)
            if run is not None:
                return self.container(run)
        return None

    def _by_uuid(self, identifier: str) -> Container | None:
        catalog = self._service.catalog
        known = self._projects.get(identifier)
        for name in sorted(catalog.projects(), key=lambda name: name != known):
            try:
                catalog.refresh(name)
            except UnknownProjectError:
                continue  # Deleted just now.
            for scope in SCOPES:
                run = catalog.runs(name, scope).by_uuid(identifier) or self._of_lake(name, scope, identifier)
                if run is not None:
                    self._projects[identifier] = name
                    return self.container(run)
        return None

    def _of_lake(self, project_id: str, scope: str, identifier: str) -> Run | None:
        runs = self._service.catalog.runs(project_id, scope)
        with self._guard:
            seen, uuids = self._uuids.get((project_id, scope), (None, {}))
            if seen is not runs:
                # The catalog puts a new object in place of one that changed.
                uuids = {lake_uuid(project_id, scope, run.run_id): run.run_id for run in runs if run.uuid is None}
                self._uuids[(project_id, scope)] = (runs, uuids)
        run_id = uuids.get(identifier)
        return None if run_id is None else runs.by_id(run_id)


def new_project_container(project: ProjectStore, writing: Writing) -> StoredRun:
    """Make the row that a project's own attributes belong to; its uuid is the project's."""
    created = int(writing.connection.execute("SELECT created_at FROM project").fetchone()[0])
    run = writing.create_run(
        NewRun(project.key, PROJECT, sys_id=project.key, uuid=project.uuid, generation="2", created_at=created)
    )
    operations = writing.operations(run)
    operations.assign("sys/name", AttributeType.STRING, project.project_id.rpartition("/")[2])
    operations.assign("sys/visibility", AttributeType.STRING, "priv")
    operations.assign("sys/group_tags", AttributeType.STRING_SET, "[]")
    operations.assign("sys/size", AttributeType.FLOAT, encode(AttributeType.FLOAT, 0.0))
    return run
