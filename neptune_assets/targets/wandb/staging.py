"""Making the offline run of one Neptune run: every file of its directory, in the layout that ``wandb sync`` accepts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from neptune_assets.errors import TargetError
from neptune_assets.lake.external_sort import ExternalSorter
from neptune_assets.lake.rows import NONE, microsteps
from neptune_assets.schema import PARAMETER_TYPES, AttributeType
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.columns import Ints, codes, milliseconds, plain, series_values, typed_rows
from neptune_assets.targets.lineage import Inheritance
from neptune_assets.targets.lossless_copy import COPIED_TYPES, write_lossless_copy
from neptune_assets.targets.times import parsed
from neptune_assets.targets.wandb import artifacts, codec
from neptune_assets.targets.wandb.codec import LogWriter, seconds_text, step_text
from neptune_assets.targets.wandb.files import Account, FileStage, RunFiles, TextTables, histogram
from neptune_assets.targets.wandb.history import (
    POINTS,
    SYSTEM,
    EventSorter,
    HistoryEncoder,
    LastValues,
    SystemEncoder,
    placeable,
)
from neptune_assets.targets.wandb.mapping import (
    AXIS,
    EXACT,
    LINE_BYTES,
    MAX_NAME,
    MAX_TAG,
    Layout,
    Parameters,
    run_key,
    shorten,
)

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun


def _sorter_by(key: str, lake: LakeSettings) -> ExternalSorter:
    """Return a sorter by a column of int64, which holds a quarter of what may be used for sorting a run."""
    return ExternalSorter(
        lambda rows: [rows[key].to_numpy()],
        max_rows=min(lake.rows_in_memory, _STRETCH_ROWS),
        max_bytes=lake.sort_memory_mb << 18,
        scratch=lake.scratch,
    )


class RunExporter:
    """What a run consists of, on its way into one directory. One object, one run."""

    def __init__(self, run: LakeRun, placed: Layout, directory: Path, lake: LakeSettings, watched: str | None) -> None:
        """``watched`` is a parameter whose value is kept apart."""
        self._run, self._placed = run, placed
        self.files = FileStage(directory / "files")
        self.account = Account(rows_in=placed.survey.by_type())
        self._numbers = {key: number for number, key in enumerate(placed.keys)}
        self._system = {key: number for number, key in enumerate(placed.system)}
        self.points, self.system, events = (_sorter_by(key, lake) for key in ("step", "time", "step"))
        self._timeless = 0
        self.last = LastValues()
        self.events = EventSorter(placed, self.last, events)
        self._texts = TextTables(placed, directory, self.files, self.events, self.account)
        self._files = RunFiles(run, placed, self.files, self.events, self.account)
        self._changed: Counter[str] = Counter()
        self._malformed = 0
        self.parameters = Parameters(placed, watched)
        self.inherited = 0
        """Rows of ancestors that stand in front of the run's own."""

    def export(self) -> None:
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
        self.events.sorter.close()

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
        steps = microsteps(rows.column("step"))
        made = pa.RecordBatch.from_arrays(
            [
                pa.array(steps),
                pa.array(numbers[local] if own else numbers[local] + len(self._numbers)),
                pa.array(milliseconds(rows.column("timestamp"))),
                plain(rows.column("float_value")).fill_null(float("nan")),
            ],
            schema=POINTS,
        )
        if (steps == NONE).any():
            made = made.filter(pa.array(steps != NONE))
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
        self.account.mapped[kind] += len(rows) - rows.column("step").null_count

    def _remember_last(self, batch: pa.RecordBatch) -> None:
        """Keep the value at the highest step of every key for the summary; rows come sorted by key and step."""
        if batch.num_rows == 0:
            return
        keys: Ints = batch.column("key").to_numpy()
        ends = np.append(np.flatnonzero(np.diff(keys)), len(keys) - 1)
        steps, values = batch.column("step").to_numpy()[ends], batch.column("value").to_numpy()[ends]
        for key, step, value in zip(keys[ends].tolist(), steps.tolist(), values.tolist(), strict=True):
            self.last.see(key % len(self._numbers), step, codec.number_text(value))

    def _histograms(self, rows: pa.RecordBatch, *, own: bool = True) -> None:
        kind = str(AttributeType.HISTOGRAM_SERIES)
        for path, step, time, value in series_values(rows, AttributeType.HISTOGRAM_SERIES):
            made = histogram(value)
            if not own:
                if made is not None and step is not None:
                    self.events.add(path, kind, step, time, made.json, counted=False)
                continue
            if step is None or made is None:
                self._malformed += step is not None
                self.account.mapped[kind] += 1
                continue
            (self.account.written if made.exact else self.account.mapped)[kind] += 1
            if not made.exact:
                self._changed[made.reason] += 1
            self.events.add(path, kind, step, time, made.json, counted=made.exact)


_STRETCH_ROWS: Final = 1 << 18
"""Rows sorted at once, which are short: some 40 MB while they are."""
OURS: Final = "neptune_assets"
"""Directory of our own files below the run's, and key of our own entry in config and summary."""
STITCHED: Final = "stitched fork"
"""Tag of runs whose history begins with that of the runs they are forked from."""
INDEX: Final = f"{OURS}/index.json"


@dataclass(frozen=True, slots=True)
class Destination:
    """Which W&B run this is."""

    entity: str
    project: str
    run: str
    exporter_names: bool = False
    """True if runs are called as neptune-exporter called them: by their custom run id, if they have one."""
    job_type: str = ""
    artifacts_from: Path | None = None
    """Where the staged run will lie, if its file sets and artifacts are to be artifacts; None for run files."""
    entry: artifacts.ModelEntry | None = None
    """The model version that all files of the run are to be, instead of artifacts of their own."""
    group: str | None = None
    """The run's group, if it is not ``sys/name``."""
    job_type_attribute: str | None = None
    """Attribute whose value is the job type of runs that have it."""


class RunStage:
    """Builds one run in a directory of its own. One object, one run."""

    def __init__(self, run: LakeRun, placed: Layout, place: Destination, directory: Path, lake: LakeSettings) -> None:
        self._run, self._placed, self._place, self._directory = run, placed, place, directory
        self._exporter = RunExporter(run, placed, directory, lake, place.job_type_attribute)

    def build(self) -> Account:
        """Write the whole directory but its marker; return what became of the rows."""
        try:
            return self._build()
        finally:
            self._exporter.close()

    def _build(self) -> Account:
        (self._directory / "files" / OURS).mkdir(parents=True)
        account, found = self._exporter.account, self._placed.survey
        self._exporter.export()
        if self._exporter.inherited:
            account.notes.append(f"{self._exporter.inherited} rows of ancestors stand in front; they are not counted.")
        values = self._exporter.parameters
        account.written.update(values.written)
        account.mapped.update(values.mapped)
        for kind, rows in values.null.items():
            account.dropped[kind, "it has no value"] += rows
        if values.beyond:
            account.notes.append(
                f"{values.beyond} whole numbers are beyond 2^53: exact in the config, rounded in a browser."
            )
        self._write_log(values)
        account.bytes = sum(path.stat().st_size for path in self._directory.rglob("*") if path.is_file())
        if dict(found.by_type()) != dict(self._run.record.rows):
            raise TargetError(
                f"Run {self._run.run_id} has other rows than its manifest says.", hint="Materialize the lake again."
            )
        return account

    def _write_log(self, values: Parameters) -> None:
        import wandb

        place, placed, account = self._place, self._placed, self._exporter.account
        facts = values.system
        start = start_of(self._run, facts)
        tags, tag_notes = tags_of(facts)
        if self._exporter.inherited:
            tags = sorted({*tags, STITCHED})
        account.notes.extend(tag_notes)
        config = {**values.config, OURS: self._origin()}
        with LogWriter(self._directory / f"run-{place.run}.wandb") as log:
            self._append(log, codec.header(wandb.__version__))
            self._append(
                log,
                codec.run(
                    run_id=place.run,
                    entity=place.entity,
                    project=place.project,
                    name=shorten(self._name(facts), MAX_NAME, source=self._run.run_id),
                    group=shorten(self._group(facts), MAX_NAME),
                    job_type=shorten(self._job_type(values), MAX_NAME),
                    notes=str(facts.get("sys/description") or ""),
                    tags=tags,
                    config=config,
                    start_ms=start,
                ),
            )
            if placed.stepping.axis:
                for record in codec.step_axis(AXIS, sorted(self._series_keys())):
                    self._append(log, record)
            encoder = HistoryEncoder(list(placed.keys.values()), placed.stepping, start, log.records + 1)
            for row in encoder.records(self._exporter.points.sorted(), self._exporter.events.sorter.sorted(1_024)):
                log.append(row)
            result = encoder.result
            account.history_rows = result.rows
            system = SystemEncoder(list(placed.system.values()), log.records + 1)
            for row in system.records(self._exporter.system.sorted()):
                log.append(row)
            account.system_rows = system.rows
            self._other_times(result.other_time)
            for paths, media in ((self._own_files(), False), (sorted(set(self._exporter.files.media_paths)), True)):
                for begin in range(0, len(paths), 1_000):
                    self._append(log, codec.files(paths[begin : begin + 1_000], media=media))
            self._write_artifacts(log)
            self._append(log, codec.summary(self._last_line(result.last_step, result.last_time, start)))
            seconds = 0 if result.last_time is None or start is None else (result.last_time - start) // 1000
            # W&B keeps it in 32 bits; a clock with a wrong unit goes beyond.
            seconds = min(max(seconds, 0), 2**31 - 1)
            self._append(log, codec.finish(1 if facts.get("sys/failed") is True else 0, seconds))

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
        if self._exporter.inherited:
            origin["stitched"] = [
                {"run_id": item.run.run_id, "until": step_text(item.until)} for item in self._placed.lineage
            ]
        return origin

    def _name(self, system: Mapping[str, Any]) -> str:
        custom = system.get("sys/custom_run_id") if self._place.exporter_names else None
        return str(custom or self._run.run_id)

    def _group(self, system: Mapping[str, Any]) -> str:
        return str(system.get("sys/name") or "") if self._place.group is None else self._place.group

    def _job_type(self, values: Parameters) -> str:
        """Return the value of the attribute that the job type is taken from, or what stands for a run without it."""
        return str(values.watched.get(self._place.job_type_attribute or "") or self._place.job_type)

    def _other_times(self, other: Counter[str]) -> None:
        """Move rows whose time is not that of their row from written to mapped, and say so."""
        for kind, rows in sorted(other.items()):
            if kind and rows:
                self._exporter.account.written[kind] -= rows
                self._exporter.account.mapped[kind] += rows
                self._exporter.account.notes.append(
                    f"{rows} values of {kind} have a time of their own, or none, where W&B keeps one for each step; "
                    f"{EXACT} has each."
                )

    def _own_files(self) -> list[str]:
        """Write our own files, name the run files, and return the paths of both."""
        paths = self._exporter.files.finish()
        if self._place.artifacts_from is not None:
            apart = {
                file.path
                for file in self._exporter.files.staged
                if self._place.entry is not None or file.attribute_type in artifacts.TYPES
            }
            paths = [path for path in paths if path not in apart]
        if self._place.entry is not None:
            (self._directory / "files" / artifacts.IDENTITY).write_bytes(self._place.entry.identity)
        if any(self._exporter.account.mapped[str(kind)] for kind in COPIED_TYPES):
            write_lossless_copy(self._run, self._directory / "files" / EXACT)
            paths.append(EXACT)
        index = {
            "project_id": self._run.project_id,
            "run_id": self._run.run_id,
            "digest": self._run.record.digest,
            "names": [{"path": path, "type": kind, "key": key} for (path, kind), key in self._placed.keys.items()]
            + [{"path": path, "type": kind, "system": key} for (path, kind), key in self._placed.system.items()]
            + [
                {"path": path, "type": kind, "config": list(parts)}
                for (path, kind), parts in self._placed.config.items()
            ],
            "files": [
                asdict(file)
                for file in sorted(self._exporter.files.staged, key=lambda file: (file.path, file.attribute_path))
            ],
        }
        target = self._directory / "files" / INDEX
        target.write_text(json.dumps(index, ensure_ascii=False, indent=1), encoding="utf-8")
        return [*paths, INDEX]

    def _write_artifacts(self, log: LogWriter) -> None:
        place = self._place
        if place.artifacts_from is None:
            return
        (self._directory / artifacts.STAGING).mkdir()
        if place.entry is not None:
            version = artifacts.artifact_of(place.entry, self._exporter.files.staged, self._directory / "files")
            self._exporter.account.version = {"collection": version.name, "digest": version.digest}
            self._append(
                log,
                artifacts.version_record(
                    place.entry, version, entity=place.entity, project=place.project, directory=place.artifacts_from
                ),
            )
            return
        for made in artifacts.made_of(self._exporter.files.staged, place.run, self._directory / "files"):
            self._exporter.account.artifacts[made.name] = made.digest
            directory = place.artifacts_from
            self._append(
                log,
                artifacts.record(
                    made, entity=place.entity, project=place.project, wandb_run=place.run, directory=directory
                ),
            )

    def _last_line(self, step: int, time: int | None, start: int | None) -> dict[str, str]:
        """Return the summary: the last value of every key, and the digest that says the run is whole."""
        names = list(self._placed.keys.values())
        lines = {names[number]: text for number, (_, text) in sorted(self._exporter.last.by_key.items())}
        if sum(len(key) + len(text) for key, text in lines.items()) > LINE_BYTES:
            lines = {key: text for key, text in lines.items() if not text.startswith("{")}
        if sum(len(key) + len(text) for key, text in lines.items()) > LINE_BYTES:
            lines = {}
            self._exporter.account.notes.append("The summary holds no last values: W&B takes no summary of this size.")
        if step >= 0:
            lines["_step"] = str(step)
        if time is not None:
            lines["_timestamp"] = seconds_text(time)
            lines["_runtime"] = seconds_text(max(time - (time if start is None else start), 0))
        lines[OURS] = codec.json_text({"digest": self._run.record.digest})
        return lines


def start_of(run: LakeRun, system: dict[str, Any]) -> int | None:
    """Return when the run was created, in milliseconds; None if nothing says so."""
    moment = system.get("sys/creation_time")
    if isinstance(moment, int):
        return moment
    return None if run.record.created_at is None else parsed(run.record.created_at)


def tags_of(system: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the run's W&B tags, and notes on those that had to change. Group tags are told apart by ``group:``."""
    wanted = [str(tag) for tag in system.get("sys/tags") or ()]
    wanted += [f"group:{tag}" for tag in system.get("sys/group_tags") or ()]
    tags = sorted({shorten(tag, MAX_TAG) for tag in wanted if tag})
    notes = []
    if any(len(tag) > MAX_TAG or not tag for tag in wanted):
        notes.append(f"Tags that are empty or longer than {MAX_TAG} characters are whole in the config only.")
    return tags, notes
