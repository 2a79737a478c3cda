"""Make runs, models and versions of models; put them into the trash, take them out of existence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from neptune_assets.errors import UnknownProjectError
from neptune_assets.schema import AttributeType
from neptune_assets.server.neptune2.containers import (
    MODEL_VERSIONS,
    MODELS,
    PROJECT,
    RUNS,
    SCOPE_OF_TYPE,
    Container,
    Containers,
    git_attributes,
)
from neptune_assets.server.neptune2.responses import BadRequestError, ConflictError, NotFoundError
from neptune_assets.server.store.runs import NewRun, encode

if TYPE_CHECKING:
    from neptune_assets.server.service import Service
    from neptune_assets.server.store.projects import ProjectStore
    from neptune_assets.server.store.runs import Run
    from neptune_assets.server.store.writing import Writing

_MODEL_KEY: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_MAX_RUN_ID: Final = 1024


class Creation:
    """Makes containers. Each is durable before its method returns."""

    def __init__(self, service: Service, containers: Containers) -> None:
        self._service = service
        self._containers = containers

    def create(self, wanted: Mapping[str, Any]) -> Container:
        """Make what a client wants; a run whose custom id is known is the one that is there.

        Raises NotFoundError for an unknown project or model, ConflictError for a model's key that is taken.
        """
        scope = SCOPE_OF_TYPE.get(str(wanted.get("type")))
        if scope is None or scope == PROJECT:
            raise BadRequestError(f"{wanted.get('type')!r} is not a type of object that can be made.")
        project_id = self._containers.project_id_to_write(str(wanted.get("projectIdentifier")))
        try:
            project = self._service.project_to_write(project_id)
        except UnknownProjectError as error:
            raise NotFoundError(str(error)) from error
        if scope == RUNS:
            return self._run(project, wanted)
        if scope == MODELS:
            return self._model(project, wanted)
        return self._version(project, wanted)

    def set_trashed(self, project_id: str, identifiers: Iterable[str]) -> tuple[list[str], list[str]]:
        """Put objects into the trash, models with all of their versions. Return who went there, and what was wrong."""
        done, errors = [], []
        for identifier in identifiers:
            try:
                container = self._of_project(project_id, identifier)
            except NotFoundError as error:
                errors.append(str(error))
                continue
            for item in (container, *self._versions(container)):
                with self._containers.writing(item.uuid) as (_, writing, run):
                    writing.update_run(run, trashed=1)
            done.append(identifier)
        return done, errors

    def delete(self, project_id: str, identifiers: Iterable[str]) -> tuple[list[str], list[str]]:
        """Delete objects that are in the trash, for good. Return who is gone, and what was wrong.

        What the lake holds is not the server's to delete: it stays in the trash.
        """
        done, errors = [], []
        for identifier in identifiers:
            try:
                container = self._of_project(project_id, identifier)
            except NotFoundError as error:
                errors.append(str(error))
                continue
            if not container.trashed:
                errors.append(f"{container.sys_id} is not in the trash.")
            elif self._in_lake(container):
                errors.append(f"{container.sys_id} is in the lake, which the server only reads; it stays in the trash.")
            else:
                for item in (container, *self._versions(container)):
                    with self._containers.writing(item.uuid) as (_, writing, run):
                        writing.delete_run(run)
                done.append(identifier)
        return done, errors

    def trash(self, project_id: str) -> list[str]:
        """Return the ids of everything in the trash that can be deleted by itself: versions before their models."""
        catalog = self._service.catalog
        catalog.refresh(project_id)
        found = [
            self._containers.container(run)
            for scope in (RUNS, MODEL_VERSIONS, MODELS)
            for run in catalog.runs(project_id, scope)
            if run.trashed
        ]
        return [container.uuid for container in found if not self._in_lake(container)]

    def _run(self, project: ProjectStore, wanted: Mapping[str, Any]) -> Container:
        custom = wanted.get("customId") or None
        if custom is not None and (not isinstance(custom, str) or len(custom) > _MAX_RUN_ID):
            raise BadRequestError(f"A run's id is text of at most {_MAX_RUN_ID} characters.")
        if custom is not None:
            self._service.catalog.refresh(project.project_id)
            known = self._service.catalog.runs(project.project_id, RUNS).by_id(custom)
            if known is not None:
                return self._containers.container(known)
        with project.write() as writing:
            run = None if custom is None else writing.run(custom)
            if run is None:
                sys_id = _next_sys_id(project, writing)
                run = writing.create_run(NewRun(custom, RUNS, sys_id=sys_id, generation="2"))
                self._begin(writing, run, git=wanted.get("gitInfo"))
            uuid = run.uuid
        return self._containers.find(uuid)

    def _model(self, project: ProjectStore, wanted: Mapping[str, Any]) -> Container:
        key = wanted.get("key")
        if not isinstance(key, str) or not _MODEL_KEY.fullmatch(key):
            raise BadRequestError(f"{key!r} cannot be the key of a model: letters, digits, - and _ only.")
        self._service.catalog.refresh(project.project_id)
        sys_id = f"{project.key}-{key}"
        taken = self._service.catalog.runs(project.project_id, MODELS).by_sys_id(sys_id)
        with project.write() as writing:
            if taken is not None or writing.run_by_sys_id(sys_id, MODELS) is not None:
                raise ConflictError(f"There is a model with the key {key!r}.")
            run = writing.create_run(NewRun(sys_id, MODELS, sys_id=sys_id, generation="2"))
            self._begin(writing, run)
            uuid = run.uuid
        return self._containers.find(uuid)

    def _version(self, project: ProjectStore, wanted: Mapping[str, Any]) -> Container:
        model = self._containers.find(str(wanted.get("parentId")))
        if model.scope != MODELS or model.project_id != project.project_id:
            raise NotFoundError(f"There is no model {wanted.get('parentId')!r} in this project.")
        used = [int(item.sys_id.rpartition("-")[2]) for item in self._versions(model)]
        with project.write() as writing:
            number = max(used, default=0) + 1
            while writing.run_by_sys_id(f"{model.sys_id}-{number}", MODEL_VERSIONS) is not None:
                number += 1
            sys_id = f"{model.sys_id}-{number}"
            run = writing.create_run(NewRun(sys_id, MODEL_VERSIONS, sys_id=sys_id, generation="2"))
            self._begin(writing, run)
            operations = writing.operations(run)
            operations.assign("sys/model_id", AttributeType.STRING, model.sys_id)
            operations.assign("sys/stage", AttributeType.STRING, "none")
            uuid = run.uuid
        return self._containers.find(uuid)

    def _begin(self, writing: Writing, run: Run, git: Any = None) -> None:
        operations = writing.operations(run)
        operations.assign("sys/owner", AttributeType.STRING, self._service.settings.user)
        operations.assign("sys/size", AttributeType.FLOAT, encode(AttributeType.FLOAT, 0.0))
        if isinstance(git, dict):
            for path, kind, value in git_attributes(git):
                operations.assign(path, kind, encode(kind, value))

    def _versions(self, container: Container) -> list[Container]:
        """The versions of a model; of anything else nothing."""
        if container.scope != MODELS:
            return []
        prefix = f"{container.sys_id}-"
        return [
            self._containers.container(run)
            for run in self._service.catalog.runs(container.project_id, MODEL_VERSIONS)
            if run.sys_id.startswith(prefix) and run.sys_id[len(prefix) :].isdigit()
        ]

    def _of_project(self, project_id: str, identifier: str) -> Container:
        try:
            found = self._containers.find(identifier)
        except NotFoundError:
            # Some clients leave the project out of the name.
            found = self._containers.find(f"{project_id}/{identifier}")
        if found.project_id != project_id or found.scope == PROJECT:
            raise NotFoundError(f"There is no {identifier!r} in {project_id}.")
        return found

    def _in_lake(self, container: Container) -> bool:
        lake = self._service.lake
        if lake is None or container.run is None:
            return False
        try:
            from neptune_assets.schema import Scope

            return container.run.run_id in lake.project(container.project_id, Scope(container.scope)).records()
        except UnknownProjectError:
            return False


def _next_sys_id(project: ProjectStore, writing: Writing) -> str:
    """The next number that no run has as its id: clients may have chosen one that looks like it."""
    while True:
        sys_id = f"{project.key}-{writing.next_number()}"
        if writing.run(sys_id) is None and writing.run_by_sys_id(sys_id) is None:
            return sys_id
