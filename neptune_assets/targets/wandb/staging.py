"""Making the offline run of one Neptune run: every file of its directory, in the layout that ``wandb sync`` accepts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from neptune_assets.errors import FileGoneError, TargetError
from neptune_assets.lake.layout import format_step
from neptune_assets.schema import FILE_TYPES, SCHEMA, AttributeType
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.protocol import Dropped
from neptune_assets.targets.wandb import records
from neptune_assets.targets.wandb.columns import (
    NO_TIME,
    Ints,
    codes,
    microsteps,
    milliseconds,
    plain,
    present,
)
from neptune_assets.targets.wandb.history import EVENTS, POINTS, HistoryEncoder, item, seconds_text, step_text
from neptune_assets.targets.wandb.mapping import AXIS, LINE_BYTES, Layout, Parameters, parameters
from neptune_assets.targets.wandb.media import FileStage, StagedFile
from neptune_assets.targets.wandb.naming import MAX_NAME, MAX_TAG, run_key, shorten
from neptune_assets.targets.wandb.series import TableFile, Text, histogram, texts
from neptune_assets.targets.wandb.spool import SortedSpool
from neptune_assets.targets.wandb.transaction_log import LogWriter

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun

OURS: Final = "neptune_assets"
"""Directory of our own files below the run's, and key of our own entry in config and summary."""
INDEX: Final = f"{OURS}/index.json"
EXACT: Final = f"{OURS}/series.parquet"
_EXACT_TYPES: Final = {AttributeType.FLOAT_SERIES, AttributeType.HISTOGRAM_SERIES, AttributeType.FILE_SERIES}
_EVENT_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Which W&B run this is."""

    entity: str
    project: str
    run: str


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


class RunStage:
    """Builds one run in a directory of its own. One object, one run."""

    def __init__(self, run: LakeRun, placed: Layout, place: Place, directory: Path, lake: LakeSettings) -> None:
        self._run, self._placed, self._place = run, placed, place
        self._directory, self._files = directory, FileStage(directory / "files")
        self._numbers = {key: number for number, key in enumerate(placed.keys)}
        self._account = Account(rows_in=placed.survey.by_type())
        self._summary: dict[str, str] = {}
        self._changed: Counter[str] = Counter()
        self._points = SortedSpool(
            POINTS,
            ["step", "key"],
            limit_rows=lake.rows_in_memory,
            limit_bytes=1 << 40,
            memory_mb=lake.sort_memory_mb,
            scratch=lake.scratch,
        )
        self._events = SortedSpool(
            EVENTS,
            ["step", "key"],
            limit_rows=lake.rows_in_memory,
            limit_bytes=lake.sort_memory_mb << 18,
            memory_mb=lake.sort_memory_mb,
            scratch=lake.scratch,
        )
        self._pending: list[tuple[int, int, int, str, bytes]] = []
        self._pending_bytes = 0
        self._last_values: dict[int, tuple[int, str]] = {}

    def build(self) -> Account:
        """Write the whole directory but its marker; return what became of the rows."""
        try:
            return self._build()
        finally:
            self._points.close()
            self._events.close()

    def _build(self) -> Account:
        (self._directory / "files" / OURS).mkdir(parents=True)
        account, found = self._account, self._placed.survey
        values = parameters(self._run, self._placed)
        account.written.update(values.written)
        account.mapped.update(values.mapped)
        for kind, rows in values.null.items():
            account.dropped[kind, "it has no value"] += rows
        if values.beyond:
            account.notes.append(
                f"{values.beyond} whole numbers are beyond 2^53: exact in the config, rounded in a browser."
            )
        self._gather_points()
        self._gather_histograms()
        self._gather_texts()
        self._gather_files()
        self._flush_events()
        self._write_log(values)
        account.bytes = sum(path.stat().st_size for path in self._directory.rglob("*") if path.is_file())
        if dict(found.by_type()) != dict(self._run.record.rows):
            raise TargetError(
                f"Run {self._run.run_id} has other rows than its manifest says.", hint="Materialize the lake again."
            )
        return account

    # -- gathering

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
            self._points.add(made)
        stepless = self._placed.survey.stepless[kind]
        self._account.mapped[kind] += stepless
        self._account.written[kind] += self._points.rows

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
        if key not in self._last_values or self._last_values[key][0] <= step:
            self._last_values[key] = (step, text)

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
                    self._account.mapped[kind] += 1
                    continue
                if made is None:
                    malformed += 1
                    self._account.mapped[kind] += 1
                    continue
                (self._account.written if made.exact else self._account.mapped)[kind] += 1
                if not made.exact:
                    reasons[made.reason] += 1
                self._event(path, kind, step, time, made.json, counted=made.exact)
        for reason, rows in sorted(reasons.items()):
            self._account.notes.append(f"{rows} histograms {reason}; {EXACT} has them as they were.")
        if malformed:
            self._account.notes.append(f"{malformed} histograms have no bins that fit together; {EXACT} has them.")

    def _gather_texts(self) -> None:
        kind, table, path = str(AttributeType.STRING_SERIES), None, None
        for text in texts(self._run):
            if table is not None and (text.path != path or table.full):
                self._close_table(table, str(path))
                table = None
            if table is None:
                table, path = TableFile(self._directory / "files" / ".table"), text.path
            table.add(text)
            self._account.mapped[kind] += 1
        if table is not None:
            self._close_table(table, str(path))

    def _close_table(self, table: TableFile, path: str) -> None:
        from neptune_assets.targets.wandb.media import Copy

        kind = str(AttributeType.STRING_SERIES)
        size, sha256 = table.close()
        last = table.last or Text(path, None, None, None)
        step = self._placed.survey.highest if last.step is None else last.step
        key = self._placed.keys[path, kind]
        copy = Copy(self._directory / "files" / ".table", size, sha256, "json")
        where = self._files.place_media(
            copy, key, "table", "table.json", StagedFile(path, kind, "", size, sha256, step)
        )
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
                    self._account.dropped[kind, "it names no file"] += 1
                elif kind == AttributeType.FILE_SET:
                    self._file_set(path, kind)
                else:
                    self._file(path, kind, where, step if stepped else None, time)

    def _file(self, path: str, kind: str, where: str, step: int | None, time: int) -> None:
        expected = {record.path: record.sha256 for record in self._run.file_records(path)}
        try:
            with self._run.open_file(where) as source:
                copy = self._files.copy(source, where)
        except FileGoneError:
            self._account.dropped[kind, "its file is not in the lake"] += 1
            return
        self._same(path, copy.sha256, expected.get(where))
        staged = StagedFile(path, kind, "", 0, "", step)
        facts = None
        if kind in {AttributeType.FILE, AttributeType.FILE_SERIES}:
            facts = self._files.media(copy, self._placed.keys[path, kind], staged)
        if facts is None:
            self._files.keep(copy, path if step is None else f"{path}/step_{format_step(step)}", staged)
            (self._account.mapped if kind == AttributeType.FILE_SERIES else self._account.written)[kind] += 1
            return
        self._account.written[kind] += 1
        at = self._placed.survey.highest if step is None else step
        self._event(path, kind, at, time, records.json_text(facts), counted=kind == AttributeType.FILE_SERIES)

    def _file_set(self, path: str, kind: str) -> None:
        members = [record for record in self._run.file_records(path) if record.attribute_type == kind]
        if not members:
            self._account.dropped[kind, "its files are not in the lake"] += 1
            return
        for record in members:
            with self._run.open_file(record.path) as source:
                copy = self._files.copy(source, record.member or record.path)
            self._same(path, copy.sha256, record.sha256)
            copy.extension = ""  # a member keeps its own name
            name = record.member or record.path.rpartition("/")[2]
            self._files.keep(copy, f"{path}/{name}", StagedFile(path, kind, "", 0, "", None, name))
        self._account.written[kind] += 1

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
            self._events.add(pa.RecordBatch.from_arrays(columns, schema=EVENTS))
            self._pending, self._pending_bytes = [], 0

    # -- writing

    def _write_log(self, values: Parameters) -> None:
        import wandb

        place, placed, account = self._place, self._placed, self._account
        system = values.system
        start = start_of(self._run, system)
        tags, tag_notes = tags_of(system)
        account.notes.extend(tag_notes)
        config = {**values.config, OURS: self._origin()}
        with LogWriter(self._directory / f"run-{place.run}.wandb") as log:
            self._append(log, records.header(wandb.__version__))
            self._append(
                log,
                records.run(
                    run_id=place.run,
                    entity=place.entity,
                    project=place.project,
                    name=shorten(self._run.run_id, MAX_NAME),
                    group=shorten(str(system.get("sys/name") or ""), MAX_NAME),
                    notes=str(system.get("sys/description") or ""),
                    tags=tags,
                    config=config,
                    start_ms=start,
                ),
            )
            if placed.stepping.axis:
                for record in records.step_axis(AXIS, sorted(self._series_keys())):
                    self._append(log, record)
            encoder = HistoryEncoder(list(placed.keys.values()), placed.stepping, start, log.records + 1)
            for row in encoder.records(self._points.sorted(), self._events.sorted(1_024)):
                log.append(row)
            result = encoder.result
            account.history_rows = result.rows
            self._other_times(result.other_time)
            for paths, media in ((self._own_files(), False), (sorted(set(self._files.media_paths)), True)):
                for begin in range(0, len(paths), 1_000):
                    self._append(log, records.files(paths[begin : begin + 1_000], media=media))
            self._append(log, records.summary(self._last_line(result.last_step, result.last_time, start)))
            seconds = 0 if result.last_time is None or start is None else (result.last_time - start) // 1000
            self._append(log, records.finish(1 if system.get("sys/failed") is True else 0, seconds))

    def _append(self, log: LogWriter, record: Any) -> None:
        record.num = log.records + 1
        log.append(record.SerializeToString(deterministic=True))

    def _series_keys(self) -> Iterator[str]:
        files = str(AttributeType.FILE)
        return (key for (_, kind), key in self._placed.keys.items() if kind != files)

    def _origin(self) -> dict[str, Any]:
        """Return where the run comes from: our own entry in the config."""
        record = self._run.record
        origin: dict[str, Any] = {
            "project_id": self._run.project_id,
            "run_id": self._run.run_id,
            "names": INDEX,
            "step_multiplier": self._placed.stepping.multiplier,
        }
        if self._placed.stepping.axis:
            origin["step_key"] = AXIS
        if record.parent is not None:
            origin["parent"] = record.parent
            origin["parent_run"] = run_key(self._run.project_id, record.parent)
            if record.fork_step is not None:
                origin["fork_step"] = step_text(record.fork_step)
        return origin

    def _other_times(self, other: Counter[str]) -> None:
        """Move rows whose time is not that of their row from written to mapped, and say so."""
        for kind, rows in sorted(other.items()):
            if kind and rows:
                self._account.written[kind] -= rows
                self._account.mapped[kind] += rows
                self._account.notes.append(
                    f"{rows} values of {kind} have a time of their own, or none, where W&B keeps one for each step; "
                    f"{EXACT} has each."
                )

    def _own_files(self) -> list[str]:
        """Write our own files, name the run files, and return the paths of both."""
        paths = self._files.finish()
        if any(self._account.mapped[str(kind)] for kind in _EXACT_TYPES):
            self._write_exact()
            paths.append(EXACT)
        index = {
            "project_id": self._run.project_id,
            "run_id": self._run.run_id,
            "digest": self._run.record.digest,
            "names": [{"path": path, "type": kind, "key": key} for (path, kind), key in self._placed.keys.items()]
            + [
                {"path": path, "type": kind, "config": list(parts)}
                for (path, kind), parts in self._placed.config.items()
            ],
            "files": [
                asdict(file) for file in sorted(self._files.staged, key=lambda file: (file.path, file.attribute_path))
            ],
        }
        target = self._directory / "files" / INDEX
        target.write_text(json.dumps(index, ensure_ascii=False, indent=1), encoding="utf-8")
        return [*paths, INDEX]

    def _write_exact(self) -> None:
        """Keep metrics, histograms and file series once more, with every step, time and value as they were."""
        columns = [
            "attribute_path",
            "attribute_type",
            "step",
            "timestamp",
            "float_value",
            "histogram_value",
            "file_value",
        ]
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        encoding = {
            "step": "DELTA_BINARY_PACKED",
            "timestamp": "DELTA_BINARY_PACKED",
            "float_value": "BYTE_STREAM_SPLIT",
        }
        with pq.ParquetWriter(
            self._directory / "files" / EXACT,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=["attribute_path", "attribute_type"],
            column_encoding=encoding,
            store_decimal_as_integer=True,
        ) as writer:
            for batch in self._run.batches(types=_EXACT_TYPES, columns=columns):
                writer.write_batch(batch.cast(schema))

    def _last_line(self, step: int, time: int | None, start: int | None) -> dict[str, str]:
        """Return the summary: the last value of every key, and the digest that says the run is whole."""
        names = list(self._placed.keys.values())
        lines = {names[number]: text for number, (_, text) in sorted(self._last_values.items())}
        if sum(len(key) + len(text) for key, text in lines.items()) > LINE_BYTES:
            lines = {key: text for key, text in lines.items() if not text.startswith("{")}
        if sum(len(key) + len(text) for key, text in lines.items()) > LINE_BYTES:
            lines = {}
            self._account.notes.append("The summary holds no last values: W&B takes no summary of this size.")
        if step >= 0:
            lines["_step"] = str(step)
        if time is not None:
            lines["_timestamp"] = seconds_text(time)
            lines["_runtime"] = seconds_text(max(time - (time if start is None else start), 0))
        lines[OURS] = records.json_text({"digest": self._run.record.digest})
        return lines


def start_of(run: LakeRun, system: dict[str, Any]) -> int | None:
    """Return when the run was created, in milliseconds; None if nothing says so."""
    from datetime import datetime

    moment = system.get("sys/creation_time")
    if not isinstance(moment, datetime):
        if run.record.created_at is None:
            return None
        moment = datetime.fromisoformat(run.record.created_at)
    return round(moment.timestamp() * 1000)


def tags_of(system: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the run's W&B tags, and notes on those that had to change. Group tags are told apart by ``group:``."""
    wanted = [str(tag) for tag in system.get("sys/tags") or ()]
    wanted += [f"group:{tag}" for tag in system.get("sys/group_tags") or ()]
    tags = sorted({shorten(tag, MAX_TAG) for tag in wanted if tag})
    notes = []
    if any(len(tag) > MAX_TAG or not tag for tag in wanted):
        notes.append(f"Tags that are empty or longer than {MAX_TAG} characters are whole in the config only.")
    return tags, notes
