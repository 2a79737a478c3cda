"""Rows of one run, repaired, with everything noticed on the way: damaged parts, lost values, doubtful ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.lake import repair
from neptune_assets.schema import FILE_TYPES, SERIES_TYPES, AttributeType
from neptune_assets.sources.export.directory import RunParts
from neptune_assets.sources.export.findings import Findings
from neptune_assets.sources.export.generation import Generation, as_hours, detect_generation, infer_offset
from neptune_assets.sources.export.heading import Heading
from neptune_assets.sources.export.parts import BATCH_BYTES, BATCH_ROWS, PartError, open_part
from neptune_assets.sources.export.roots import Root
from neptune_assets.sources.filters import Selection
from neptune_assets.sources.protocol import Issue, RunEnd, RunRows
from neptune_assets.sources.times import YEAR_1, YEAR_10000, moment_of

_KNOWN: Final = pa.array([str(kind) for kind in AttributeType])
_SERIES: Final = pa.array([str(kind) for kind in SERIES_TYPES])
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
        heading: Heading,
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
        self._found = Findings()
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
                        own = self._own_rows(raw)
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

    def _own_rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        own = pc.and_(pc.equal(batch["run_id"], self._run_id), pc.equal(batch["project_id"], self._project_id))
        own = pc.fill_null(own, fill_value=False)
        return batch if pc.all(own).as_py() else batch.filter(own)

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
        kinds = batch["attribute_type"]
        known = pc.and_(pc.is_in(kinds, _KNOWN), pc.is_valid(batch["attribute_path"]))
        stepless = pc.and_(pc.is_in(kinds, _SERIES), pc.is_null(batch["step"]))
        usable = pc.and_not(known, stepless)
        if pc.all(usable).as_py():
            return batch
        dropped = batch.filter(pc.invert(usable))
        for counted in dropped["attribute_type"].value_counts().to_pylist():
            self._found.unusable[str(counted["values"])] += counted["counts"]
        self._found.count(repair.UNUSABLE_ROWS, dropped.num_rows)
        return batch.filter(usable)

    def _without_empty_points(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Drop points that hold neither value nor time (the exporter's grid has them) and lost files of series."""
        path = pc.struct_field(batch["file_value"], "path")
        kinds = batch["attribute_type"]
        empty_file = pc.and_(pc.equal(kinds, str(AttributeType.FILE_SERIES)), pc.is_null(path))
        empty_float = pc.and_(pc.equal(kinds, str(AttributeType.FLOAT_SERIES)), pc.is_null(batch["float_value"]))
        empty = pc.or_(empty_file, empty_float)
        if not pc.any(empty).as_py():
            return batch
        timed = pc.and_(empty, pc.is_valid(batch["timestamp"]))
        lost = batch.filter(timed)
        self._found.count(repair.LOST_FILES, lost.num_rows)
        for counted in lost["attribute_path"].value_counts().to_pylist():
            self._found.lost_files[counted["values"]] += counted["counts"]
        self._found.count(repair.PHANTOM_ROWS, int(pc.sum(empty).as_py()) - lost.num_rows)
        return batch.filter(pc.invert(empty))

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
