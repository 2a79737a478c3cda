"""Collecting a run from the lake: points and events into sorted spools, texts into tables, files into their places."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from neptune_assets.errors import FileGoneError, TargetError
from neptune_assets.lake.layout import format_step
from neptune_assets.schema import PARAMETER_TYPES, AttributeType
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.protocol import Dropped
from neptune_assets.targets.ruled import wanted_name
from neptune_assets.targets.wandb import records
from neptune_assets.targets.wandb.columns import NO_TIME, Ints, codes, microsteps, milliseconds, plain, present
from neptune_assets.targets.wandb.encoding import EVENTS, item
from neptune_assets.targets.wandb.history import POINTS
from neptune_assets.targets.wandb.lineage import Inheritance
from neptune_assets.targets.wandb.mapping import Layout, Parameters
from neptune_assets.targets.wandb.media import Copy, FileStage, StagedFile
from neptune_assets.targets.wandb.rows import typed_rows
from neptune_assets.targets.wandb.series import TableFile, Text, histogram, texts
from neptune_assets.targets.wandb.spool import STRETCH_ROWS, Bounds, SortedSpool

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun

EXACT: Final = "neptune_assets/series.parquet"
"""Run file with metrics, histograms and file series as they were, where W&B cannot hold them exactly."""
_EVENT_BYTES: Final = 4 << 20


@dataclass(slots=True)
class Account:
    """What became of every row, and what has to be said of it."""

    rows_in: dict[str, int] = field(default_factory=dict)
    written: Counter[str] = field(default_factory=Counter)
    mapped: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    history_rows: int = 0
    bytes: int = 0

    def drops(self) -> tuple[Dropped, ...]:
        """Return dropped rows as the receipt has them."""
        return tuple(Dropped(kind, reason, rows) for (kind, reason), rows in sorted(self.dropped.items()))


class Gathering:
    """What a run consists of, on its way into one directory. One object, one run."""

    def __init__(self, run: LakeRun, placed: Layout, directory: Path, lake: LakeSettings) -> None:
        self._run, self._placed, self._directory = run, placed, directory
        self._wanted = wanted_name(run)
        self.files = FileStage(directory / "files")
        self.account = Account(rows_in=placed.survey.by_type())
        self._numbers = {key: number for number, key in enumerate(placed.keys)}
        rows, spooled = min(lake.rows_in_memory, STRETCH_ROWS), lake.sort_memory_mb << 18
        self.points = SortedSpool(POINTS, "step", Bounds(rows, spooled, lake.scratch))
        self.events = SortedSpool(EVENTS, "step", Bounds(rows, spooled, lake.scratch))
        self._pending: list[tuple[int, int, int, str, bytes]] = []
        self._pending_bytes = 0
        self._changed: Counter[str] = Counter()
        self._malformed = 0
        self._table: TableFile | None = None
        self.parameters = Parameters(placed)
        self.inherited = 0
        """Rows of ancestors that stand in front of the run's own."""
        self.last_values: dict[int, tuple[int, str]] = {}

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
                self._texts(rows)
            else:
                self._files(str(kind), rows)
        self._end_table()
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
        self._flush_events()

    def close(self) -> None:
        """Remove temporary files."""
        self.points.close()
        self.events.close()

    def _points(self, rows: pa.RecordBatch, *, own: bool = True) -> None:
        kind = str(AttributeType.FLOAT_SERIES)
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

    def _remember_last(self, batch: pa.RecordBatch) -> None:
        """Keep the value at the highest step of every key for the summary; rows come sorted by key and step."""
        if batch.num_rows == 0:
            return
        keys: Ints = batch.column("key").to_numpy()
        ends = np.append(np.flatnonzero(np.diff(keys)), len(keys) - 1)
        steps, values = batch.column("step").to_numpy()[ends], batch.column("value").to_numpy()[ends]
        for key, step, value in zip(keys[ends].tolist(), steps.tolist(), values.tolist(), strict=True):
            self._last(key, step, records.number_text(value))

    def _last(self, key: int, step: int, text: str) -> None:
        key %= len(self._numbers)
        if key not in self.last_values or self.last_values[key][0] <= step:
            self.last_values[key] = (step, text)

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
                    self._event(path, kind, step, time, made.json, counted=False)
                continue
            if not stepped or made is None:
                self._malformed += stepped
                self.account.mapped[kind] += 1
                continue
            (self.account.written if made.exact else self.account.mapped)[kind] += 1
            if not made.exact:
                self._changed[made.reason] += 1
            self._event(path, kind, step, time, made.json, counted=made.exact)

    def _texts(self, rows: pa.RecordBatch) -> None:
        kind = str(AttributeType.STRING_SERIES)
        for text in texts(rows):
            if self._table is not None and (text.path != self._table.name or self._table.full):
                self._end_table()
            if self._table is None:
                self._table = TableFile(self._directory / "files" / ".table", text.path)
            self._table.add(text)
            self.account.mapped[kind] += 1

    def _end_table(self) -> None:
        if self._table is not None:
            self._close_table(self._table, self._table.name)
            self._table = None

    def _close_table(self, table: TableFile, path: str) -> None:
        kind = str(AttributeType.STRING_SERIES)
        size, sha256 = table.close()
        last = table.last or Text(path, None, None, None)
        step = self._placed.survey.highest if last.step is None else last.step
        key = self._placed.keys[path, kind]
        copy = Copy(self._directory / "files" / ".table", size, sha256, "json")
        where = self.files.place_media(copy, key, "table", "table.json", StagedFile(path, kind, "", size, sha256, step))
        facts = {
            "_type": "table-file",
            "path": where,
            "sha256": sha256,
            "size": size,
            "ncols": 3,
            "nrows": table.rows,
            "log_mode": "IMMUTABLE",
        }
        self._event(
            path, kind, step, NO_TIME if last.time is None else last.time, records.json_text(facts), counted=False
        )

    def _files(self, kind: str, rows: pa.RecordBatch) -> None:
        for path, step, stepped, time, value in zip(
            plain(rows.column("attribute_path")).to_pylist(),
            microsteps(rows.column("step")).tolist(),
            present(rows.column("step")).tolist(),
            milliseconds(rows.column("timestamp")).tolist(),
            rows.column("file_value").to_pylist(),
            strict=True,
        ):
            where = None if value is None else value["path"]
            if where is None:
                self.account.dropped[kind, "it names no file"] += 1
            elif kind == AttributeType.FILE_SET:
                self._file_set(path, kind)
            else:
                self._file(path, kind, where, step if stepped else None, time)

    def _file(self, path: str, kind: str, where: str, step: int | None, time: int) -> None:
        expected = {record.path: record.sha256 for record in self._run.file_records(path)}
        try:
            with self._run.open_file(where) as source:
                copy = self.files.copy(source, where)
        except FileGoneError:
            self.account.dropped[kind, "its file is not in the lake"] += 1
            return
        self._same(path, copy.sha256, expected.get(where))
        staged = StagedFile(path, kind, "", 0, "", step)
        facts = None
        if kind in {AttributeType.FILE, AttributeType.FILE_SERIES}:
            facts = self.files.media(copy, self._placed.keys[path, kind], staged)
        if facts is None:
            name = self._wanted(path)
            self.files.keep(copy, name if step is None else f"{name}/step_{format_step(step)}", staged)
            (self.account.mapped if kind == AttributeType.FILE_SERIES else self.account.written)[kind] += 1
            return
        self.account.written[kind] += 1
        at = self._placed.survey.highest if step is None else step
        self._event(path, kind, at, time, records.json_text(facts), counted=kind == AttributeType.FILE_SERIES)

    def _file_set(self, path: str, kind: str) -> None:
        members = [record for record in self._run.file_records(path) if record.attribute_type == kind]
        if not members:
            self.account.dropped[kind, "its files are not in the lake"] += 1
            return
        for record in members:
            with self._run.open_file(record.path) as source:
                copy = self.files.copy(source, record.member or record.path)
            self._same(path, copy.sha256, record.sha256)
            copy.extension = ""  # a member keeps its own name
            name = record.member or record.path.rpartition("/")[2]
            self.files.keep(copy, f"{self._wanted(path)}/{name}", StagedFile(path, kind, "", 0, "", None, name))
        self.account.written[kind] += 1

    def _same(self, path: str, sha256: str, expected: str | None) -> None:
        if expected is not None and sha256 != expected:
            raise TargetError(
                f"The file of {path!r} in run {self._run.run_id} is not the one the lake's manifest knows.",
                hint="Materialize the lake again; a file of it was changed.",
            )

    def _event(self, path: str, kind: str, step: int, time: int, text: str, *, counted: bool) -> None:
        """Take a value other than a number; ``counted`` if a time that is not the row's makes it a mapped one."""
        number = self._numbers[path, kind]
        encoded = item(self._placed.keys[path, kind], text)
        self._pending.append((step, number, time, kind if counted else "", encoded))
        self._pending_bytes += len(encoded)
        self._last(number, step, text)
        if self._pending_bytes > _EVENT_BYTES or len(self._pending) >= 4_096:
            self._flush_events()

    def _flush_events(self) -> None:
        if self._pending:
            columns = [
                pa.array(values, field.type)
                for values, field in zip(zip(*self._pending, strict=True), EVENTS, strict=True)
            ]
            self.events.add(pa.RecordBatch.from_arrays(columns, schema=EVENTS))
            self._pending, self._pending_bytes = [], 0
