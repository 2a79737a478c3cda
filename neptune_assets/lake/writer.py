"""Write a project into the lake: read only what changed, commit whole runs, never mix old and new.

Belongs here: which runs are read, in what order, and what happens to one that was read or failed. A run is built by
:mod:`neptune_assets.lake.run_builder` and committed by :mod:`neptune_assets.lake.committer`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

import pyarrow as pa

from neptune_assets.errors import NeptuneAssetsError, SourceError
from neptune_assets.lake.committer import Committer, Staging, now
from neptune_assets.lake.digest import digest_of_project
from neptune_assets.lake.files import FileStore
from neptune_assets.lake.integrity import DamagedRuns, Holdings
from neptune_assets.lake.layout import Layout
from neptune_assets.lake.lock import LEASE_SECONDS, project_lock
from neptune_assets.lake.manifest import IssueRecord, Manifest, ManifestStore, RunRecord
from neptune_assets.lake.parts import WriteLimits
from neptune_assets.lake.reports import Progress, RunIssue, Tracker, WriteReport
from neptune_assets.lake.run_builder import BatchedRuns, Chunks, RunBuffer, RunBuilder, SortedRun
from neptune_assets.lake.statistics import StatisticsFiles
from neptune_assets.lake.storage import DISK_FULL, Storage, storage_errors
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import InPlaceRun, Issue, ReadsInPlace, RunEnd, RunInfo, RunRows, Source
from neptune_assets.tempdirs import sweep

COPIED_NOTE: Final = (
    "This run was copied into the lake although it was to be read in place: the export's parts as they lie, with the "
    "repairs a reader can make, do not give the rows that were wanted (filters on attributes, or damaged parts)."
)
"""Note of a run that could not stay in place."""


class Selection:
    """Compares what a source lists with what the lake holds, and adds it to the report. Nothing is written.

    ``holds`` returns whether the lake has the parts and files of a record as they were written.
    """

    def __init__(
        self,
        source: Source,
        scope: Scope,
        manifest: Manifest,
        report: WriteReport,
        holds: Callable[[RunRecord], bool],
        *,
        full_refresh: bool,
    ) -> None:
        self._source = source
        self._scope = scope
        self._manifest = manifest
        self._report = report
        self._holds = holds
        self._full_refresh = full_refresh

    def choose(self, infos: Mapping[str, RunInfo]) -> list[str]:
        """Return the ids of the runs to read, in the source's order."""
        todo = []
        for run_id, info in infos.items():
            record = self._manifest.records.get(run_id)
            if record is None:
                self._report.new.append(run_id)
            elif self._full_refresh or not self._is_current(record, info):
                self._report.changed.append(run_id)
            elif not record.complete or record.stale is not None:
                self._report.retried.append(run_id)
            else:
                self._report.skipped.append(run_id)
                continue
            todo.append(run_id)
        return todo

    def deletions(self, infos: Mapping[str, RunInfo]) -> list[RunRecord]:
        """Return records whose mark changes: of runs that the source no longer has, and of unchanged ones it has again.

        Called after :meth:`choose`, because a run that is read gets a new record anyway.
        """
        moment = now()
        changed = []
        skipped = set(self._report.skipped)
        for record in self._manifest.records.values():
            if record.run_id not in infos:
                self._report.deleted_in_source.append(record.run_id)
                if record.vanished_at is None:
                    changed.append(replace(record, vanished_at=moment))
            elif record.vanished_at is not None:
                self._report.reappeared.append(record.run_id)
                if record.run_id in skipped:
                    changed.append(replace(record, vanished_at=None))
        return changed

    def _is_current(self, record: RunRecord, info: RunInfo) -> bool:
        """True if the record was made from what the source has now, and its parts are still there and whole."""
        if record.fingerprint != info.fingerprint or record.source != self._source.kind:
            return False
        in_place = in_place_run(self._source, self._manifest.project_id, record.run_id, self._scope)
        if in_place is not None:
            if record.in_place is not None:
                return record.in_place == in_place.files_root
            if all(note.message != COPIED_NOTE for note in record.notes):
                return False
        return record.in_place is None and self._holds(record)


def in_place_run(source: Source, project_id: str, run_id: str, scope: Scope) -> InPlaceRun | None:
    """Ask a source that can leave runs where they are whether this one stays there."""
    return source.in_place(project_id, run_id, scope) if isinstance(source, ReadsInPlace) else None


class RunFinalizer:
    """Builds and commits the runs of one project whose rows were read, small ones together, or reports them as failed.

    ``builder`` makes the builder of a run; ``in_place`` returns where it is if it shall stay there.
    """

    def __init__(
        self,
        infos: Mapping[str, RunInfo],
        todo: Iterable[str],
        builder: Callable[[RunInfo], RunBuilder],
        in_place: Callable[[str], InPlaceRun | None],
        committer: Committer,
        report: WriteReport,
        tracker: Tracker,
        limits: WriteLimits,
    ) -> None:
        self._infos = infos
        self._builder = builder
        self._in_place_run = in_place
        self._committer = committer
        self._report = report
        self._small = BatchedRuns(limits)
        self.tracker = tracker
        self.remaining = dict.fromkeys(todo)
        """Runs that are not finished, in order."""
        self.to_copy: set[str] = set()
        """Runs that were to stay in place and have to be copied, for which they are read again."""

    def finalize(self, buffer: RunBuffer, end: RunEnd | None) -> None:
        """Finalize a run that was read, or keep it for the next batch if it is small."""
        if buffer.error is None and buffer.small and self._in_place(buffer.run_id) is None:
            self._small.add(buffer, end)
            self.tick()
        else:
            self.finalize_small()
            self._finalize(buffer, end, None)

    def tick(self) -> None:
        """Finalize the batch of small runs if it is full, or has waited long enough."""
        if self._small.ready:
            self.finalize_small()

    def finalize_small(self) -> None:
        """Finalize the batch of small runs."""
        for buffer, end, run in self._small.drain():
            self._finalize(buffer, end, run)

    def fail(self, run_id: str, message: str) -> None:
        """Give up a run that could not be read: it stays as it is and is reported."""
        self._report_failure(run_id, message)
        self._done(run_id)

    def _finalize(self, buffer: RunBuffer, end: RunEnd | None, run: SortedRun | None) -> None:
        if self._finish(buffer, end, run):
            self._done(buffer.run_id)
        else:
            self.to_copy.add(buffer.run_id)

    def _done(self, run_id: str) -> None:
        self.remaining.pop(run_id)
        self.tracker.done(run_id)

    def _finish(self, buffer: RunBuffer, end: RunEnd | None, run: SortedRun | None) -> bool:
        """Build and commit one run; one with rows that cannot be understood fails alone.

        False if it was to stay in place but has to be copied, which takes reading it again.
        """
        run_id = buffer.run_id
        in_place = None if run is not None else self._in_place(run_id)
        builder = self._builder(self._infos[run_id])
        try:
            if run is not None:
                record = builder.build_sorted(run, end)
            else:
                sorter = buffer.sorter()
                if buffer.error is not None:
                    self._report_failure(run_id, f"Its rows cannot be understood: {buffer.error}")
                    return True
                record = builder.build(sorter, end, in_place)
        except (ValueError, pa.ArrowException) as error:
            if isinstance(error, OSError):
                raise
            if in_place is not None:
                return False
            self._committer.discard(run_id, builder.generation)
            self._report_failure(run_id, f"Its rows cannot be understood: {error}")
            return True
        except BaseException as error:
            self._committer.discard(run_id, builder.generation)
            if in_place is not None and isinstance(error, OSError) and error.errno not in DISK_FULL:
                # Nothing was being written: the export's own parts cannot be read as they are.
                return False
            raise
        finally:
            buffer.close()
        if in_place is not None and not self._committer.reads_the_same(record):
            return False
        if run_id in self.to_copy:
            record = replace(record, notes=(*record.notes, IssueRecord(COPIED_NOTE)))
        self._committer.commit(record, builder.statistics)
        return True

    def _report_failure(self, run_id: str, message: str) -> None:
        self._report.failed[run_id] = message
        self._report.issues.append(RunIssue(run_id, message))
        for listed in (self._report.new, self._report.changed, self._report.retried):
            if run_id in listed:
                listed.remove(run_id)

    def _in_place(self, run_id: str) -> InPlaceRun | None:
        return None if run_id in self.to_copy else self._in_place_run(run_id)


__all__ = ["LakeWriter", "Progress", "RunIssue", "WriteReport"]

_GIVE_UP_AFTER: Final = 3
"""Runs in a row whose reading breaks off before the source counts as broken altogether."""

ProgressCall = Callable[[Progress], None]


class LakeWriter:
    """Writes projects of one source into one lake.

    ``lease_seconds`` is how long the lock on a project in an object store outlives its holder; ``limits`` are up to
    how many rows, bytes and runs are kept together.
    """

    def __init__(
        self,
        settings: LakeSettings,
        source: Source,
        scope: Scope = Scope.RUNS,
        *,
        lease_seconds: float = LEASE_SECONDS,
        limits: WriteLimits | None = None,
    ) -> None:
        self._settings = settings
        self._source = source
        self._scope = scope
        self._lease_seconds = lease_seconds
        self._limits = limits or WriteLimits()

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
                work = _ProjectWrite(
                    self._settings, self._source, self._scope, project_id, guarded, layout, self._limits
                )
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
        limits: WriteLimits,
    ) -> None:
        self._settings = settings
        self._limits = limits
        self._source = source
        self._scope = scope
        self._project_id = project_id
        self._storage = storage
        self._store = ManifestStore(storage, layout, project_id, scope, max_deltas=limits.deltas)
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

        ``fence`` if the holder of the lock before may still be at work; what is found in staging means the same.
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
        self._committer = Committer(
            self._settings,
            self._manifest,
            self._store,
            self._staging,
            self._statistics if self._scope is Scope.RUNS else None,
            self._report,
            present,
            holdings.holds,
            limits=self._limits,
            full_refresh=full_refresh,
        )
        selection = Selection(
            self._source, self._scope, self._manifest, self._report, holdings.holds, full_refresh=full_refresh
        )
        todo = selection.choose(infos)
        self._mark(selection.deletions(infos))
        if existing is None and not self._manifest.sequence:
            # A project without runs exists too: its manifest records it.
            self._store.commit(self._manifest, [], written_at=now())
        tracker = Tracker(self._report, self._files, infos, todo, progress, self._started)
        try:
            self._write_runs(self._finalizer(infos, todo, tracker))
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

    def _finalizer(self, infos: dict[str, RunInfo], todo: list[str], tracker: Tracker) -> RunFinalizer:
        def builder(info: RunInfo) -> RunBuilder:
            return RunBuilder(
                self._project_id,
                info,
                self._storage,
                self._staging,
                self._files,
                self._manifest.records.get(info.run_id),
                settings=self._settings,
                limits=self._limits,
                source_kind=self._source.kind,
            )

        def in_place(run_id: str) -> InPlaceRun | None:
            return in_place_run(self._source, self._project_id, run_id, self._scope)

        return RunFinalizer(infos, todo, builder, in_place, self._committer, self._report, tracker, self._limits)

    def _mark(self, records: list[RunRecord]) -> None:
        if records:
            self._store.commit(self._manifest, records, written_at=now())

    def _write_runs(self, finalizer: RunFinalizer) -> None:
        failures = 0
        while finalizer.remaining:
            asked, copied = len(finalizer.remaining), set(finalizer.to_copy)
            try:
                failure = self._read_once(finalizer)
            finally:
                # Whatever ended the buffer, runs that are finished stay.
                finalizer.finalize_small()
                self._committer.flush()
            if failure is None:
                # What is left was not returned, or has to be read once more to be copied.
                for run_id in sorted(finalizer.remaining.keys() - (finalizer.to_copy - copied)):
                    finalizer.fail(run_id, "The source returned nothing for this run.")
                continue
            failures = failures + 1 if len(finalizer.remaining) == asked - 1 else 1
            if failures >= _GIVE_UP_AFTER:
                raise self._broke_off(failure)

    def _broke_off(self, failure: Exception) -> NeptuneAssetsError:
        if isinstance(failure, NeptuneAssetsError):
            return failure
        error = SourceError(
            f"RunBuffer {self._project_id!r} from the {self._source.kind} source broke off: {failure}.",
            hint="Check that the source can be read, then materialize again; finished runs are kept.",
        )
        error.__cause__ = failure
        return error

    def _read_once(self, finalizer: RunFinalizer) -> Exception | None:
        """Read runs until the source ends (None) or breaks off (the error); those that were read do not remain."""
        chunks = Chunks(self._source.read(self._project_id, list(finalizer.remaining), self._scope))
        current: RunBuffer | None = None
        try:
            for chunk in chunks:
                self._committer.tick()
                finalizer.tick()
                if chunk.run_id not in finalizer.remaining:
                    continue
                if current is not None and current.run_id != chunk.run_id:
                    finalizer.finalize(current, None)
                    current = None
                if current is None:
                    current = RunBuffer(chunk.run_id, self._settings, self._limits)
                if isinstance(chunk, RunRows):
                    current.add(chunk.batch)
                    finalizer.tracker.tick(current.rows)
                else:
                    finalizer.finalize(current, chunk)
                    current = None
            if chunks.error is None:
                if current is not None:
                    finalizer.finalize(current, None)
                return None
            finalizer.finalize_small()
            if current is None and not finalizer.remaining:
                raise self._broke_off(chunks.error)
            broken = current.run_id if current is not None else next(iter(finalizer.remaining))
            finalizer.fail(broken, f"RunBuffer broke off: {chunks.error}")
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
        left = [name for name in strays if name not in known and name in self._committer.present]
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
