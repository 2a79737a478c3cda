"""The source `server`: the projects of a store, run by run, each as it is at one moment.

The store's databases are opened read-only, so this works while the server runs and after it was killed. A run's
fingerprint is the revision of its last change: what nobody wrote to since the last time is not read again. Series are
each run's own points only; points that are not final (previews) are not taken.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from neptune_assets.errors import FileGoneError, NeptuneAssetsError, SourceError, UnknownProjectError
from neptune_assets.schema import Scope
from neptune_assets.server.store.database import RESTORE, DamagedError, open_reader
from neptune_assets.server.store.files import find_file, object_path
from neptune_assets.server.store.projects import existing_projects
from neptune_assets.server.store.runs import SELECT_RUN, Run, find_run, run_of
from neptune_assets.settings import Filters
from neptune_assets.sources.filters import Selection
from neptune_assets.sources.protocol import Issue, RunEnd, RunInfo, RunRows, SourceFile
from neptune_assets.sources.server.files import StoredFile, WrittenFile, file_name
from neptune_assets.sources.server.reading import FILE, RunReading, artifact_files_of, members_of
from neptune_assets.sources.server.settings import ServerSource
from neptune_assets.sources.times import moment_of


class Server:
    """Reads what clients logged to a server of ours."""

    kind = "server"

    def __init__(self, settings: ServerSource, filters: Filters) -> None:
        self._root = Path(settings.store)
        self._selection = Selection(filters)

    def projects(self) -> list[str]:
        """Projects of the store, after filters. Raises SourceError if there is no store."""
        if not (self._root / "projects").is_dir():
            raise SourceError(
                f"There is no store in {self._root}.",
                hint="Start the server once (`python -m neptune_assets.server serve`), or correct source.server.store.",
            )
        return sorted(name for name in existing_projects(self._root) if self._selection.project(name))

    def runs(self, project_id: str, scope: Scope = Scope.RUNS) -> list[RunInfo]:
        """Runs of a project, after filters, sorted by id. Raises UnknownProjectError naming the known projects."""
        if scope is not Scope.RUNS and not self._selection.model_registry:
            return []
        with self._reading(project_id) as connection:
            found = [run for run in _runs(connection) if run.intact and run.scope == scope.value]
        found.sort(key=lambda run: run.run_id)
        return [info for run in found if self._selection.run(info := _info(run))]

    def read(self, project_id: str, run_ids: Sequence[str], scope: Scope = Scope.RUNS) -> Iterator[RunRows | RunEnd]:
        """Read runs one after the other, each in a transaction of its own. Raises UnknownProjectError at once."""
        self._database(project_id)
        for run_id in run_ids:
            try:
                with self._reading(project_id) as connection:
                    run = find_run(connection, run_id, scope.value)
                    if run is None:
                        raise SourceError(
                            f"Run {run_id!r} is not in the store any more.", hint="List the runs again: it was deleted."
                        )
                    reading = RunReading(connection, project_id, run, self._selection.attribute)
                    for batch in reading.batches():
                        yield RunRows(run_id, batch)
                    yield reading.end()
            except (NeptuneAssetsError, sqlite3.Error, ValueError, TypeError, KeyError, OverflowError) as error:
                yield RunEnd(run_id, errors=[Issue(f"The store cannot be read: {error}")])

    def files(self, project_id: str, run_id: str, reference: str, scope: Scope = Scope.RUNS) -> Sequence[SourceFile]:
        """Files behind ``file_value.path`` of a run's row. Raises FileGoneError for what was never uploaded."""
        directory = self._database(project_id).parent
        with self._reading(project_id) as connection:
            kind, _, rest = reference.partition(":")
            if kind != FILE:
                run = find_run(connection, run_id, scope.value)
                members = None if run is None else members_of(connection, run, rest)
                listed = None if run is None else artifact_files_of(connection, run, rest)
                if listed is not None:
                    return [WrittenFile("files_list.json", listed.encode())]
                if members is None:
                    raise FileGoneError(
                        f"Run {run_id!r} has no file set {rest!r} any more, or no list of what it tracks.",
                        hint="Materialize the project again.",
                    )
                return [StoredFile(name, object_path(directory, digest)) for name, digest in members]
            try:
                found = find_file(connection, rest)
            except DamagedError as error:
                raise FileGoneError(error.message, hint=error.hint) from error
        if found is None:
            raise FileGoneError(
                f"The bytes of {rest!r} never arrived at the server.",
                hint="The script that logged it may still hold them: run `neptune sync` in its folder with the "
                "script's own environment. If pkg_resources is missing there, run `pip install 'setuptools<81'` first.",
            )
        return [StoredFile(file_name(rest, found[1] or ""), object_path(directory, found[0]))]

    def problems(self, project_id: str | None = None) -> Sequence[Issue]:
        """Projects that cannot be read, and runs whose rows are damaged."""
        unreadable: dict[Path, str] = {}
        known = existing_projects(self._root, unreadable)
        issues = [Issue(f"The project in {path} cannot be read: {error}") for path, error in unreadable.items()]
        if project_id in known:
            with self._reading(project_id) as connection:
                runs = _runs(connection)
                (count,) = connection.execute("SELECT runs FROM project").fetchone()
                issues.extend(
                    Issue(f"The row of run {run.run_id!r} is damaged in the store, so the run was not read. {RESTORE}")
                    for run in runs
                    if not run.intact
                )
                if count not in {None, len(runs)}:
                    issues.append(
                        Issue(f"The store has {len(runs):,} runs of {project_id} instead of {count:,}. {RESTORE}")
                    )
        return issues

    def _database(self, project_id: str) -> Path:
        known = {name: path for name, path in existing_projects(self._root).items() if self._selection.project(name)}
        if project_id not in known:
            raise UnknownProjectError(
                f"There is no project {project_id!r} in the store {self._root}.",
                hint=f"Known projects: {', '.join(sorted(known)[:20]) or 'none'}.",
            )
        return known[project_id]

    @contextmanager
    def _reading(self, project_id: str) -> Iterator[sqlite3.Connection]:
        """Lend a connection in which everything is as it was at one moment."""
        try:
            connection = open_reader(self._database(project_id))
        except sqlite3.OperationalError as error:
            raise SourceError(f"The store of {project_id!r} cannot be opened: {error}.", hint="Try again.") from error
        try:
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.close()


def _runs(connection: sqlite3.Connection) -> list[Run]:
    """Return all rows of runs in the order of their table: a damaged index hides none."""
    return [run for row in connection.execute(SELECT_RUN) if (run := run_of(row)) is not None]


def _info(run: Run) -> RunInfo:
    return RunInfo(
        run.run_id,
        fingerprint=f"{run.uuid}:{run.revision}",
        created_at=moment_of(run.created_at),
        modified_at=moment_of(run.modified_at),
        archived=bool(run.archived),
        trashed=bool(run.trashed),
    )
