"""A running Neptune 2.x server as a source of runs, models and model versions."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from neptune_assets.schema import Scope
from neptune_assets.settings import Filters
from neptune_assets.sources.filters import Selection
from neptune_assets.sources.live import allow_transport, read_token
from neptune_assets.sources.neptune2.connection import CallError, Calls, open_connection
from neptune_assets.sources.neptune2.files import ArtifactStore, Files
from neptune_assets.sources.neptune2.listing import (
    Listed,
    Listing,
    Project,
    Table,
    list_projects,
    listing_query,
    open_project,
    unknown_project,
)
from neptune_assets.sources.neptune2.reading import RunReader
from neptune_assets.sources.neptune2.settings import Neptune2Source
from neptune_assets.sources.neptune2.values import parse_reference
from neptune_assets.sources.protocol import Issue, RunEnd, RunInfo, RunRows, SourceFile

READING_VERSION: Final = 1
"""Part of every fingerprint: raised when reading gives something else, so that runs are read again."""


@dataclass(frozen=True)
class _Session:
    """What is opened once and used for everything. The client is imported only when it is."""

    calls: Calls
    artifacts: ArtifactStore


class Neptune2:
    """A Neptune 2.x server. Implements :class:`neptune_assets.sources.protocol.Source`; never writes."""

    kind = "neptune2"

    def __init__(self, settings: Neptune2Source, filters: Filters) -> None:
        """Send nothing; the first method that asks the server opens the session."""
        self._settings = settings
        self._filters = filters
        self._selection = Selection(filters)
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._projects: dict[str, Project] = {}
        self._listings: dict[tuple[str, Scope], Listing] = {}

    @property
    def requests(self) -> int:
        """Requests sent so far, without those that opened the session."""
        return 0 if self._session is None else self._session.calls.count

    def projects(self) -> list[str]:
        """Names of all projects after filters, sorted. Raises SourceError if the server cannot be asked."""
        calls = self._open().calls
        names = self._settings.projects
        if names is None:
            names = list_projects(calls, self._settings.workspace)
        return sorted(name for name in set(names) if self._selection.project(name))

    def runs(self, project_id: str, scope: Scope = Scope.RUNS) -> list[RunInfo]:
        """Runs, models or model versions of one project after filters, sorted by id.

        Raises UnknownProjectError if there is no such project, or the token's user may not see it.
        """
        self._projects.pop(project_id, None)
        project = self._project(project_id)
        if scope is not Scope.RUNS and not self._selection.model_registry:
            return []
        infos = [self._info(listed) for listed in self._list(project, scope).runs.values()]
        return [info for info in infos if self._selection.run(info)]

    def read(self, project_id: str, run_ids: Sequence[str], scope: Scope = Scope.RUNS) -> Iterator[RunRows | RunEnd]:
        """Read runs in the order given; see :meth:`neptune_assets.sources.protocol.Source.read`."""
        session = self._open()
        project = self._project(project_id)
        listing = self._listings.get((project_id, scope))
        if listing is None or any(run_id not in listing.runs for run_id in run_ids):
            listing = self._list(project, scope)
        reader = RunReader(session.calls, self._settings, self._selection, session.artifacts, project, scope)
        known: list[Listed] = []
        for run_id in run_ids:
            listed = listing.runs.get(run_id)
            if listed is not None:
                known.append(listed)
                continue
            yield from reader.read(known)
            known = []
            message = f"The server no longer has {run_id!r} in {project_id!r}, or filters exclude it."
            yield RunEnd(run_id, errors=(Issue(message),))
        yield from reader.read(known)

    def files(self, project_id: str, run_id: str, reference: str, scope: Scope = Scope.RUNS) -> Sequence[SourceFile]:
        """Resolve what ``file_value.path`` of a row holds: one file, or the members of a file set.

        Raises FileGoneError if the server does not give it.
        """
        parsed = parse_reference(reference)
        session = self._open()
        files = Files(
            session.calls,
            session.artifacts,
            unpack=self._settings.file_sets == "unpack",
            patience=max(60.0, self._settings.retry_seconds),
        )
        return files.resolve(parsed)

    def problems(self, project_id: str | None = None) -> Sequence[Issue]:
        """What is wrong with a project as a whole: lists that are shorter than the server counts, or name no run."""
        problems = []
        for (name, scope), listing in sorted(self._listings.items()):
            if name != project_id:
                continue
            if listing.counted is not None:
                problems.append(
                    f"The server counts {listing.counted:,} {scope.value} in {name!r} but lists only "
                    f"{len(listing.runs):,}. Materialize again when nobody deletes any."
                )
            problems.extend(
                f"Among the {scope.value} of {name!r} the server lists {odd}. Look at the project on the server."
                for odd in sorted(listing.odd)
            )
        return [Issue(problem) for problem in problems]

    def _open(self) -> _Session:
        token = read_token(self._settings)
        with self._lock:
            if self._session is None:
                allow_transport(token, allow_http=self._settings.allow_http)
                calls = Calls(open_connection(token, self._settings), self._settings)
                artifacts = ArtifactStore(self._settings.artifact_roots, self._settings.artifact_storage)
                self._session = _Session(calls, artifacts)
            return self._session

    def _project(self, name: str) -> Project:
        if name not in self._projects:
            self._projects[name] = open_project(self._open().calls, name)
        return self._projects[name]

    def _list(self, project: Project, scope: Scope) -> Listing:
        query = listing_query(self._filters.runs, scope, self._settings.query)
        calls = self._open().calls
        try:
            listing = Table(calls, project.key, scope, self._settings.runs_per_page).read(query)
        except CallError as error:
            if error.status != 404:
                raise
            raise unknown_project(calls, project.name) from error
        self._listings[project.name, scope] = listing
        return listing

    def _info(self, listed: Listed) -> RunInfo:
        return RunInfo(
            listed.run_id,
            self._fingerprint(listed),
            created_at=listed.created_at,
            modified_at=listed.modified_at,
            trashed=listed.trashed,
            size_hint=listed.size,
        )

    def _fingerprint(self, listed: Listed) -> str:
        """Hash over everything that changes what reading the run gives."""
        settings = self._settings
        parts = [
            READING_VERSION,
            listed.key,
            listed.mark,
            settings.file_sets,
            sorted(settings.artifact_roots),
            self._filters.attributes.model_dump(mode="json"),
        ]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
