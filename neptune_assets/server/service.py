"""The one object that all handlers are given: settings, store, lake, catalog, tokens, and the signer of URLs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from neptune_assets.errors import SettingsError, UnknownProjectError
from neptune_assets.lake.reader import Lake
from neptune_assets.server.catalog.catalog import Catalog
from neptune_assets.server.run_import import import_run, last_number_of
from neptune_assets.server.series import SeriesReader
from neptune_assets.server.settings import ServerSettings
from neptune_assets.server.store.projects import ProjectStore, Store
from neptune_assets.server.store.runs import Run
from neptune_assets.server.store.writing import Writing
from neptune_assets.server.tokens import Attempts, Signer, Tokens, load_secrets

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeProject


class Service:
    """Opened once by a server process. ``lake`` is None if none is served."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.store = Store(settings.store)
        secrets = load_secrets(settings.store, settings.api_key_env)
        self.tokens = Tokens(secrets, settings.user, settings.token_seconds)
        self.attempts = Attempts()
        self.signer = Signer(secrets.url_key, settings.url_seconds)
        self.lake = None if settings.lake is None else Lake(settings.lake)
        self.catalog = Catalog(
            store=self.store,
            lake=self.lake,
            memory_mb=settings.memory_mb,
            scratch=settings.scratch,
        )
        self.series = SeriesReader(self.catalog)
        self._guard = threading.Lock()

    def close(self) -> None:
        """Finish writes and close everything."""
        self.store.close()
        self.catalog.close()

    def projects(self) -> list[str]:
        """Names of all projects, of the store and of the lake, sorted."""
        return sorted({*self.store.projects(), *(self.lake.projects() if self.lake is not None else ())})

    def lake_project(self, project_id: str) -> LakeProject | None:
        """The project in the lake as it is now; None if it is not there."""
        if self.lake is None:
            return None
        try:
            return self.lake.project(project_id)
        except UnknownProjectError:
            return None

    def project_to_write(self, project_id: str, *, create: bool | None = None) -> ProjectStore:
        """The project in the store; made if the lake has it or projects may be made (``create`` overrules settings).

        Raises UnknownProjectError if there is none, SettingsError for a name that none can have.
        """
        try:
            return self.store.project(project_id)
        except UnknownProjectError:
            lake = self.lake_project(project_id)
            if lake is None and not (self.settings.create_projects if create is None else create):
                raise
        with self._guard:
            key, number = None, 0
            if lake is not None:
                self.catalog.refresh(project_id)
                key, number = last_number_of(run.sys_id for run in self.catalog.runs(project_id))
            return self.store.project(project_id, create=True, key=key, last_number=number)

    def may_be_made(self, project_id: str) -> bool:
        """True if there is no such project, and a client that writes to it makes one."""
        return self.settings.create_projects and is_project_name(project_id) and project_id not in self.projects()

    def run_to_write(self, project: ProjectStore, writing: Writing, run_id: str) -> Run | None:
        """The run in the store, adopted from the lake if only that has it; None if neither has."""
        run = writing.run(run_id)
        if run is not None:
            return run
        lake = self.lake_project(project.project_id)
        if lake is None or run_id not in lake.records():
            return None
        return import_run(writing, project, lake.run(run_id))


def is_project_name(project_id: str) -> bool:
    """True if a project can have this name."""
    from neptune_assets.partitions import validate_project_key

    try:
        validate_project_key(project_id)
    except SettingsError:
        return False
    return True
