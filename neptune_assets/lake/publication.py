"""How a run that was built becomes the lake's: what it replaces, what it must not replace, and what is told of it."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from neptune_assets.errors import LakeError
from neptune_assets.lake.commits import RunBuilder, keep_parts, same_content, stale_reason
from neptune_assets.lake.in_place import digest_in_place
from neptune_assets.lake.layout import safe_name
from neptune_assets.lake.lock import ProjectLock
from neptune_assets.lake.manifest import Manifest, ManifestStore
from neptune_assets.lake.records import RunRecord
from neptune_assets.lake.repair import NOT_COUNTS
from neptune_assets.lake.reports import RunIssue, WriteReport
from neptune_assets.lake.staging import Staging, parts_by_run
from neptune_assets.lake.statistics_files import StatisticsFiles
from neptune_assets.settings import LakeSettings


class Publication:
    """Makes runs of one project visible, one commit each, while the lock is held.

    ``present`` maps the names of final parts to their sizes and is kept up to date.
    """

    def __init__(
        self,
        settings: LakeSettings,
        manifest: Manifest,
        store: ManifestStore,
        staging: Staging,
        statistics: StatisticsFiles | None,
        lock: ProjectLock,
        report: WriteReport,
        present: dict[str, int],
        *,
        full_refresh: bool,
    ) -> None:
        self._settings = settings
        self._manifest = manifest
        self._store = store
        self._staging = staging
        self._statistics = statistics
        self._lock = lock
        self._report = report
        self.present = present
        self._names = parts_by_run(present)
        self._full_refresh = full_refresh

    def publish(self, record: RunRecord, builder: RunBuilder) -> None:
        """Commit a run, unless it is partial and the lake holds a complete state of it."""
        old = self._manifest.records.get(record.run_id)
        if old is not None and self._outranks(old, record):
            self._keep_complete(old, record)
            return
        self._commit(record)
        if self._statistics is not None:
            tables = builder.statistics.tables(record.run_id, record.digest)
            if tables is not None:
                self._statistics.add(record.run_id, record.digest, tables)

    def holds(self, record: RunRecord) -> bool:
        """True if the run's parts lie in the lake with the sizes they were written with."""
        return all(self.present.get(part.name) == part.bytes for part in record.parts)

    def reads_the_same(self, record: RunRecord) -> bool:
        """True if reading a run in place, without its source, gives the rows that the source gave."""
        try:
            return digest_in_place(record, self._report.project_id, self._settings) == record.digest
        except (LakeError, ValueError, OSError, pa.ArrowException):
            return False

    def _outranks(self, old: RunRecord, new: RunRecord) -> bool:
        """True if the complete state that the lake holds must not give way to a partial one."""
        if self._full_refresh or not old.complete or new.complete:
            return False
        return self.holds(old) if old.in_place is None else self.reads_the_same(old)

    def _keep_complete(self, old: RunRecord, new: RunRecord) -> None:
        """Discard a partial reading, leave the run as it is, and record why it is not newer."""
        self._staging.discard(new.generation)
        self._staging.sweep_files(old.run_id, old)
        kept = replace(old, stale=stale_reason(new.errors), vanished_at=None)
        if kept != old:
            self._lock.check()
            self._store.commit(self._manifest, [kept], written_at=new.committed_at)
        for issue in new.errors:
            message = f"{issue.message} The complete state read before was kept."
            self._report.issues.append(RunIssue(old.run_id, message, issue.attribute_path, issue.attribute_type))

    def _commit(self, record: RunRecord) -> None:
        old = self._manifest.records.get(record.run_id)
        generation = record.generation
        kept = (
            old is not None
            and not self._full_refresh
            and same_content(old, record)
            and (old.in_place is not None or self.holds(old))
        )
        if old is not None and kept and record.in_place is None:
            record = keep_parts(old, record)
            self._staging.discard(generation)
        self._lock.check()
        try:
            self._store.commit(self._manifest, [record], written_at=record.committed_at)
        except BaseException:
            if not kept:
                self._staging.discard(generation)
            raise
        if not kept:
            if record.in_place is None:
                prefix = safe_name(record.run_id)
                sweep = bool(record.files or (old is not None and old.files))
                self._staging.promote(record, final=self._names.get(prefix, ()), sweep=sweep)
                self._names[prefix] = {part.name for part in record.parts}
            elif old is not None and old.in_place is None:
                self._staging.remove_copy(record.run_id)
                self._names.pop(safe_name(record.run_id), None)
            self.present.update((part.name, part.bytes) for part in record.parts)
        self._note(record, kept)

    def _note(self, record: RunRecord, kept: bool) -> None:
        report = self._report
        if kept:
            report.unchanged_content.append(record.run_id)
        elif record.in_place is None:
            report.bytes += sum(part.bytes for part in record.parts) + sum(item.size for item in record.files)
            report.files += len(record.files)
        if not kept:
            for kind, count in record.rows.items():
                report.rows[kind] = report.rows.get(kind, 0) + count
        for name, count in record.repairs.items():
            if name not in NOT_COUNTS:
                report.repairs[name] = report.repairs.get(name, 0) + count
        for issue in (*record.errors, *record.notes):
            report.issues.append(RunIssue(record.run_id, issue.message, issue.attribute_path, issue.attribute_type))
