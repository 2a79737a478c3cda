"""Rows of one run of an export, repaired, and the report of what was damaged, lost, doubtful or repaired.

Belongs here: which Neptune a run is from, and whether its series times are local time of the exporting host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.lake import repair
from neptune_assets.schema import FILE_TYPES, AttributeType
from neptune_assets.sources.export.parts import BATCH_BYTES, BATCH_ROWS, PartError, open_part
from neptune_assets.sources.export.projects import RunHeader, RunParts
from neptune_assets.sources.export.roots import Root
from neptune_assets.sources.filters import Selection
from neptune_assets.sources.protocol import Issue, RunEnd, RunRows
from neptune_assets.sources.times import YEAR_1, YEAR_10000, OddTimes, moment_of

_NAMED: Final = 20
"""Attributes named one by one in notes; further ones are counted."""


@dataclass(slots=True)
class ReadReport:
    """What reading one run brought to light, collected for its RunEnd."""

    errors: list[Issue] = field(default_factory=list)
    notes: list[Issue] = field(default_factory=list)
    repairs: Counter[str] = field(default_factory=Counter)
    lost_files: Counter[str] = field(default_factory=Counter)
    unusable: Counter[str] = field(default_factory=Counter)
    rounded: dict[str, int] = field(default_factory=dict)
    empty_points: Counter[tuple[str, str]] = field(default_factory=Counter)
    references: dict[str, str] = field(default_factory=dict)
    indexed: set[str] = field(default_factory=set)
    doubtful_times: int = 0
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    odd_times: OddTimes = field(default_factory=OddTimes)

    def count(self, name: str, rows: int) -> None:
        """Add rows to a repair."""
        if rows:
            self.repairs[name] += rows

    def error(self, message: str) -> None:
        """Report what makes the run partial."""
        self.errors.append(Issue(message))

    def note(self, message: str) -> None:
        """Report without making the run partial."""
        self.notes.append(Issue(message))

    def end(self, run_id: str, zone: str | None) -> RunEnd:
        """Return the run's end; ``zone`` is the time zone that times of its series were read in, if any."""
        for attribute, count in self.lost_files.items():
            self.errors.append(
                Issue(
                    f"{count} files of {attribute} were not downloaded by the exporter. Export the run again.",
                    attribute,
                    str(AttributeType.FILE_SERIES),
                )
            )
        for kind, count in self.unusable.items():
            self.error(
                f"{count} rows of type {kind} are of no known type or points without a step; they were left out."
            )
        for at, ((part, reason), count) in enumerate(self.refused.items()):
            if at == _NAMED:
                self.error(f"{sum(self.refused.values()):,} rows in all could not be held; they were left out.")
                break
            self.error(f"Part {part}: {reason}, in {count:,} rows, which were left out.")
        self.notes.extend(self.odd_times.issues())
        for at, (attribute, value) in enumerate(sorted(self.rounded.items())):
            if at == _NAMED:
                self.note(f"{len(self.rounded) - _NAMED} more whole numbers beyond 2^53 may have been rounded.")
                break
            self.notes.append(
                Issue(
                    f"{attribute} = {value} is beyond 2^53; the exporter may have rounded it.",
                    attribute,
                    str(AttributeType.INT),
                )
            )
        for (attribute, kind), count in self.empty_points.items():
            self.notes.append(Issue(f"{count} points of {attribute} have a time and no value.", attribute, kind))
        for attribute in sorted(self.indexed):
            self.notes.append(
                Issue(
                    f"Steps of {attribute} are indexes 0, 1, 2 ..., because the exporter kept no steps of file series.",
                    attribute,
                    str(AttributeType.FILE_SERIES),
                )
            )
        if self.doubtful_times:
            self.note(
                f"{self.doubtful_times} times are in an hour that {zone} has twice or not at all; "
                "the first, or the time after the gap, was taken."
            )
        repairs = {name: count for name, count in self.repairs.items() if count}
        return RunEnd(run_id, None, tuple(self.errors), tuple(self.notes), repairs)


_MINUTE: Final = 60_000
_QUARTER: Final = 15 * _MINUTE
_FARTHEST: Final = 14 * 60 * _MINUTE
_EARLY: Final = 2 * _MINUTE
"""How much earlier than its run's creation a first point may seem, because two machines' clocks differ."""
_LATE: Final = 5 * _MINUTE
"""How much later than a quarter of an hour a first point may be and still tell the offset."""


class Generation(StrEnum):
    """Generations of Neptune, which the exporter treats differently."""

    V2 = "2.x"
    V3 = "3.x"


def detect_generation(heading: RunHeader) -> Generation | None:
    """Tell the generation by what only one of them has; None if nothing does.

    In 2.x the run id is ``sys/id``; in 3.x it is ``sys/custom_run_id``, which 2.x may have too.
    """
    if heading.run_id is None:
        return None
    is_id = heading.text("sys/id") == heading.run_id
    is_custom = heading.text("sys/custom_run_id") == heading.run_id
    if is_id == is_custom:
        return None
    return Generation.V2 if is_id else Generation.V3


def infer_offset(heading: RunHeader) -> int | None:
    """Return how many milliseconds the stored series times are ahead of UTC, by the first point and the creation time.

    None if nothing can be told: no points, no creation time, or a first point too long after a possible offset.
    Zero means that the times are right. A run whose first point really came whole hours late looks the same as one
    that was exported in another time zone, which is why shifting is never the default.
    """
    created = heading.milliseconds("sys/creation_time")
    if created is None or heading.first_point is None:
        return None
    difference = heading.first_point - created
    offset = ((difference + _EARLY) // _QUARTER) * _QUARTER
    if abs(offset) > _FARTHEST or difference - offset > _LATE:
        return None
    return offset


def as_hours(offset: int) -> str:
    """Return an offset in milliseconds as people write it: ``+02:00``."""
    minutes = abs(offset) // _MINUTE
    return f"{'-' if offset < 0 else '+'}{minutes // 60:02d}:{minutes % 60:02d}"


_FILES: Final = pa.array([str(kind) for kind in FILE_TYPES])
_EXACT: Final = 1 << 53


@dataclass(frozen=True, slots=True)
class TimeRepair:
    """What is done to the times of a run's series: nothing, a constant shift, or reading them in a zone."""

    shift_ms: int = 0
    zone: str | None = None


class RunReading:
    """One run being read once, from first part to last."""

    def __init__(
        self,
        root: Root,
        run: RunParts,
        heading: RunHeader,
        selection: Selection,
        source_tz: str,
        *,
        project_id: str,
        run_id: str,
    ) -> None:
        """Prepare to read; rows whose columns hold other ids than the two given are left out and reported."""
        self._root = root
        self._run = run
        self._heading = heading
        self._selection = selection
        self._generation = detect_generation(heading)
        self._project_id, self._run_id = project_id, run_id
        self._found = ReadReport()
        self._part = ""
        self._times = self._time_repair(source_tz)

    def chunks(self, known_errors: list[Issue], known_notes: list[Issue]) -> Iterator[RunRows | RunEnd]:
        """Yield the run's rows and its RunEnd, which begins with the errors and notes known before reading."""
        self._found.errors[:0] = known_errors
        self._found.notes[:0] = known_notes
        pending: list[pa.RecordBatch] = []
        rows = size = 0
        for batch in self._batches():
            if rows + batch.num_rows > BATCH_ROWS or size + batch.nbytes > BATCH_BYTES:
                if pending:
                    yield RunRows(self._run_id, _joined(pending))
                pending, rows, size = [], 0, 0
            pending.append(batch)
            rows += batch.num_rows
            size += batch.nbytes
        if pending:
            yield RunRows(self._run_id, _joined(pending))
        yield self._found.end(self._run_id, self._times.zone)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for _, entry in sorted(self._run.parts.items()):
            foreign = 0
            self._part = entry.name
            try:
                with open_part(self._root, entry) as part:
                    if part.disagreement is not None:
                        self._found.error(f"Part {entry.name} is damaged: {part.disagreement}. Export the run again.")
                    for raw in part.batches(refused=self._refuse, failed=self._fail):
                        own = repair.own_rows(raw, self._project_id, self._run_id)
                        foreign += raw.num_rows - own.num_rows
                        batch = self._repaired(self._selection.batch(own))
                        if batch.num_rows:
                            yield batch
            except PartError as error:
                self._found.error(f"Part {error} The other parts were read. Export the run again to get all of it.")
            if foreign:
                self._found.repairs[repair.FOREIGN_ROWS] += foreign
                self._found.error(
                    f"Part {entry.name} holds {foreign} rows of another run or project; they were left out. "
                    "Export both runs again."
                )

    def _fail(self, error: PartError) -> None:
        self._found.error(f"Part {error} Its other row groups were read. Export the run again to get all of it.")

    def _refuse(self, reason: str, rows: int) -> None:
        self._found.refused[self._part, reason] += rows

    def _repaired(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if not batch.num_rows:
            return batch
        batch = self._without_unusable(batch)
        batch, phantoms = repair.drop_phantom_rows(batch)
        self._found.count(repair.PHANTOM_ROWS, phantoms)
        batch, restored = repair.restore_nan(batch)
        self._found.count(repair.NAN_VALUES, restored)
        batch = self._without_empty_points(batch)
        batch = self._with_possible_times(batch)
        batch = self._with_true_times(batch)
        self._notice(batch)
        return batch

    def _without_unusable(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        batch, dropped = repair.drop_unusable_rows(batch)
        for counted in dropped["attribute_type"].value_counts().to_pylist():
            self._found.unusable[str(counted["values"])] += counted["counts"]
        self._found.count(repair.UNUSABLE_ROWS, dropped.num_rows)
        return batch

    def _without_empty_points(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Drop points that hold neither value nor time (the exporter's grid has them) and lost files of series."""
        batch, dropped = repair.drop_empty_points(batch)
        lost = dropped.filter(pc.is_valid(dropped["timestamp"]))
        self._found.count(repair.LOST_FILES, lost.num_rows)
        for counted in lost["attribute_path"].value_counts().to_pylist():
            self._found.lost_files[counted["values"]] += counted["counts"]
        self._found.count(repair.PHANTOM_ROWS, dropped.num_rows - lost.num_rows)
        return batch

    def _with_possible_times(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Take times away that the lake cannot hold, and note those that only few readers can."""
        for row in repair.impossible_datetimes(batch).to_pylist():
            self._found.errors.append(
                Issue(
                    f"{row['attribute_path']} = {row['value']} ms since 1970 is beyond what a time can hold; it is "
                    "left out.",
                    row["attribute_path"],
                    str(AttributeType.DATETIME),
                )
            )
            self._found.count(repair.IMPOSSIBLE_TIMES, 1)
        self._found.count(repair.IMPOSSIBLE_TIMES, repair.stray_datetimes(batch))
        times = batch["timestamp"].drop_null().view(pa.int64()).to_numpy()
        odd = self._found.odd_times
        if len(times) and not (times.min() >= YEAR_1 and times.max() < YEAR_10000):
            rows = batch.filter(pc.is_valid(batch["timestamp"]))
            beyond = odd.beyond(rows["attribute_path"], times)
            if beyond is not None:
                self._found.count(repair.IMPOSSIBLE_TIMES, int(beyond.sum()))
        return repair.drop_impossible_times(batch)

    def _with_true_times(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self._times.zone is not None:
            local = batch["timestamp"].cast(pa.timestamp("ms"))
            first, last = (
                pc.assume_timezone(local, self._times.zone, ambiguous=choice, nonexistent=choice)
                for choice in ("earliest", "latest")
            )
            self._found.doubtful_times += int(pc.sum(pc.not_equal(first, last)).as_py() or 0)
            self._found.count(repair.TIMEZONE + self._times.zone, len(local) - local.null_count)
            return repair.localize_timestamps(batch, self._times.zone)
        return repair.shift_timestamps(batch, self._times.shift_ms)

    def _notice(self, batch: pa.RecordBatch) -> None:
        kinds = batch["attribute_type"]
        ints = batch["int_value"]
        if ints.null_count < len(ints):
            large = pc.or_(pc.greater(ints, _EXACT), pc.less(ints, -_EXACT))
            for row in (
                batch.filter(pc.fill_null(large, fill_value=False)).select(["attribute_path", "int_value"]).to_pylist()
            ):
                self._found.rounded[row["attribute_path"]] = row["int_value"]
        for kind in (AttributeType.STRING_SERIES, AttributeType.HISTOGRAM_SERIES):
            column = "string_value" if kind == AttributeType.STRING_SERIES else "histogram_value"
            empty = pc.and_(pc.equal(kinds, str(kind)), pc.is_null(batch[column]))
            if pc.any(empty).as_py():
                for counted in batch.filter(empty)["attribute_path"].value_counts().to_pylist():
                    self._found.empty_points[counted["values"], str(kind)] += counted["counts"]
        files = pc.is_in(kinds, _FILES)
        if pc.any(files).as_py():
            self._notice_files(batch.filter(files))

    def _notice_files(self, rows: pa.RecordBatch) -> None:
        columns = (rows[name].to_pylist() for name in ("attribute_path", "attribute_type", "step"))
        paths = pc.struct_field(rows["file_value"], "path").to_pylist()
        for attribute, kind, step, path in zip(*columns, paths, strict=True):
            row = attribute if step is None else f"{attribute} at step {step.normalize():f}"
            other = self._found.references.setdefault(path, row)
            if other != row:
                self._found.notes.append(
                    Issue(
                        f"{row} and {other} both name the file {path}, so one of them has lost its own.",
                        attribute,
                        kind,
                    )
                )
            if kind == AttributeType.FILE_SERIES and self._generation == Generation.V2:
                self._found.indexed.add(attribute)

    def _time_repair(self, source_tz: str) -> TimeRepair:
        if source_tz == "UTC" or self._generation == Generation.V3 or self._heading.first_point is None:
            return TimeRepair()
        if self._generation is None:
            self._found.note(
                "Whether times of series are right cannot be told, because sys/id is missing; they are kept."
            )
            return TimeRepair()
        if source_tz not in {"infer", "report"}:
            return TimeRepair(zone=source_tz)
        offset = infer_offset(self._heading)
        if offset is None:
            self._found.note("The time zone of the exporting host cannot be told from the first point; times are kept.")
            return TimeRepair()
        if offset == 0:
            return TimeRepair()
        if source_tz == "report":
            first, created = moment_of(self._heading.first_point), self._heading.moment("sys/creation_time")
            self._found.note(
                f"Times of series seem to be local time at UTC{as_hours(offset)}: the first point is at {first}, the "
                f"run was created at {created}. They are kept; set source_tz to the exporting host's time zone, or to "
                "infer, to put them right."
            )
            return TimeRepair()
        shift = -offset
        self._found.repairs[repair.TIMEZONE_SHIFT_MS] = shift
        self._found.note(f"Times of series were local time at UTC{as_hours(offset)} and were put right.")
        return TimeRepair(shift_ms=shift)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)
