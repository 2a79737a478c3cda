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
from neptune_assets.schema import FILE_TYPES, AttributeType
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.protocol import Dropped
from neptune_assets.targets.wandb import records
from neptune_assets.targets.wandb.columns import NO_TIME, Ints, codes, microsteps, milliseconds, plain, present
from neptune_assets.targets.wandb.history import EVENTS, POINTS, item
from neptune_assets.targets.wandb.mapping import Layout
from neptune_assets.targets.wandb.media import Copy, FileStage, StagedFile
from neptune_assets.targets.wandb.series import TableFile, Text, histogram, texts
from neptune_assets.targets.wandb.spool import SortedSpool

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
        self.files = FileStage(directory / "files")
        self.account = Account(rows_in=placed.survey.by_type())
        self._numbers = {key: number for number, key in enumerate(placed.keys)}
        self.points = SortedSpool(
            POINTS,
            ["step", "key"],
            limit_rows=lake.rows_in_memory,
            limit_bytes=1 << 40,
            memory_mb=lake.sort_memory_mb,
            scratch=lake.scratch,
        )
        self.events = SortedSpool(
            EVENTS,
            ["step", "key"],
            limit_rows=lake.rows_in_memory,
            limit_bytes=lake.sort_memory_mb << 18,
            memory_mb=lake.sort_memory_mb,
            scratch=lake.scratch,
        )
        self._pending: list[tuple[int, int, int, str, bytes]] = []
        self._pending_bytes = 0
        self.last_values: dict[int, tuple[int, str]] = {}

    def gather(self) -> None:
        """Read everything but the parameters."""
        self._gather_points()
        self._gather_histograms()
        self._gather_texts()
        self._gather_files()
        self._flush_events()

    def close(self) -> None:
        """Remove temporary files."""
        self.points.close()
        self.events.close()

    def _gather_points(self) -> None:
        kind = str(AttributeType.FLOAT_SERIES)
        for batch in self._run.batches(
            types={AttributeType.FLOAT_SERIES}, columns=["attribute_path", "step", "timestamp", "float_value"]
        ):
            local, names = codes(batch.column("attribute_path"))
            numbers = np.array([self._numbers[name, kind] for name in names], dtype=np.int64)
            stepped = present(batch.column("step"))
            values = plain(batch.column("float_value")).fill_null(float("nan"))
            made = pa.RecordBatch.from_arrays(
                [
                    pa.array(microsteps(batch.column("step"))),
                    pa.array(numbers[local]),
                    pa.array(milliseconds(batch.column("timestamp"))),
                    values,
                ],
                schema=POINTS,
            )
            if not stepped.all():
                made = made.filter(pa.array(stepped))
            self._remember_last(made)
            self.points.add(made)
        stepless = self._placed.survey.stepless[kind]
        self.account.mapped[kind] += stepless
        self.account.written[kind] += self.points.rows

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
        if key not in self.last_values or self.last_values[key][0] <= step:
            self.last_values[key] = (step, text)

    def _gather_histograms(self) -> None:
        kind = str(AttributeType.HISTOGRAM_SERIES)
        columns = ["attribute_path", "step", "timestamp", "histogram_value"]
        malformed = 0
        reasons: Counter[str] = Counter()
        for batch in self._run.batches(types={AttributeType.HISTOGRAM_SERIES}, columns=columns, batch_rows=1_024):
            for path, step, stepped, time, value in zip(
                plain(batch.column("attribute_path")).to_pylist(),
                microsteps(batch.column("step")).tolist(),
                present(batch.column("step")).tolist(),
                milliseconds(batch.column("timestamp")).tolist(),
                batch.column("histogram_value").to_pylist(),
                strict=True,
            ):
                made = histogram(value)
                if not stepped:
                    self.account.mapped[kind] += 1
                    continue
                if made is None:
                    malformed += 1
                    self.account.mapped[kind] += 1
                    continue
                (self.account.written if made.exact else self.account.mapped)[kind] += 1
                if not made.exact:
                    reasons[made.reason] += 1
                self._event(path, kind, step, time, made.json, counted=made.exact)
        for reason, rows in sorted(reasons.items()):
            self.account.notes.append(f"{rows} histograms {reason}; {EXACT} has them as they were.")
        if malformed:
            self.account.notes.append(f"{malformed} histograms have no bins that fit together; {EXACT} has them.")

    def _gather_texts(self) -> None:
        kind, table, path = str(AttributeType.STRING_SERIES), None, None
        for text in texts(self._run):
            if table is not None and (text.path != path or table.full):
                self._close_table(table, str(path))
                table = None
            if table is None:
                table, path = TableFile(self._directory / "files" / ".table"), text.path
            table.add(text)
            self.account.mapped[kind] += 1
        if table is not None:
            self._close_table(table, str(path))

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

    def _gather_files(self) -> None:
        columns = ["attribute_path", "attribute_type", "step", "timestamp", "file_value"]
        for batch in self._run.batches(types=FILE_TYPES, columns=columns):
            for path, kind, step, stepped, time, value in zip(
                plain(batch.column("attribute_path")).to_pylist(),
                plain(batch.column("attribute_type")).to_pylist(),
                microsteps(batch.column("step")).tolist(),
                present(batch.column("step")).tolist(),
                milliseconds(batch.column("timestamp")).tolist(),
                batch.column("file_value").to_pylist(),
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
            self.files.keep(copy, path if step is None else f"{path}/step_{format_step(step)}", staged)
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
            self.files.keep(copy, f"{path}/{name}", StagedFile(path, kind, "", 0, "", None, name))
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
