"""Which runs of a project are read: new, changed and unfinished ones; and which of them the source no longer has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from neptune_assets.lake.commits import now
from neptune_assets.lake.manifest import Manifest
from neptune_assets.lake.records import RunRecord
from neptune_assets.lake.reports import WriteReport
from neptune_assets.schema import Scope
from neptune_assets.sources.protocol import InPlaceRun, ReadsInPlace, RunInfo, Source

COPIED_INSTEAD: Final = (
    "This run was copied into the lake although it was to be read in place: the export's parts as they lie, with the "
    "repairs a reader can make, do not give the rows that were wanted (filters on attributes, or damaged parts)."
)
"""Note of a run that could not stay in place."""


class Selection:
    """Compares what a source lists with what the lake holds, and tells the report. Nothing is written.

    ``holds`` says whether the lake has the parts and files of a record as they were written.
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

    def vanished(self, infos: Mapping[str, RunInfo]) -> list[RunRecord]:
        """Return the records whose mark is to change: runs that vanished, and runs that came back unchanged.

        Called after :meth:`choose`, because a run that is read gets a new record anyway.
        """
        moment = now()
        changed = []
        skipped = set(self._report.skipped)
        for record in self._manifest.records.values():
            if record.run_id not in infos:
                self._report.vanished.append(record.run_id)
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
        in_place = asked_in_place(self._source, self._manifest.project_id, record.run_id, self._scope)
        if in_place is not None:
            if record.in_place is not None:
                return record.in_place == in_place.files_root
            if all(note.message != COPIED_INSTEAD for note in record.notes):
                return False
        return record.in_place is None and self._holds(record)


def asked_in_place(source: Source, project_id: str, run_id: str, scope: Scope) -> InPlaceRun | None:
    """Ask a source that can leave runs where they are whether this one stays there."""
    return source.in_place(project_id, run_id, scope) if isinstance(source, ReadsInPlace) else None
