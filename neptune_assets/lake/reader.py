"""Read the lake: projects, runs, rows in order, files. Knows nothing of sources.

A run is read as its manifest record says: parts of exactly that commit, wherever an unfinished move has left them, or
an export's own parts with repairs made on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import fsspec

from neptune_assets.errors import LakeError, UnknownProjectError
from neptune_assets.lake.damage import DamagedRuns
from neptune_assets.lake.digest import digest_of_project
from neptune_assets.lake.integrity import CheckedParts
from neptune_assets.lake.layout import MANIFEST, Layout, staging_group
from neptune_assets.lake.manifest import ManifestStore, project_of_manifest
from neptune_assets.lake.records import RunRecord
from neptune_assets.lake.runs import LakeRun
from neptune_assets.lake.storage import Storage
from neptune_assets.lake.storage_errors import storage_errors
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings

__all__ = ["Lake", "LakeProject", "LakeRun"]


class Lake:
    """A lake, opened for reading."""

    def __init__(self, settings: LakeSettings) -> None:
        self.settings = settings
        self.storage = Storage(settings.root, settings.storage)
        self.layout = Layout(self.storage.root)
        self.checked_parts = CheckedParts(self.storage)

    def projects(self, scope: Scope = Scope.RUNS) -> list[str]:
        """Return the projects that the lake holds, sorted."""
        base = self.layout.base(scope)
        inner = "" if scope is Scope.RUNS else f"/{scope.value}"
        found = []
        with storage_errors(self.storage, "Reading the lake"):
            for name in self.storage.names(base):
                known = project_of_manifest(self.storage, f"{base}/{name}{inner}/{MANIFEST}")
                if known is not None:
                    found.append(known[0])
        return sorted(found)

    def project(self, project_id: str, scope: Scope = Scope.RUNS) -> LakeProject:
        """Open one project as it is now. Raises UnknownProjectError, or LakeError if its manifest is damaged."""
        return LakeProject(self, project_id, scope)


class LakeProject:
    """One project at one moment: a snapshot of its manifest."""

    def __init__(self, lake: Lake, project_id: str, scope: Scope) -> None:
        self.lake = lake
        self.project_id = project_id
        self.scope = scope
        self._store = ManifestStore(lake.storage, lake.layout, project_id, scope)
        with storage_errors(lake.storage, f"Reading {project_id!r} in the lake"):
            manifest = self._store.read()
        if manifest is None:
            raise UnknownProjectError(
                f"The lake at {lake.storage.url(lake.storage.root)} holds no {scope.value} of project {project_id!r}.",
                hint="Materialize the project's lake asset first.",
            )
        self._records = manifest.records
        self._in_staging: dict[str, set[str]] | None = None

    @property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        """The file system that the lake lies on."""
        return self.lake.storage.filesystem

    @property
    def digest(self) -> str:
        """Content digest over run ids, their digests and states."""
        return digest_of_project(self._records.values())

    def records(self) -> dict[str, RunRecord]:
        """Return what the manifest says, by run id, sorted."""
        return dict(self._records)

    def run(self, run_id: str) -> LakeRun:
        """Open one run. Raises LakeError if the project does not have it."""
        record = self._records.get(run_id)
        if record is None:
            raise LakeError(
                f"Project {self.project_id!r} has no run {run_id!r} in the lake.",
                hint="Materialize the project's lake asset, or check the run's id.",
            )
        return LakeRun(self, record)

    def runs(self) -> Iterator[LakeRun]:
        """Yield all runs in the order of their ids."""
        for record in self._records.values():
            yield LakeRun(self, record)

    def only(self, run_ids: Iterable[str]) -> LakeProject:
        """Return this snapshot with no other runs than these."""
        wanted = set(run_ids)
        project = copy.copy(self)
        project._records = {run_id: record for run_id, record in self._records.items() if run_id in wanted}
        return project

    def parts(self) -> dict[str, list[str]]:
        """Return, by run id, where its Parquet parts are now: absolute paths or URLs."""
        storage = self.lake.storage
        staged = self._staged()
        return {
            record.run_id: [
                part.name if record.in_place is not None else storage.url(self._place(record, part.name, staged))
                for part in record.parts
            ]
            for record in self._records.values()
        }

    def statistics(self) -> dict[str, str] | None:
        """Return where the writer's statistics of series and parameters lie, as the summary's tables; None if nowhere.

        See :mod:`neptune_assets.lake.statistics_tables`: they may lack runs, and say for which digest of
        a run they hold.
        """
        if self.scope is not Scope.RUNS:
            return None
        storage, directory = self.lake.storage, self.lake.layout.statistics(self.project_id)
        if not {"series.parquet", "params.parquet"} <= set(storage.names(directory)):
            return None
        return {f"{name}_facts": storage.url(f"{directory}/{name}.parquet") for name in ("series", "params")}

    def intact(self) -> set[str]:
        """Return the runs whose parts lie in the lake with the sizes they were written with, or are read in place."""
        sizes = self.lake.storage.sizes(self.lake.layout.project(self.project_id, self.scope))
        return {
            record.run_id
            for record in self._records.values()
            if record.in_place is not None or all(sizes.get(part.name) == part.bytes for part in record.parts)
        }

    def file_sizes(self) -> dict[str, int]:
        """Return what the project's files directory holds, by one listing: full paths with sizes."""
        return self.lake.storage.walk_sizes(self.lake.layout.files(self.project_id, self.scope))

    @property
    def damaged(self) -> DamagedRuns:
        """The notes of runs that were found damaged, which the next materialization reads anew."""
        return DamagedRuns(self.lake.storage, self.lake.layout, self.project_id, self.scope)

    def current_record(self, run_id: str) -> RunRecord | None:
        """Read the manifest again and return what it says of a run now."""
        manifest = self._store.read()
        return None if manifest is None else manifest.records.get(run_id)

    def _staged(self) -> dict[str, set[str]]:
        storage, layout = self.lake.storage, self.lake.layout
        root = layout.staging(self.project_id, self.scope)
        staged: dict[str, set[str]] = {}
        for path in storage.walk(root):
            group, _, name = path[len(root) + 1 :].partition("/")
            staged.setdefault(group, set()).add(name)
        return staged

    def _place(self, record: RunRecord, name: str, staged: dict[str, set[str]]) -> str:
        layout = self.lake.layout
        if name in staged.get(staging_group(record.generation), ()):
            return layout.staged_part(self.project_id, record.generation, name, self.scope)
        return layout.part(self.project_id, name, self.scope)
