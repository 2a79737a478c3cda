"""Write a project into the lake: read only what changed, commit whole runs, never mix old and new.

Belongs here: in what order things are done. Which runs are read is decided in :mod:`neptune_assets.lake.selection`,
what becomes of one that was read in :mod:`neptune_assets.lake.run_ends`, what it is made of in
:mod:`neptune_assets.lake.commits`, and how it becomes visible in :mod:`neptune_assets.lake.staging`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from neptune_assets.errors import NeptuneAssetsError, SourceError
from neptune_assets.lake.commits import RunBuilder, now
from neptune_assets.lake.damage import DamagedRuns, Holdings
from neptune_assets.lake.digest import digest_of_project
from neptune_assets.lake.files import FileStore
from neptune_assets.lake.layout import Layout
from neptune_assets.lake.lock import LEASE_SECONDS, project_lock
from neptune_assets.lake.manifest import Manifest, ManifestStore
from neptune_assets.lake.publication import Publication
from neptune_assets.lake.readings import Chunks, Reading
from neptune_assets.lake.records import RunRecord
from neptune_assets.lake.reports import Progress, RunIssue, WriteReport
from neptune_assets.lake.run_ends import RunEnds
from neptune_assets.lake.selection import Selection, asked_in_place
from neptune_assets.lake.staging import Staging
from neptune_assets.lake.statistics_files import StatisticsFiles
from neptune_assets.lake.storage import Storage
from neptune_assets.lake.storage_errors import storage_errors
from neptune_assets.lake.tracker import Tracker
from neptune_assets.schema import Scope
from neptune_assets.scratch import sweep
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import InPlaceRun, Issue, RunInfo, RunRows, Source

__all__ = ["LakeWriter", "Progress", "RunIssue", "WriteReport"]

_GIVE_UP_AFTER: Final = 3
"""Runs in a row whose reading breaks off before the source counts as broken altogether."""

ProgressCall = Callable[[Progress], None]


class LakeWriter:
    """Writes projects of one source into one lake.

    ``lease_seconds`` is how long the lock on a project in an object store outlives its holder.
    """

    def __init__(
        self,
        settings: LakeSettings,
        source: Source,
        scope: Scope = Scope.RUNS,
        *,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._settings = settings
        self._source = source
        self._scope = scope
        self._lease_seconds = lease_seconds

    def write_project(
        self, project_id: str, *, full_refresh: bool = False, progress: ProgressCall | None = None
    ) -> WriteReport:
        """Bring one project up to date; ``full_refresh`` reads and writes all runs anew.

        A run that cannot be read stays as it is and is reported. Raises LakeBusyError if another writer works on the
        project, LakeError if the lake cannot be written (finished runs stay), SourceError if the source is broken.
        """
        started = time.monotonic()
        infos = {info.run_id: info for info in self._source.runs(project_id, self._scope)}
        storage = Storage(self._settings.root, self._settings.storage)
        with storage_errors(storage, f"Writing {project_id!r} into the lake"):
            layout = Layout(storage.root)
            place = layout.manifest(project_id, self._scope)
            unsafe = self._settings.allow_unsafe_locks
            with project_lock(
                storage, place, project_id, lease_seconds=self._lease_seconds, allow_unsafe=unsafe
            ) as lock:
                guarded = storage.guarded(lock.check)
                work = _ProjectWrite(self._settings, self._source, self._scope, project_id, guarded, layout)
                report = work.run(infos, full_refresh, progress, fence=lock.taken_over)
        report.seconds = time.monotonic() - started
        return report


class _ProjectWrite:
    """One materialization of one project, while the lock is held."""

    def __init__(
        self,
        settings: LakeSettings,
        source: Source,
        scope: Scope,
        project_id: str,
        storage: Storage,
        layout: Layout,
    ) -> None:
        self._settings = settings
        self._source = source
        self._scope = scope
        self._project_id = project_id
        self._storage = storage
        self._store = ManifestStore(storage, layout, project_id, scope)
        self._staging = Staging(storage, layout, project_id, scope)
        self._files = FileStore(storage, layout, source, project_id, scope, settings.scratch, self._staging.file_placed)
        self._statistics = StatisticsFiles(storage, layout, project_id, settings.scratch)
        self._report = WriteReport(project_id)
        self._damaged = DamagedRuns(storage, layout, project_id, scope)
        self._layout = layout
        self._manifest = Manifest(project_id)
        self._full_refresh = False
        self._started = time.monotonic()

    def run(
        self, infos: dict[str, RunInfo], full_refresh: bool, progress: ProgressCall | None, *, fence: bool
    ) -> WriteReport:
        """Do all of it and return the report.

        ``fence`` if the holder of the lock before may still be at work; what is found in staging says the same.
        """
        self._full_refresh = full_refresh
        fence = fence or self._staging.left_behind()
        existing = self._store.fence(written_at=now()) if fence else self._store.read()
        self._manifest = existing or self._manifest
        sweep(self._settings.scratch)
        self._report.recovered = self._staging.recover(self._manifest)
        present, strays = self._staging.present(self._manifest)
        damaged = self._damaged.read()
        before = {run_id: self._generation(run_id) for run_id in damaged}
        holdings = Holdings(present, self._stored_files(), self._layout.files(self._project_id, self._scope), damaged)
        self._publication = Publication(
            self._settings,
            self._manifest,
            self._store,
            self._staging,
            self._statistics if self._scope is Scope.RUNS else None,
            self._report,
            present,
            holdings.holds,
            full_refresh=full_refresh,
        )
        selection = Selection(
            self._source, self._scope, self._manifest, self._report, holdings.holds, full_refresh=full_refresh
        )
        todo = selection.choose(infos)
        self._mark(selection.vanished(infos))
        if existing is None and not self._manifest.sequence:
            # A project without runs exists too: its manifest says so.
            self._store.commit(self._manifest, [], written_at=now())
        tracker = Tracker(self._report, self._files, infos, todo, progress, self._started)
        try:
            self._write_runs(self._ends(infos, todo, tracker))
            tracker.finished()
            self._statistics.save(self._manifest.records)
        finally:
            self._statistics.close()
            self._files.close()
            self._staging.close()
        if self._manifest.deltas > 1:
            self._store.compact(self._manifest, written_at=now())
        if damaged:
            # A record with another generation has parts and files that were written since.
            self._damaged.remove([run_id for run_id in damaged if before.get(run_id) != self._generation(run_id)])
        return self._finished(strays)

    def _generation(self, run_id: str) -> str | None:
        record = self._manifest.records.get(run_id)
        return None if record is None else record.generation

    def _stored_files(self) -> dict[str, int]:
        """List the project's files, if a run has any."""
        if not any(record.files and record.in_place is None for record in self._manifest.records.values()):
            return {}
        return self._storage.walk_sizes(self._layout.files(self._project_id, self._scope))

    def _ends(self, infos: dict[str, RunInfo], todo: list[str], tracker: Tracker) -> RunEnds:
        def builder(info: RunInfo) -> RunBuilder:
            return RunBuilder(
                self._project_id,
                info,
                self._storage,
                self._staging,
                self._files,
                self._manifest.records.get(info.run_id),
                settings=self._settings,
                source_kind=self._source.kind,
            )

        def in_place(run_id: str) -> InPlaceRun | None:
            return asked_in_place(self._source, self._project_id, run_id, self._scope)

        return RunEnds(infos, todo, builder, in_place, self._publication, self._report, tracker)

    def _mark(self, records: list[RunRecord]) -> None:
        if records:
            self._store.commit(self._manifest, records, written_at=now())

    def _write_runs(self, ends: RunEnds) -> None:
        failures = 0
        while ends.remaining:
            asked, copied = len(ends.remaining), set(ends.copied_instead)
            try:
                failure = self._read_once(ends)
            finally:
                # Whatever ended the reading, runs that are finished stay.
                ends.end_small()
                self._publication.flush()
            if failure is None:
                # What is left was not returned, or has to be read once more to be copied.
                for run_id in sorted(ends.remaining.keys() - (ends.copied_instead - copied)):
                    ends.fail(run_id, "The source returned nothing for this run.")
                continue
            failures = failures + 1 if len(ends.remaining) == asked - 1 else 1
            if failures >= _GIVE_UP_AFTER:
                raise self._broke_off(failure)

    def _broke_off(self, failure: Exception) -> NeptuneAssetsError:
        if isinstance(failure, NeptuneAssetsError):
            return failure
        error = SourceError(
            f"Reading {self._project_id!r} from the {self._source.kind} source broke off: {failure}.",
            hint="Check that the source can be read, then materialize again; finished runs are kept.",
        )
        error.__cause__ = failure
        return error

    def _read_once(self, ends: RunEnds) -> Exception | None:
        """Read runs until the source ends (None) or breaks off (the error); those that were read do not remain."""
        chunks = Chunks(self._source.read(self._project_id, list(ends.remaining), self._scope))
        current: Reading | None = None
        try:
            for chunk in chunks:
                self._publication.tick()
                ends.tick()
                if chunk.run_id not in ends.remaining:
                    continue
                if current is not None and current.run_id != chunk.run_id:
                    ends.end(current, None)
                    current = None
                if current is None:
                    current = Reading(chunk.run_id, self._settings)
                if isinstance(chunk, RunRows):
                    current.add(chunk.batch)
                    ends.tracker.tick(current.rows)
                else:
                    ends.end(current, chunk)
                    current = None
            if chunks.error is None:
                if current is not None:
                    ends.end(current, None)
                return None
            ends.end_small()
            if current is None and not ends.remaining:
                raise self._broke_off(chunks.error)
            broken = current.run_id if current is not None else next(iter(ends.remaining))
            ends.fail(broken, f"Reading broke off: {chunks.error}")
            return chunks.error
        finally:
            if current is not None:
                current.close()

    def _finished(self, strays: list[str]) -> WriteReport:
        report = self._report
        report.partial = sorted(
            record.run_id
            for record in self._manifest.records.values()
            if not record.complete and record.vanished_at is None
        )
        report.stale = sorted(
            record.run_id
            for record in self._manifest.records.values()
            if record.stale is not None and record.vanished_at is None
        )
        report.digest = digest_of_project(self._manifest.records.values())
        known = {part.name for record in self._manifest.records.values() for part in record.parts}
        left = [name for name in strays if name not in known and name in self._publication.present]
        problems = list(self._source.problems(self._project_id))
        if left:
            problems.append(
                Issue(
                    f"{len(left):,} Parquet parts in the lake, such as {left[0]}, belong to no run of its manifest. "
                    "Remove them if the manifest is right, or restore the manifest from a backup.",
                    notice=True,
                )
            )
        report.problems = problems
        self._staging.tidy()
        return report
