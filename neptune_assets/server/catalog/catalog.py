"""The catalog: brought up to date with the lake's manifests and the store's revisions whenever somebody asks.

A run of the store hides the run of the lake with the same id. Only runs that changed are read again, with those that
were forked from them.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from neptune_assets.errors import UnknownProjectError
from neptune_assets.schema import PARAMETER_TYPES, SERIES_TYPES, AttributeType, Scope
from neptune_assets.server.catalog.tables import (
    LAST,
    VARIANCE,
    Claims,
    Database,
    Fork,
    ProjectRuns,
    Run,
    begin_incoming,
    drop_runs,
    everything,
    inherit,
    made_up_sys_id,
    put_runs,
    set_heads,
    take_incoming,
)
from neptune_assets.server.nql import COLUMNS
from neptune_assets.server.store.database import ATTRIBUTE, RESTORE, intact
from neptune_assets.server.store.runs import SELECT_RUN, decode, run_of, system_attributes
from neptune_assets.server.store.runs import Run as StoredRun
from neptune_assets.settings import SummarySettings
from neptune_assets.summary.tables import Summary, summarize

if TYPE_CHECKING:
    import duckdb

    from neptune_assets.lake.reader import Lake, LakeProject
    from neptune_assets.server.store.projects import ProjectStore, Store

_MICRO: Final = "(CAST({0} AS DECIMAL(38, 6)) * 1000000)::BIGINT"
_RUNS: Final = f"""
    SELECT run_id, sys_id, name, epoch_ms(created_at) AS created, coalesce(trashed, false) AS trashed,
        coalesce(archived, false) AS archived, parent, {_MICRO.format("fork_step")} AS fork_step
    FROM run_facts
"""  # noqa: S608
_PARAMS: Final = """
    SELECT run_id, attribute_path AS path, attribute_type AS type, float_value AS number, int_value AS whole,
        string_value AS text, bool_value AS flag, milliseconds AS moment, string_set_value AS members,
        0 AS pending
    FROM params_facts
"""
# A plain file is described by the manifest alone; so is the last file of a series.
_SERIES: Final = f"""
    WITH stored AS (
        SELECT run_id, attribute_path, attribute_type,
            to_json({{
                'path': arg_max(path, coalesce(step, 0)), 'size': arg_max(size, coalesce(step, 0))
            }})::VARCHAR AS detail
        FROM manifest_files
        WHERE attribute_type IN ('file', 'file_series')
        GROUP BY ALL
        UNION ALL
        SELECT run_id, attribute_path, attribute_type,
            to_json({{'size': sum(size)::BIGINT, 'files': count(*)}})::VARCHAR
        FROM manifest_files
        WHERE attribute_type NOT IN ('file', 'file_series')
        GROUP BY ALL
    )
    SELECT run_id, attribute_path AS path, attribute_type AS type, last_value AS number, min_value AS least,
        max_value AS greatest, least(max_value, greatest(min_value, mean_value)) AS mean, variance_value AS variance,
        row_count AS points,
        {_MICRO.format("first_step")} AS first_step, {_MICRO.format("last_step")} AS last_step, stored.detail,
        CASE
            WHEN attribute_type = 'float_series'
                THEN CASE WHEN variance_value IS NULL AND min_value IS NOT NULL THEN {VARIANCE} ELSE 0 END
            WHEN attribute_type IN ('string_series', 'histogram_series') THEN {LAST}
            WHEN attribute_type = 'file_series' AND stored.detail IS NULL THEN {LAST}
            ELSE 0
        END AS pending
    FROM series_facts LEFT JOIN stored USING (run_id, attribute_path, attribute_type)
"""  # noqa: S608
_OWN: Final = {
    "sys/id": ("text", pa.string()),
    "sys/custom_run_id": ("text", pa.string()),
    "sys/trashed": ("flag", pa.bool_()),
    "sys/archived": ("flag", pa.bool_()),
}
"""Attributes that every run has, whether or not the lake holds them, with the column of their value."""


def runs_of(
    project: LakeProject, summary: Summary, numbers: Mapping[str, int], taken: Collection[str]
) -> Iterator[Run]:
    """Yield the runs that a summary covers, with these catalog numbers.

    One without a sys/id, or with one of those ``taken`` by other runs, gets one that is made up.
    """
    records = project.records()
    used = set(taken)
    for row in summary.stream(_RUNS).read_all().to_pylist():
        run_id, sys_id = row["run_id"], row["sys_id"]
        if not sys_id or sys_id in used:
            sys_id = made_up_sys_id(run_id, used)
        used.add(sys_id)
        yield Run(
            number=numbers[run_id],
            project=project.project_id,
            scope=project.scope.value,
            run_id=run_id,
            sys_id=sys_id,
            origin="lake",
            experiment=row["name"] or None,
            created=row["created"],
            trashed=row["trashed"],
            archived=row["archived"],
            parent=None if row["parent"] is None else (project.project_id, row["parent"]),
            fork_step=row["fork_step"],
            version=records[run_id].digest,
        )


def import_lake_attributes(con: duckdb.DuckDBPyConnection, summary: Summary, runs: Collection[Run]) -> None:
    """Add the attributes of these runs, which a summary covers, to ``incoming``."""
    numbered = pa.table(
        {
            "run_id": pa.array([run.run_id for run in runs], pa.string()),
            "run": pa.array([run.number for run in runs], pa.int32()),
        }
    )
    con.register("numbered", numbered)
    for sql in (_PARAMS, _SERIES):
        con.register("facts", summary.stream(sql))
        con.execute(
            "INSERT INTO incoming BY NAME SELECT run, facts.* EXCLUDE (run_id) FROM facts JOIN numbered USING (run_id)"
        )
        con.unregister("facts")
    con.unregister("numbered")
    for path, (column, kind) in _OWN.items():
        own = pa.table(
            {
                "run": pa.array([run.number for run in runs], pa.int32()),
                "path": pa.repeat(pa.scalar(path), len(runs)),
                "type": pa.repeat(pa.scalar("bool" if column == "flag" else "string"), len(runs)),
                column: pa.array([_own(run, path) for run in runs], kind),
                "pending": pa.repeat(pa.scalar(0, pa.uint8()), len(runs)),
            }
        )
        con.register("own", own)
        con.execute("DELETE FROM incoming USING own WHERE incoming.run = own.run AND incoming.path = own.path")
        con.execute("INSERT INTO incoming BY NAME SELECT * FROM own")
        con.unregister("own")


def _own(run: Run, path: str) -> str | bool:
    if path == "sys/id":
        return run.sys_id
    if path == "sys/custom_run_id":
        return run.run_id
    return run.trashed if path == "sys/trashed" else run.archived


_SCHEMA: Final = pa.schema(
    [
        ("run", pa.int32()),
        ("path", pa.string()),
        ("type", pa.string()),
        ("number", pa.float64()),
        ("whole", pa.int64()),
        ("text", pa.string()),
        ("flag", pa.bool_()),
        ("moment", pa.int64()),
        ("members", pa.list_(pa.string())),
        ("first_step", pa.int64()),
        ("last_step", pa.int64()),
        ("detail", pa.string()),
        ("pending", pa.uint8()),
    ]
)
_COLUMN: Final = {kind: COLUMNS[kind] for kind in PARAMETER_TYPES}
_KINDS: Final = {kind.value: kind for kind in AttributeType}
# Where a series begins is a look at one end of an index.
_ATTRIBUTES: Final = f"""
    SELECT path, type, value, last_step, revision,
        CASE
            WHEN type = 'float_series' THEN coalesce(
                (SELECT min(step) FROM points WHERE attribute = attributes.id),
                (SELECT min(step) FROM previews WHERE attribute = attributes.id)
            )
            WHEN value IS NULL THEN (SELECT min(step) FROM objects WHERE attribute = attributes.id)
        END AS first_step
    , {intact("attributes", *ATTRIBUTE)} AS intact FROM attributes WHERE run = ?
"""  # noqa: S608 - our own names
_BATCH: Final = 20_000
_log = logging.getLogger(__name__)


def changed_runs(connection: sqlite3.Connection, since: int) -> Iterator[StoredRun]:
    """Yield the runs that a commit after ``since`` touched."""
    for row in connection.execute(f"{SELECT_RUN} WHERE revision > ? ORDER BY id", (since,)):
        run = run_of(row)
        if run is not None and run.intact:
            yield run
        elif run is not None:
            _log.error("The row of run %r is damaged in the store; it is not shown. %s", run.run_id, RESTORE)


def catalog_run(project: str, number: int, stored: StoredRun) -> Run:
    """Return a run of the store as the catalog knows it."""
    parent = None
    if stored.parent_run_id is not None:
        parent = (stored.parent_project or project, stored.parent_run_id)
    return Run(
        number=number,
        project=project,
        scope=stored.scope,
        run_id=stored.run_id,
        sys_id=stored.sys_id,
        origin="store",
        store_id=stored.id,
        uuid=stored.uuid,
        experiment=stored.experiment,
        created=stored.created_at,
        trashed=bool(stored.trashed),
        archived=bool(stored.archived),
        parent=parent,
        fork_step=stored.fork_step,
        version=stored.revision,
    )


def import_store_attributes(
    con: duckdb.DuckDBPyConnection,
    connection: sqlite3.Connection,
    runs: Iterable[tuple[Run, Mapping[str, tuple[AttributeType, Any]]]],
    since: int,
) -> None:
    """Add the attributes of these runs that changed after ``since`` to ``incoming``, and drop what they lost.

    Every run comes with the attributes that the server makes of its row, for what the client did not write itself.
    """
    con.execute("CREATE OR REPLACE TEMP TABLE present (run INTEGER, path VARCHAR)")
    numbers: list[int] = []
    rows: list[dict[str, Any]] = []
    present: list[tuple[int, str]] = []
    for run, system in runs:
        numbers.append(run.number)
        written = set()
        for item in connection.execute(_ATTRIBUTES, (run.store_id,)):
            if not item["intact"]:
                _log.error(
                    "Attribute %r of run %r is damaged in the store; it is not shown. %s",
                    *(item["path"], run.run_id, RESTORE),
                )
                continue
            written.add(item["path"])
            if item["revision"] > since:
                rows.append(_stored_row(run.number, item))
        made = system.keys() - written
        rows.extend(_row(run.number, path, *system[path]) for path in made)
        present.extend((run.number, path) for path in written | made)
        if len(present) >= _BATCH:
            _insert(con, rows, present)
    _insert(con, rows, present)
    con.execute(
        "DELETE FROM attributes WHERE NOT inherited AND run IN (SELECT unnest(?::INTEGER[])) AND NOT EXISTS "
        "(FROM present JOIN names USING (path) WHERE present.run = attributes.run AND names.name = attributes.name)",
        [numbers],
    )
    con.execute("DROP TABLE present")


def gone_runs(connection: sqlite3.Connection, known: Collection[Run]) -> list[Run]:
    """Return those of the runs that the store no longer holds."""
    ids = {row[0] for row in connection.execute("SELECT id FROM runs")}
    return [run for run in known if run.store_id not in ids]


def _row(number: int, path: str, kind: AttributeType, value: Any) -> dict[str, Any]:
    if kind is AttributeType.STRING_SET and value is not None:
        value = sorted(value)
    return {"run": number, "path": path, "type": kind.value, _COLUMN.get(kind, "detail"): value}


def _stored_row(number: int, item: sqlite3.Row) -> dict[str, Any]:
    kind = _KINDS[item["type"]]
    if kind not in SERIES_TYPES:
        # What has no column of its own stays JSON.
        return _row(number, item["path"], kind, decode(kind, item["value"]) if kind in _COLUMN else item["value"])
    return {
        "run": number,
        "path": item["path"],
        "type": kind.value,
        "pending": everything(kind),
        "first_step": item["first_step"],
        "last_step": item["last_step"],
    }


def _insert(con: duckdb.DuckDBPyConnection, rows: list[dict[str, Any]], present: list[tuple[int, str]]) -> None:
    """Hand over what was gathered, and empty the lists."""
    table = pa.table([pa.array([row.get(field.name) for row in rows], field.type) for field in _SCHEMA], _SCHEMA)
    con.register("stored", table)
    con.execute("INSERT INTO incoming BY NAME SELECT * REPLACE (coalesce(pending, 0) AS pending) FROM stored")
    con.unregister("stored")
    names = pa.table(
        {
            "run": pa.array([number for number, _ in present], pa.int32()),
            "path": pa.array([path for _, path in present], pa.string()),
        }
    )
    con.register("seen", names)
    con.execute("INSERT INTO present SELECT run, path FROM seen")
    con.unregister("seen")
    rows.clear()
    present.clear()


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
            stored = list(changed_runs(connection, state.revision))
            known = [run for runs in state.runs.values() for run in runs if run.origin == "store"]
            gone = gone_runs(connection, known)
            parents = {run.parent_project for run in stored if run.parent_project not in {None, project}}
            new: list[Run] = []
            hidden: list[Run] = list(gone)
            for item in stored:
                old = state.runs.get(item.scope, _NO_RUNS).by_id(item.run_id)
                if old is not None and (old.origin != "store" or old.store_id != item.id):
                    hidden.append(old)
                    old = None
                new.append(catalog_run(project, self._number() if old is None else old.number, item))
            with self._database.writing() as con:
                begin_incoming(con)
                drop_runs(con, [run.number for run in hidden])
                system = (system_attributes(item, store.uuid) for item in stored)
                import_store_attributes(con, connection, zip(new, system, strict=True), state.revision)
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
            new = list(runs_of(lake, summary, numbers, taken))
            with self._database.writing() as con:
                begin_incoming(con)
                drop_runs(con, [run.number for run in gone])
                import_lake_attributes(con, summary, new)
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
