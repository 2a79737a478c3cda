"""What becomes of runs whose rows were read: they are built and published, small ones together, or they fail alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import pyarrow as pa

from neptune_assets.lake.commits import RunBuilder
from neptune_assets.lake.publication import Publication
from neptune_assets.lake.readings import Reading
from neptune_assets.lake.records import IssueRecord
from neptune_assets.lake.reports import RunIssue, WriteReport
from neptune_assets.lake.selection import COPIED_INSTEAD
from neptune_assets.lake.small_runs import SmallRuns, SortedRun
from neptune_assets.lake.storage_errors import DISK_FULL
from neptune_assets.lake.tracker import Tracker
from neptune_assets.sources.protocol import InPlaceRun, RunEnd, RunInfo


class RunEnds:
    """Ends the runs of one project, each once.

    ``builder`` makes the builder of a run; ``in_place`` tells where it lies if it shall stay there.
    """

    def __init__(
        self,
        infos: Mapping[str, RunInfo],
        todo: Iterable[str],
        builder: Callable[[RunInfo], RunBuilder],
        in_place: Callable[[str], InPlaceRun | None],
        publication: Publication,
        report: WriteReport,
        tracker: Tracker,
    ) -> None:
        self._infos = infos
        self._builder = builder
        self._asked_in_place = in_place
        self._publication = publication
        self._report = report
        self._small = SmallRuns()
        self.tracker = tracker
        self.remaining = dict.fromkeys(todo)
        """Runs that have not ended, in order."""
        self.copied_instead: set[str] = set()
        """Runs that were to stay in place and have to be copied, for which they are read again."""

    def end(self, reading: Reading, end: RunEnd | None) -> None:
        """End a run that was read, or have it wait for others if it is small."""
        if reading.error is None and reading.small and self._in_place(reading.run_id) is None:
            self._small.add(reading, end)
            self.tick()
        else:
            self.end_small()
            self._end(reading, end, None)

    def tick(self) -> None:
        """End the small ones that wait if they are many, or have waited long enough."""
        if self._small.due:
            self.end_small()

    def end_small(self) -> None:
        """End the small ones that wait."""
        for reading, end, run in self._small.take():
            self._end(reading, end, run)

    def fail(self, run_id: str, message: str) -> None:
        """End a run that could not be read: it stays as it is and is reported."""
        self._report_failure(run_id, message)
        self._ended(run_id)

    def _end(self, reading: Reading, end: RunEnd | None, run: SortedRun | None) -> None:
        if self._finish(reading, end, run):
            self._ended(reading.run_id)
        else:
            self.copied_instead.add(reading.run_id)

    def _ended(self, run_id: str) -> None:
        self.remaining.pop(run_id)
        self.tracker.done(run_id)

    def _finish(self, reading: Reading, end: RunEnd | None, run: SortedRun | None) -> bool:
        """Build and publish one run; one with rows that cannot be understood fails alone.

        False if it was to stay in place but has to be copied, which takes reading it again.
        """
        run_id = reading.run_id
        in_place = None if run is not None else self._in_place(run_id)
        builder = self._builder(self._infos[run_id])
        try:
            if run is not None:
                record = builder.build_small(run, end)
            else:
                sorter = reading.sorter()
                if reading.error is not None:
                    self._report_failure(run_id, f"Its rows cannot be understood: {reading.error}")
                    return True
                record = builder.build(sorter, end, in_place)
        except (ValueError, pa.ArrowException) as error:
            if isinstance(error, OSError):
                raise
            if in_place is not None:
                return False
            self._publication.withdraw(run_id, builder.generation)
            self._report_failure(run_id, f"Its rows cannot be understood: {error}")
            return True
        except BaseException as error:
            self._publication.withdraw(run_id, builder.generation)
            if in_place is not None and isinstance(error, OSError) and error.errno not in DISK_FULL:
                # Nothing was being written: the export's own parts cannot be read as they are.
                return False
            raise
        finally:
            reading.close()
        if in_place is not None and not self._publication.reads_the_same(record):
            return False
        if run_id in self.copied_instead:
            record = replace(record, notes=(*record.notes, IssueRecord(COPIED_INSTEAD)))
        self._publication.publish(record, builder)
        return True

    def _report_failure(self, run_id: str, message: str) -> None:
        self._report.failed[run_id] = message
        self._report.issues.append(RunIssue(run_id, message))
        for listed in (self._report.new, self._report.changed, self._report.retried):
            if run_id in listed:
                listed.remove(run_id)

    def _in_place(self, run_id: str) -> InPlaceRun | None:
        return None if run_id in self.copied_instead else self._asked_in_place(run_id)
