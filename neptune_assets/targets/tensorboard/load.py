"""The TensorBoard target: an event file for each run with its files and an exact copy, put in place as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow.parquet as pq

from neptune_assets.errors import SettingsError, TargetError, UnknownProjectError
from neptune_assets.lake.layout import safe_name
from neptune_assets.lake.rows import NONE, microsteps
from neptune_assets.protobuf_columns import FIXED64, VARINT, field_bytes, field_tag, varint
from neptune_assets.schema import FILE_TYPES, SERIES_TYPES, AttributeType
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.checksums import SeriesChecksums
from neptune_assets.targets.columns import NO_TIME, codes, milliseconds, plain, series_values, typed_rows
from neptune_assets.targets.lineage import INHERITED, Inheritance, ancestors, chain
from neptune_assets.targets.lossless_copy import write_lossless_copy
from neptune_assets.targets.profile import ValueCounts, unsupported_values
from neptune_assets.targets.protocol import Plan, Receipt, RowCounts, TargetRun, UnsupportedValues, Verdict
from neptune_assets.targets.rules import wanted_name
from neptune_assets.targets.staged import StagedDirectories
from neptune_assets.targets.tensorboard import events
from neptune_assets.targets.tensorboard.events import EventWriter, Points, Value, read_events
from neptune_assets.targets.tensorboard.mapping import (
    COPY,
    OURS,
    OUTCOMES,
    Layout,
    layout,
    parameter_value,
    plain_run,
    plan_of,
    start_of,
)
from neptune_assets.targets.tensorboard.settings import TensorboardSettings

if TYPE_CHECKING:
    import pyarrow as pa

    from neptune_assets.lake.reader import LakeRun

INDEX: Final = f"{OURS}/index.json"
"""Written last: whose run it is, its digest and receipt, and what its attributes are called."""
FORMAT: Final = 1
"""Raised when the same run would be written differently; runs of an older format are written anew."""
_MAX_PICTURE: Final = 32 << 20
"""Bytes of a picture that becomes an event, which is in memory as a whole; larger ones are files only."""
_PICTURES: Final = frozenset({"PNG", "JPEG", "GIF"})
_MAX_SAID: Final = 20
_ROWS: Final = 65_536


class TensorboardTarget:
    """TensorBoard as a :class:`~neptune_assets.targets.protocol.Target`: a directory of ``<project>/<run>/``."""

    name = "tensorboard"

    def __init__(self, settings: TensorboardSettings, lake: LakeSettings) -> None:
        self._settings, self._lake = settings, lake
        root = (settings.directory or f"{lake.root}/tensorboard").removeprefix("file://")
        if "://" in root:
            raise SettingsError(
                f"The lake at {lake.root} is not local, and TensorBoard's runs are written to a local disk.",
                hint="Set targets.tensorboard.directory to a local directory.",
            )
        self._root = Path(root).expanduser().absolute()

    def check(self) -> None:
        """Raise TargetError if the directory cannot be written."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TargetError(
                f"Runs cannot be written to {self._root}: {error.strerror}.",
                hint="Set targets.tensorboard.directory to a directory that can be written.",
            ) from error

    def plan(self, run: LakeRun) -> Plan:
        """Say what loading the run will do. Writes nothing."""
        return plan_of(run, self._layout(run))

    def is_new(self) -> bool:
        """True if nothing was ever written."""
        return not self._root.exists()

    def unsupported_values(self, values: ValueCounts, plan: Plan) -> Sequence[UnsupportedValues]:
        """Say which of a run's values TensorBoard cannot hold, and what becomes of them."""
        return unsupported_values(values, OUTCOMES)

    def find(self, project_id: str, run_id: str) -> TargetRun | None:
        """Find a run by its directory; its digest is None if it would be written differently now."""
        directory = self._directory(project_id, run_id)
        if not directory.exists():
            return None
        index = _read_index(directory)
        if index is not None and (index["project_id"], index["run_id"]) != (project_id, run_id):
            raise TargetError(
                f"The directory of run {run_id!r}, {directory}, is that of {index['run_id']!r}.",
                hint="Move it away, then load again.",
            )
        whole = index is not None and index["choices"] == self._choices(project_id, run_id)
        return TargetRun(project_id, run_id, self._target_id(directory), index["digest"] if whole and index else None)

    def replace(self, run: LakeRun, plan: Plan) -> Receipt:
        """Write exactly this run aside, then put it in the place of what was there."""
        placed, place = self._layout(run), self._directory(run.project_id, run.run_id)
        found = self.find(run.project_id, run.run_id)
        project = self._project(run.project_id)
        directory = project.new()
        try:
            counts = RowCounts(notes=list(plan.notes))
            content = _Content(run, placed, directory, counts)
            content.copy_files()
            (directory / OURS).mkdir()
            write_lossless_copy(run, directory / COPY, SERIES_TYPES)
            with EventWriter(directory / content.event_file, content.start / 1000) as writer:
                for item in content.items():
                    if isinstance(item, Points):
                        writer.scalars(item.tag, item.steps, item.walls, item.values)
                    else:
                        writer.add(item.tag, item.step, item.wall, item.content)
            content.note()
            size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
            receipt = counts.receipt(run, self._target_id(place), bytes_written=size, checks={})
            index = {
                "format": FORMAT,
                "project_id": run.project_id,
                "run_id": run.run_id,
                "digest": run.record.digest,
                "choices": self._choices(run.project_id, run.run_id),
                "step_multiplier": placed.multiplier,
                "tags": [[*item, tag] for item, tag in placed.tags.items()],
                "parameters": [[*item, name] for item, name in placed.parameters.items()],
                "files": [{**asdict(item), "path": name} for item, name in placed.files.items()],
                "receipt": asdict(receipt),
            }
            (directory / INDEX).write_text(json.dumps(index, ensure_ascii=False, indent=1), encoding="utf-8")
            project.publish(directory, place.name, [] if found is None else [place])
            return receipt
        finally:
            if directory.exists():
                rmtree(directory)

    def verify(self, run: LakeRun, receipt: Receipt) -> Verdict:
        """Read every record, the copy and all files back, and compare them with the lake."""
        found = self.find(run.project_id, run.run_id)
        if found is None or found.digest != receipt.digest or receipt.digest != run.record.digest:
            return Verdict(run.run_id, ("the run in TensorBoard's directory is not of the digest that was loaded",))
        content = _Content(run, self._layout(run), self._directory(run.project_id, run.run_id), RowCounts())
        return Verdict(run.run_id, tuple(content.differences())[:_MAX_SAID])

    def remove(self, project_id: str, run_id: str) -> None:
        """Remove the run's directory."""
        found = self.find(project_id, run_id)
        if found is not None:
            self._project(project_id).discard(self._directory(project_id, run_id))

    def runs(self, project_id: str) -> Iterator[TargetRun]:
        """Yield every run of the project that was written."""
        path = self._project(project_id).path
        for directory in sorted(path.iterdir()) if path.is_dir() else ():
            index = _read_index(directory)
            found = None if index is None else self.find(project_id, index["run_id"])
            if found is not None:
                yield found

    def sweep(self, project_id: str) -> None:
        """Remove the directories in which killed loads of this project wrote runs."""
        self._project(project_id).sweep()

    def close(self) -> None:
        """Nothing is held open."""

    def _project(self, project_id: str) -> StagedDirectories:
        # TensorBoard shows every event file below its directory, so runs that are not whole are made beside it.
        name = safe_name(project_id)
        return StagedDirectories(self._root / name, self._root.with_name(f".{self._root.name}.staging") / name)

    def _directory(self, project_id: str, run_id: str) -> Path:
        return self._project(project_id).path / (run_id if plain_run(run_id) else safe_name(run_id))

    def _target_id(self, directory: Path) -> str:
        """Return what TensorBoard calls the run."""
        return directory.relative_to(self._root).as_posix()

    def _layout(self, run: LakeRun) -> Layout:
        key = (Layout, run.project_id, self._settings.forks)
        if key not in run.derived:
            lineage = ancestors(run) if self._settings.forks == "stitched" else ()
            run.derived[key] = layout(run, wanted_name(run), lineage)
        placed: Layout = run.derived[key]
        return placed

    def _choices(self, project_id: str, run_id: str) -> dict[str, Any]:
        """Return what a run's event file depends on beside its digest: with another it is written anew."""
        lineage: dict[str, str] = {}
        if self._settings.forks == "stitched":
            from neptune_assets.lake.reader import Lake

            try:
                records = Lake(self._lake).project(project_id).records()
            except UnknownProjectError:  # a target outlives its lake; what it holds is then as good as it gets
                records = {}
            lineage = {ancestor: records[ancestor].digest for ancestor, _ in chain(records, run_id)}
        return {"forks": self._settings.forks, "lineage": lineage}


def _read_index(directory: Path) -> dict[str, Any] | None:
    """Return the index of a run; None if it was not written whole, or by an older version of ours."""
    try:
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return index if isinstance(index, dict) and index.get("format") == FORMAT else None


class _Sums:
    """Checksums of points, of their times, and of everything else, by tag."""

    def __init__(self) -> None:
        self.points, self.times, self.others = SeriesChecksums(), SeriesChecksums(), SeriesChecksums()

    def add(self, item: Points | Value) -> None:
        if isinstance(item, Points):
            zeros = np.zeros(len(item.steps), np.int64)
            self.points.add(zeros, [item.tag], item.steps, item.values.astype(np.float64))
            self.times.add(zeros, [item.tag], item.steps, item.walls)
        else:
            self.one(item.tag, item.step, (item.wall, item.content))

    def rows(self, kind: AttributeType, rows: pa.RecordBatch) -> None:
        """Add rows of the lake, or of the copy of it, by path."""
        if kind is not AttributeType.FLOAT_SERIES:
            for path, step, time, held in series_values(rows, kind):
                self.one(path, NONE if step is None else step, (time, held))
            return
        numbers, names = codes(rows.column("attribute_path"))
        steps, times = microsteps(rows.column("step")), milliseconds(rows.column("timestamp"))
        values = plain(rows.column("float_value")).fill_null(float("nan")).to_numpy(zero_copy_only=False)
        self.points.add(numbers, names, steps, values)
        self.times.add(numbers, names, steps, times.view(np.float64))

    def one(self, name: str, step: int, held: object) -> None:
        mark = hashlib.blake2b(repr(held).encode("utf-8", "surrogatepass"), digest_size=6).digest()
        self.others.add(np.zeros(1, np.int64), [name], np.array([step]), np.array([float(int.from_bytes(mark, "big"))]))

    def differences(self, held: _Sums, where: str) -> Iterator[str]:
        for what, mine, theirs in (
            ("", self.points, held.points),
            ("times, ", self.times, held.times),
            ("values, ", self.others, held.others),
        ):
            yield from (f"{name}: {where}{what}{difference}" for name, difference in mine.differences(theirs))


class _Content:
    """What the event file of one run holds, made from the lake: once to be written, once to be compared."""

    def __init__(self, run: LakeRun, placed: Layout, directory: Path, counts: RowCounts) -> None:
        self._run, self._placed, self._directory, self._counts = run, placed, directory, counts
        self._system = placed.values()
        self.start = start_of(run, self._system)
        self.event_file = f"events.out.tfevents.{min(max(self.start, 0) // 1000, 10**10 - 1):010d}.{OURS}"
        self._lake = _Sums()
        """Of the run's own rows as they are in the lake."""
        self._files = {(item.attribute_path, item.step): item for item in run.record.files}
        self._inherited = self._timeless = self._inexact = 0

    def items(self, *, compare: bool = False) -> Iterator[Points | Value]:
        """Yield everything, in the order of the file: within each tag steps rise, as TensorBoard wants it."""
        yield Value("_hparams_/session_start_info", 0, self.start / 1000, events.hparams(self._session_start()))
        if self._placed.lineage:
            inherited = Inheritance(self._placed.lineage)
            for kind, rows in typed_rows(self._run, INHERITED):
                inherited.own(kind, rows)
            for kind, rows in inherited.rows_in_order():
                self._inherited += rows.num_rows
                yield from self._series(kind, rows, RowCounts())
        for kind, rows in typed_rows(self._run, SERIES_TYPES | FILE_TYPES):
            if compare and kind in SERIES_TYPES:
                self._lake.rows(kind, rows)
            yield from self._series(kind, rows, self._counts)
        yield Value("_hparams_/session_end_info", 0, self._end / 1000, events.hparams(self._session_end()))

    def copy_files(self) -> None:
        """Copy the run's files to their places."""
        for item, name in self._placed.files.items():
            target = self._directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._run.open_file(item.path) as source, target.open("xb") as file:
                while chunk := source.read(1 << 20):
                    file.write(chunk)
            if _sha256(target) != item.sha256:
                raise TargetError(
                    f"The file of {item.attribute_path!r} in run {self._run.run_id} is not the one of the manifest.",
                    hint="Materialize the lake again; a file of it was changed.",
                )

    def note(self) -> None:
        """Say what the event file does not hold as the lake does."""
        for rows, what in (
            (self._inexact, "points are rounded to the 32 bits of TensorBoard's scalars"),
            (self._timeless, "rows have no time, and the run's start instead"),
        ):
            if rows:
                self._counts.notes.append(f"{rows} {what}; {COPY} has them as they are.")
        if self._inherited:
            self._counts.notes.append(f"{self._inherited} rows of ancestors are in front; they are not counted.")

    def differences(self) -> Iterator[str]:
        """Yield everything in which the run is not what the lake holds."""
        lake, held = _Sums(), _Sums()
        for item in self.items(compare=True):
            lake.add(item)
        for found in read_events(self._directory / self.event_file):
            held.add(found)
        yield from lake.differences(held, "")
        copy = _Sums()
        for batch in pq.ParquetFile(self._directory / COPY).iter_batches(_ROWS):
            numbers, names = codes(batch.column("attribute_type"))
            for number, kind in enumerate(names):
                copy.rows(AttributeType(kind), batch.take(np.flatnonzero(numbers == number)))
        yield from self._lake.differences(copy, f"{COPY}, ")
        for file, name in self._placed.files.items():
            if not (self._directory / name).is_file() or _sha256(self._directory / name) != file.sha256:
                yield f"{name}: the file is gone or is not that of {file.attribute_path!r}"
        there = {path.relative_to(self._directory).as_posix() for path in self._directory.rglob("*") if path.is_file()}
        for name in sorted(there - {self.event_file, COPY, INDEX, *self._placed.files.values()}):
            yield f"{name}: the file is not one of this load"

    @property
    def _end(self) -> int:
        latest = self._placed.profile.latest
        return self.start if latest is None else latest

    def _session_start(self) -> bytes:
        held: dict[str, bool | float | str] = dict(self._placed.facts)
        for (path, kind), value in self._placed.profile.parameters:
            if value is None:
                self._counts.take(kind, dropped=1, reason="it has no value")
                continue
            held[self._placed.parameters[path, kind]], exact = parameter_value(kind, value)
            self._counts.take(kind, written=exact, mapped=not exact)
        entries = (
            field_bytes(1, field_bytes(1, name.encode()) + field_bytes(2, events.parameter(value)))
            for name, value in held.items()
        )
        return field_bytes(3, b"".join(entries) + field_tag(5, FIXED64) + np.float64(self.start / 1000).tobytes())

    def _session_end(self) -> bytes:
        status = varint(2 if self._system.get("sys/failed") is True else 1)
        end = np.float64(self._end / 1000).tobytes()
        return field_bytes(4, field_tag(1, VARINT) + status + field_tag(2, FIXED64) + end)

    def _series(self, kind: AttributeType, rows: pa.RecordBatch, counts: RowCounts) -> Iterator[Points | Value]:
        if kind is AttributeType.FLOAT_SERIES:
            yield from self._points(rows, counts)
            return
        for path, step, time, held in series_values(rows, kind):
            tag = self._placed.tags.get((path, kind), path)
            if kind in FILE_TYPES:
                if (path, step if kind is AttributeType.FILE_SERIES else None) not in self._files:
                    counts.take(kind, dropped=1, reason="its file is not in the lake")
                    continue
                content, exact = self._picture(kind, path, step), True
                shown = content is not None or kind is not AttributeType.FILE_SERIES
            elif step is None or held is None:
                content, exact, shown = None, False, False
            elif kind is AttributeType.STRING_SERIES:
                content, exact, shown = events.text(held), time is not None, True
            else:
                edges, bins = held["edges"] or [], held["values"] or []
                fits = len(edges) == len(bins) + 1 and bool(bins) and None not in edges and None not in bins
                content = events.histogram(edges, bins) if fits else None
                exact, shown = held["type"] != "DENSITY" and time is not None, fits
            self._timeless += time is None and kind not in FILE_TYPES
            counts.take(kind, written=exact and shown, mapped=not (exact and shown))
            if content is not None:
                wall = self.start if time is None else time
                yield Value(tag, (step or 0) // self._placed.unit, wall / 1000, content)

    def _points(self, rows: pa.RecordBatch, counts: RowCounts) -> Iterator[Points]:
        numbers, names = codes(rows.column("attribute_path"))
        steps, times = microsteps(rows.column("step")), milliseconds(rows.column("timestamp"))
        values = plain(rows.column("float_value")).fill_null(float("nan")).to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):
            floats = values.astype(np.float32)
        stepped, timed = steps != NONE, times != NO_TIME
        exact = (floats == values) | np.isnan(values)
        written = int(np.count_nonzero(stepped & timed & exact))
        counts.take(str(AttributeType.FLOAT_SERIES), written=written, mapped=len(values) - written)
        self._timeless += int(np.count_nonzero(~timed))
        self._inexact += int(np.count_nonzero(~exact))
        walls = np.where(timed, times, self.start) / 1000
        if not stepped.all():
            numbers, steps, walls, floats = numbers[stepped], steps[stepped], walls[stepped], floats[stepped]
        whole = steps // self._placed.unit
        starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
        for first, last in zip(starts, [*starts[1:], len(numbers)], strict=True):
            tag = self._placed.tags[names[numbers[first]], AttributeType.FLOAT_SERIES]
            yield Points(tag, whole[first:last], walls[first:last], floats[first:last])

    def _picture(self, kind: AttributeType, path: str, step: int | None) -> bytes | None:
        """Return a file as a picture; None if it is none that TensorBoard shows."""
        from PIL import Image, UnidentifiedImageError

        if kind not in {AttributeType.FILE, AttributeType.FILE_SERIES}:
            return None
        item = self._files[path, step if kind is AttributeType.FILE_SERIES else None]
        name = self._directory / self._placed.files[item]
        try:
            with Image.open(name) as picture:
                if picture.format not in _PICTURES or item.size > _MAX_PICTURE:
                    return None
                width, height = picture.size
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
            return None
        return events.image(name.read_bytes(), width, height)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
