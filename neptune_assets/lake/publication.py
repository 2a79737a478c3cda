"""How runs that were built become the lake's: what they replace, what they must not replace, and what is told of them.

Runs are committed several at a time, because what a commit costs does not depend on how many runs are in it: many
small runs wait for each other, up to :data:`GROUP_RUNS` or :data:`GROUP_BYTES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa

from neptune_assets.errors import LakeError
from neptune_assets.lake.commits import RunBuilder, keep_parts, now, same_content, stale_reason
from neptune_assets.lake.in_place import digest_in_place
from neptune_assets.lake.layout import safe_name
from neptune_assets.lake.manifest import Manifest, ManifestStore
from neptune_assets.lake.records import RunRecord
from neptune_assets.lake.repair import NOT_COUNTS
from neptune_assets.lake.reports import RunIssue, WriteReport
from neptune_assets.lake.staging import Staging, parts_by_run
from neptune_assets.lake.statistics_files import StatisticsFiles
from neptune_assets.lake.statistics_tables import RunFacts
from neptune_assets.lake.waiting import Waiting
from neptune_assets.settings import LakeSettings

GROUP_RUNS: Final = 128
GROUP_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class _Change:
    """One run that waits for its commit."""

    record: RunRecord
    old: RunRecord | None
    built: str | None
    """The generation that was staged for it, with other content than the lake has; None if its parts stay."""
    facts: RunFacts | None = None
    told: bool = True
    """Whether it counts as read: a complete state that only was marked as stale does not."""


class Publication:
    """Makes runs of one project visible while the lock is held.

    ``present`` maps the names of final parts to their sizes and is kept up to date. ``holds`` says of a record whether
    its parts and files are in the lake as they were written.
    """

    def __init__(
        self,
        settings: LakeSettings,
        manifest: Manifest,
        store: ManifestStore,
        staging: Staging,
        statistics: StatisticsFiles | None,
        report: WriteReport,
        present: dict[str, int],
        holds: Callable[[RunRecord], bool],
        *,
        full_refresh: bool,
    ) -> None:
        self._settings = settings
        self._manifest = manifest
        self._store = store
        self._staging = staging
        self._statistics = statistics
        self._report = report
        self.present = present
        self._holds = holds
        self._names = parts_by_run(present)
        self._full_refresh = full_refresh
        self._waiting = Waiting[_Change](GROUP_RUNS, GROUP_BYTES)

    def publish(self, record: RunRecord, builder: RunBuilder) -> None:
        """Commit a run that was built, with the ones before it or with the next ones; each run at most once."""
        old = self._manifest.records.get(record.run_id)
        if old is not None and self._outranks(old, record):
            self._keep_complete(old, record)
            return
        facts = None
        if self._statistics is not None:
            facts = builder.statistics.facts(record.run_id, record.digest)
        if (
            old is not None
            and not self._full_refresh
            and same_content(old, record)
            and (old.in_place is not None or self._holds(old))
        ):
            if record.in_place is None:
                self._staging.discard(record.generation, record.run_id)
                record = keep_parts(old, record)
            self._add(_Change(record, old, None, facts))
        else:
            self._add(_Change(record, old, record.generation, facts))

    def withdraw(self, run_id: str, generation: str) -> None:
        """Remove what was staged and stored for a run that could not be built."""
        self._staging.discard(generation, run_id)
        self._staging.sweep_files(run_id, self._manifest.records.get(run_id))

    def tick(self) -> None:
        """Commit what waits if it is enough, or has waited long enough."""
        if self._waiting.due:
            self.flush()

    def flush(self) -> None:
        """Commit all that waits. If that fails, these runs stay as they were."""
        changes = self._waiting.take()
        if not changes:
            return
        # If this fails, nothing of it is removed: others may have the lock, or the commit was made and its answer lost.
        # What it leaves in staging is finished or removed by the next writer.
        group = self._staging.seal()
        self._store.commit(self._manifest, [change.record for change in changes], written_at=now())
        self._replace([change for change in changes if change.built is not None])
        self._staging.clear(group)
        for change in changes:
            if change.told:
                self._note(change.record, kept=change.built is None)
            if change.facts is not None and self._statistics is not None:
                self._statistics.add(change.facts)

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
        return self._holds(old) if old.in_place is None else self.reads_the_same(old)

    def _keep_complete(self, old: RunRecord, new: RunRecord) -> None:
        """Discard a partial reading, leave the run as it is, and record why it is not newer."""
        self.withdraw(old.run_id, new.generation)
        kept = replace(old, stale=stale_reason(new.errors), vanished_at=None)
        if kept != old:
            self._add(_Change(kept, old, None, told=False))
        for issue in new.errors:
            message = f"{issue.message} The complete state read before was kept."
            self._report.issues.append(RunIssue(old.run_id, message, issue.attribute_path, issue.attribute_type))

    def _add(self, change: _Change) -> None:
        nbytes = 0 if change.facts is None else change.facts.nbytes
        if change.built is not None and change.record.in_place is None:
            nbytes += sum(part.bytes for part in change.record.parts)
        self._waiting.add(change, nbytes)
        self.tick()

    def _replace(self, changes: list[_Change]) -> None:
        """Move the parts of committed runs to their places, and remove copies of runs that are read in place now."""
        staged = [change.record for change in changes if change.record.in_place is None]
        with_files = {
            change.record.run_id
            for change in changes
            if change.record.files or (change.old is not None and change.old.files)
        }
        self._staging.promote(staged, final=self._names, with_files=with_files)
        for record in staged:
            self._names[safe_name(record.run_id)] = {part.name for part in record.parts}
        for change in changes:
            if change.record.in_place is not None and change.old is not None and change.old.in_place is None:
                self._staging.remove_copy(change.record.run_id)
                self._names.pop(safe_name(change.record.run_id), None)
            self.present.update((part.name, part.bytes) for part in change.record.parts)

    def _note(self, record: RunRecord, *, kept: bool) -> None:
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
