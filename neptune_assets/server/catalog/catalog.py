"""The catalog: brought up to date with the lake's manifests and the store's revisions whenever somebody asks.

A run of the store hides the run of the lake with the same id. Only runs that changed are read again, with those that
were forked from them.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from neptune_assets.errors import UnknownProjectError
from neptune_assets.schema import Scope
from neptune_assets.server.catalog import lake_import, store_import
from neptune_assets.server.catalog.database import Database
from neptune_assets.server.catalog.filling import Claims
from neptune_assets.server.catalog.forks import Fork, inherit
from neptune_assets.server.catalog.rows import begin_incoming, drop_runs, put_runs, set_heads, take_incoming
from neptune_assets.server.catalog.runs import ProjectRuns, Run
from neptune_assets.server.store.system import system_attributes
from neptune_assets.settings import SummarySettings
from neptune_assets.summary.tables import summarize

if TYPE_CHECKING:
    import duckdb

    from neptune_assets.lake.reader import Lake, LakeProject
    from neptune_assets.server.store.projects import ProjectStore, Store

_LISTING_SECONDS: Final = 5.0
"""How long a listing of the lake's projects, or of a manifest that is not on a local disk, counts as new."""
_NO_RUNS: Final = ProjectRuns()


@dataclass(slots=True)
class _Project:
    """What the catalog has of one project."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    revision: int = 0
    manifests: dict[Scope, tuple[str, ...]] = field(default_factory=dict)
    looked: float = -_LISTING_SECONDS
    lake: dict[str, LakeProject] = field(default_factory=dict)
    runs: dict[str, ProjectRuns] = field(default_factory=dict)
    version: int = 0
    gathered: int = -1


class Catalog:
    """Runs and attributes of a lake and a store; either may be None. Any number of threads may use it."""

    def __init__(
        self,
        *,
        store: Store | None,
        lake: Lake | None,
        memory_mb: int = 512,
        threads: int = 2,
        scratch: Path | None = None,
    ) -> None:
        self.store = store
        self.lake = lake
        self.claims = Claims()
        self._memory_mb = memory_mb
        self._threads = threads
        self._database = Database(memory_mb=memory_mb, threads=threads, scratch=scratch)
        self._projects: dict[str, _Project] = {}
        self._numbers = 0
        self._guard = threading.Lock()
        self._lake_projects: tuple[float, list[str]] = (-_LISTING_SECONDS, [])

    @property
    def directory(self) -> Path:
        """A temporary directory that is removed with the catalog, also if the process is killed."""
        return self._database.directory

    def close(self) -> None:
        """Remove the scratch database."""
        self._database.close()

    def reading(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Lend a connection for reading, inside one transaction."""
        return self._database.reading()

    def writing(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Lend the connection for writing, inside one transaction."""
        return self._database.writing()

    def projects(self) -> list[str]:
        """Return the names of all projects; those that are new in the lake appear within seconds."""
        listed, names = self._lake_projects
        if self.lake is not None and time.monotonic() - listed >= _LISTING_SECONDS:
            names = sorted({name for scope in Scope for name in self.lake.projects(scope)})
            self._lake_projects = (time.monotonic(), names)
        return sorted({*names, *(self.store.projects() if self.store is not None else ())})

    def runs(self, project: str, scope: str = "runs") -> ProjectRuns:
        """Return the runs of a project as they were at its last refresh."""
        state = self._projects.get(project)
        return _NO_RUNS if state is None else state.runs.get(scope, _NO_RUNS)

    def lake_project(self, run: Run) -> LakeProject:
        """Return the lake's project that a run's points lie in, as it was when the run was looked at."""
        return self._projects[run.project].lake[run.scope]

    def store_of(self, run: Run) -> ProjectStore:
        """Return the project of the store that a run's points lie in."""
        assert self.store is not None  # noqa: S101 - the run came from it
        return self.store.project(run.project)

    def refresh(self, project: str) -> None:
        """Bring a project up to date. Raises UnknownProjectError if neither lake nor store has it."""
        state = self._projects.get(project)
        if state is None:
            if not self._exists(project):
                raise UnknownProjectError(f"There is no project {project!r}.", hint="Check its name.")
            with self._guard:
                state = self._projects.setdefault(project, _Project())
        with state.lock:
            store = self._store_of(project)
            if store is not None and store.revision != state.revision:
                self._refresh_store(project, state, store)
            if self.lake is not None:
                self._refresh_lake(project, state)

    def forget(self, project: str) -> None:
        """Drop all that is known of a project that was deleted."""
        with self._guard:
            state = self._projects.pop(project, None)
        if state is not None:
            with state.lock, self._database.writing() as con:
                drop_runs(con, [run.number for runs in state.runs.values() for run in runs])

    def refresh_all(self) -> list[str]:
        """Bring all projects up to date and return their names."""
        names = self.projects()
        for name in names:
            self.refresh(name)
        return names

    def parent(self, run: Run) -> Run | None:
        """Return the run that a run was forked from, if it is there; it may be of another project."""
        if run.parent is None:
            return None
        if run.parent[0] == run.project:
            return self.runs(run.project, run.scope).parent(run)
        return self.runs(run.parent[0], run.scope).by_id(run.parent[1])

    def version(self, project: str) -> int:
        """Return a number that grows whenever the project changes in the catalog."""
        state = self._projects.get(project)
        return 0 if state is None else state.version

    def gathered(self, project: str, version: int | None = None) -> bool:
        """Tell (with ``version``), or ask, whether the project's names were gathered since it changed last."""
        state = self._projects[project]
        if version is not None:
            state.gathered = version
        return state.gathered == state.version

    def _exists(self, project: str) -> bool:
        if self._store_of(project) is not None:
            return True
        return self.lake is not None and any(
            self.lake.storage.names(self.lake.layout.manifest(project, scope)) for scope in Scope
        )

    def _store_of(self, project: str) -> ProjectStore | None:
        if self.store is None:
            return None
        try:
            return self.store.project(project)
        except UnknownProjectError:
            return None

    def _number(self) -> int:
        with self._guard:
            self._numbers += 1
            return self._numbers

    def _refresh_store(self, project: str, state: _Project, store: ProjectStore) -> None:
        with store.read() as connection:
            revision = int(connection.execute("SELECT revision FROM project").fetchone()[0])
            stored = list(store_import.changed_runs(connection, state.revision))
            known = [run for runs in state.runs.values() for run in runs if run.origin == "store"]
            gone = store_import.gone_runs(connection, known)
            parents = {run.parent_project for run in stored if run.parent_project not in {None, project}}
            new: list[Run] = []
            hidden: list[Run] = list(gone)
            for item in stored:
                old = state.runs.get(item.scope, _NO_RUNS).by_id(item.run_id)
                if old is not None and (old.origin != "store" or old.store_id != item.id):
                    hidden.append(old)
                    old = None
                new.append(store_import.catalog_run(project, self._number() if old is None else old.number, item))
            with self._database.writing() as con:
                begin_incoming(con)
                drop_runs(con, [run.number for run in hidden])
                system = (system_attributes(item, store.uuid) for item in stored)
                store_import.import_attributes(con, connection, zip(new, system, strict=True), state.revision)
                self._take(con, project, state, new, hidden)
            state.revision = revision
        for parent in sorted(filter(None, parents)):
            if self._exists(parent) and parent not in self._projects:
                self.refresh(parent)

    def _refresh_lake(self, project: str, state: _Project) -> None:
        assert self.lake is not None  # noqa: S101
        storage = self.lake.storage
        if not storage.local and time.monotonic() - state.looked < _LISTING_SECONDS:
            return
        for scope in Scope:
            names = tuple(sorted(storage.names(self.lake.layout.manifest(project, scope))))
            if names == state.manifests.get(scope, ()):
                continue
            self._import_lake(project, state, self.lake.project(project, scope))
            state.manifests[scope] = names
        state.looked = time.monotonic()

    def _import_lake(self, project: str, state: _Project, lake: LakeProject) -> None:
        assert self.lake is not None  # noqa: S101
        scope = lake.scope.value
        runs, records = state.runs.get(scope, _NO_RUNS), lake.records()
        gone = [run for run in runs if run.origin == "lake" and run.run_id not in records]
        changed = []
        for run_id, record in records.items():
            old = runs.by_id(run_id)
            if old is None or (old.origin == "lake" and old.version != record.digest):
                changed.append(run_id)
        gone.extend(old for run_id in changed if (old := runs.by_id(run_id)) is not None)
        if not changed:
            with self._database.writing() as con:
                drop_runs(con, [run.number for run in gone])
                begin_incoming(con)
                self._take(con, project, state, [], gone)
            state.lake[scope] = lake
            return
        settings = SummarySettings(memory_mb=max(64, self._memory_mb // 2), threads=self._threads)
        numbers = {run_id: self._number() for run_id in changed}
        taken = {run.sys_id for run in runs} - {run.sys_id for run in gone}
        with summarize(lake.only(changed), settings, self.lake.settings) as summary:
            new = list(lake_import.runs_of(lake, summary, numbers, taken))
            with self._database.writing() as con:
                begin_incoming(con)
                drop_runs(con, [run.number for run in gone])
                lake_import.import_attributes(con, summary, new)
                state.lake[scope] = lake
                self._take(con, project, state, new, gone)

    def _take(
        self, con: duckdb.DuckDBPyConnection, project: str, state: _Project, new: list[Run], gone: list[Run]
    ) -> None:
        """Finish a change: rows into the catalog, what forks inherit, heads; then readers see the new runs."""
        take_incoming(con)
        put_runs(con, new)
        scopes = {run.scope for run in (*new, *gone)}
        changed = {scope: state.runs.get(scope, _NO_RUNS).copy() for scope in scopes}
        for run in gone:
            changed[run.scope].remove(run.run_id)
        for run in new:
            changed[run.scope].put(run)
        state.runs = {**state.runs, **changed}
        for scope, runs in changed.items():
            for level in self._forks(runs, {run.number for run in new}):
                inherit(con, level)
            set_heads(con, project, scope, [run.number for run in runs.heads().values()])
        state.version += 1

    def _forks(self, runs: ProjectRuns, changed: set[int]) -> Iterator[list[Fork]]:
        """Yield the forks that changed, or whose ancestors did, parents before children."""
        depths: dict[int, int] = {}
        touched = set(changed)
        levels: dict[int, list[Fork]] = defaultdict(list)
        for run in runs:
            line = list(lineage(run, self.parent))
            depths[run.number] = len(line)
        for run in sorted(runs, key=lambda item: depths[item.number]):
            parent = self.parent(run)
            if parent is None or run.fork_step is None or depths[run.number] < 2:
                continue
            if run.number in touched or parent.number in touched:
                levels[depths[run.number]].append(
                    Fork(run.number, parent.number, run.fork_step, parent.number in touched)
                )
                touched.add(run.number)
        for depth in sorted(levels):
            yield levels[depth]


def lineage(run: Run, parent_of: Callable[[Run], Run | None]) -> Iterator[Run]:
    """Yield a run, its parent, its parent's parent ... A line that runs in a circle ends where it would close."""
    seen: set[int] = set()
    current: Run | None = run
    while current is not None and current.number not in seen:
        seen.add(current.number)
        yield current
        current = parent_of(current)
