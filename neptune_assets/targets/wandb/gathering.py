"""Collecting a run from the lake: points and events into sorted spools, texts into tables, files into their places."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from neptune_assets.schema import PARAMETER_TYPES, AttributeType
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.wandb import records
from neptune_assets.targets.wandb.account import EXACT, Account
from neptune_assets.targets.wandb.columns import Ints, codes, microsteps, milliseconds, plain, present
from neptune_assets.targets.wandb.events import EventSpool, LastValues
from neptune_assets.targets.wandb.history import POINTS
from neptune_assets.targets.wandb.lineage import Inheritance
from neptune_assets.targets.wandb.mapping import Layout
from neptune_assets.targets.wandb.media import FileStage
from neptune_assets.targets.wandb.parameters import Parameters
from neptune_assets.targets.wandb.rows import typed_rows
from neptune_assets.targets.wandb.run_files import RunFiles
from neptune_assets.targets.wandb.series import histogram
from neptune_assets.targets.wandb.spool import STRETCH_ROWS, Bounds, SortedSpool
from neptune_assets.targets.wandb.system import SYSTEM, placeable
from neptune_assets.targets.wandb.tables import TextTables

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun


class Gathering:
    """What a run consists of, on its way into one directory. One object, one run."""

    def __init__(self, run: LakeRun, placed: Layout, directory: Path, lake: LakeSettings, watched: str | None) -> None:
        """``watched`` is a parameter whose value is kept apart."""
        self._run, self._placed = run, placed
        self.files = FileStage(directory / "files")
        self.account = Account(rows_in=placed.survey.by_type())
        self._numbers = {key: number for number, key in enumerate(placed.keys)}
        self._system = {key: number for number, key in enumerate(placed.system)}
        rows, spooled = min(lake.rows_in_memory, STRETCH_ROWS), lake.sort_memory_mb << 18
        self.points = SortedSpool(POINTS, "step", Bounds(rows, spooled, lake.scratch))
        self.system = SortedSpool(SYSTEM, "time", Bounds(rows, spooled, lake.scratch))
        self._timeless = 0
        self.last = LastValues()
        self.events = EventSpool(placed, self.last, Bounds(rows, spooled, lake.scratch))
        self._texts = TextTables(placed, directory, self.files, self.events, self.account)
        self._files = RunFiles(run, placed, self.files, self.events, self.account)
        self._changed: Counter[str] = Counter()
        self._malformed = 0
        self.parameters = Parameters(placed, watched)
        self.inherited = 0
        """Rows of ancestors that stand in front of the run's own."""

    def gather(self) -> None:
        """Read the run, once."""
        inherited = Inheritance(self._placed.lineage)
        for kind, rows in typed_rows(self._run, tuple(AttributeType)):
            inherited.own(kind, rows)
            if kind in PARAMETER_TYPES:
                self.parameters.add(kind, rows)
            elif kind is AttributeType.FLOAT_SERIES:
                self._points(rows)
            elif kind is AttributeType.HISTOGRAM_SERIES:
                self._histograms(rows)
            elif kind is AttributeType.STRING_SERIES:
                self._texts.add(rows)
            else:
                self._files.add(str(kind), rows)
        self._texts.end()
        for kind, rows in inherited.rows():
            self.inherited += rows.num_rows
            if kind is AttributeType.FLOAT_SERIES:
                self._points(rows, own=False)
            else:
                self._histograms(rows, own=False)
        self.account.mapped[str(AttributeType.FLOAT_SERIES)] += self._placed.survey.stepless[
            str(AttributeType.FLOAT_SERIES)
        ]
        for reason, count in sorted(self._changed.items()):
            self.account.notes.append(f"{count} histograms {reason}; {EXACT} has them as they were.")
        if self._malformed:
            self.account.notes.append(f"{self._malformed} histograms have no bins that fit together; {EXACT} has them.")
        if self.system.rows:
            self.account.notes.append(
                f"{self.system.rows} points stand in the system metrics by their time; {EXACT} has their steps."
            )
        if self._timeless:
            self.account.notes.append(
                f"{self._timeless} points of system metrics have no time from 1970 on; {EXACT} has them."
            )
        self.events.flush()

    def close(self) -> None:
        """Remove temporary files."""
        self.points.close()
        self.system.close()
        self.events.spool.close()

    def _points(self, rows: pa.RecordBatch, *, own: bool = True) -> None:
        kind = str(AttributeType.FLOAT_SERIES)
        local, names = codes(rows.column("attribute_path"))
        if self._system:
            monitored = np.array([(name, kind) in self._system for name in names], dtype=bool)[local]
            if own:
                self._system_points(rows.filter(pa.array(monitored)))
            rows = rows.filter(pa.array(~monitored))
            local, names = codes(rows.column("attribute_path"))
        numbers = np.array([self._numbers[name, kind] for name in names], dtype=np.int64)
        stepped = present(rows.column("step"))
        made = pa.RecordBatch.from_arrays(
            [
                pa.array(microsteps(rows.column("step"))),
                pa.array(numbers[local] if own else numbers[local] + len(self._numbers)),
                pa.array(milliseconds(rows.column("timestamp"))),
                plain(rows.column("float_value")).fill_null(float("nan")),
            ],
            schema=POINTS,
        )
        if not stepped.all():
            made = made.filter(pa.array(stepped))
        self._remember_last(made)
        self.points.add(made)
        if own:
            self.account.written[kind] += made.num_rows

    def _system_points(self, rows: pa.RecordBatch) -> None:
        """Take points of system metrics; those of ancestors stay with them, as they tell of another machine's work."""
        kind = str(AttributeType.FLOAT_SERIES)
        local, names = codes(rows.column("attribute_path"))
        numbers = np.array([self._system[name, kind] for name in names], dtype=np.int64)
        times = milliseconds(rows.column("timestamp"))
        values = plain(rows.column("float_value")).fill_null(float("nan"))
        there = placeable(times)
        made = pa.RecordBatch.from_arrays([pa.array(times), pa.array(numbers[local]), values], schema=SYSTEM)
        self.system.add(made.filter(pa.array(there)))
        self._timeless += len(there) - int(np.count_nonzero(there))
        # Those without a step are counted among all that have none.
        self.account.mapped[kind] += int(np.count_nonzero(present(rows.column("step"))))

    def _remember_last(self, batch: pa.RecordBatch) -> None:
        """Keep the value at the highest step of every key for the summary; rows come sorted by key and step."""
        if batch.num_rows == 0:
            return
        keys: Ints = batch.column("key").to_numpy()
        ends = np.append(np.flatnonzero(np.diff(keys)), len(keys) - 1)
        steps, values = batch.column("step").to_numpy()[ends], batch.column("value").to_numpy()[ends]
        for key, step, value in zip(keys[ends].tolist(), steps.tolist(), values.tolist(), strict=True):
            self.last.see(key % len(self._numbers), step, records.number_text(value))

    def _histograms(self, rows: pa.RecordBatch, *, own: bool = True) -> None:
        kind = str(AttributeType.HISTOGRAM_SERIES)
        for path, step, stepped, time, value in zip(
            plain(rows.column("attribute_path")).to_pylist(),
            microsteps(rows.column("step")).tolist(),
            present(rows.column("step")).tolist(),
            milliseconds(rows.column("timestamp")).tolist(),
            rows.column("histogram_value").to_pylist(),
            strict=True,
        ):
            made = histogram(value)
            if not own:
                if made is not None:
                    self.events.add(path, kind, step, time, made.json, counted=False)
                continue
            if not stepped or made is None:
                self._malformed += stepped
                self.account.mapped[kind] += 1
                continue
            (self.account.written if made.exact else self.account.mapped)[kind] += 1
            if not made.exact:
                self._changed[made.reason] += 1
            self.events.add(path, kind, step, time, made.json, counted=made.exact)
