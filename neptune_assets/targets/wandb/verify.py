"""Reading a staged run back and comparing it with the lake: every point, histogram, text, parameter and file."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from neptune_assets.errors import TargetError
from neptune_assets.lake.rows import NONE, microsteps
from neptune_assets.schema import PARAMETER_TYPES, AttributeType
from neptune_assets.targets.checksums import SeriesChecksums
from neptune_assets.targets.columns import Bools, Ints, codes, milliseconds, plain, series_values, typed_rows
from neptune_assets.targets.lineage import Inheritance
from neptune_assets.targets.wandb import artifacts
from neptune_assets.targets.wandb.artifacts import Artifact, is_version
from neptune_assets.targets.wandb.artifacts import read as read_artifact
from neptune_assets.targets.wandb.codec import HistoryItems, Window, json_text, windows
from neptune_assets.targets.wandb.files import StagedFile, histogram, sha256_of, text_row, texts
from neptune_assets.targets.wandb.history import placeable, record_points
from neptune_assets.targets.wandb.mapping import AXIS, EXACT, Layout, Parameters
from neptune_assets.targets.wandb.staging import INDEX, OURS

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun

_STEP: Final = "_step"
_OURS: Final = frozenset({_STEP, "_timestamp", "_runtime", AXIS})
_MOST_MARKS: Final = 1 << 24
_MOST_SAID: Final = 20


@dataclass(slots=True)
class Content:
    """What a staged run holds, as read back."""

    points: SeriesChecksums = field(default_factory=SeriesChecksums)
    objects: SeriesChecksums = field(default_factory=SeriesChecksums)
    """Histograms: count and a checksum over (step, JSON)."""
    system: SeriesChecksums = field(default_factory=SeriesChecksums)
    """System metrics, with times where other series have steps."""
    system_rows: int = 0
    tables: defaultdict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    media: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    """By name; files are below the run's ``files`` directory, or absolute."""
    version: Any = None
    """The request that logs a model version, if there is one."""
    config: dict[str, str] = field(default_factory=dict)
    summary: dict[str, str] = field(default_factory=dict)
    run: str = ""
    project: str = ""
    rows: int = 0
    last_step: int = -1
    end: int | None = None
    """Place of the record that ends the run; None if there is none."""
    problems: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """True if the run ends."""
        return self.end is not None


class ContentReader:
    """Reads a ``.wandb`` file; memory grows with keys, not with points."""

    def __init__(self, layout: Layout) -> None:
        self._unit, self._axis = layout.stepping.unit, layout.stepping.axis
        self._content = Content()
        self._directory = Path()

    def read(self, path: Path) -> Content:
        """Return what the file holds. Raises TargetError if it is damaged."""
        content, end = self._content, 0
        self._directory = path.parent
        for window in windows(path):
            try:
                self._history(window.history)
                self._witness(window)
            except (pa.ArrowInvalid, ValueError, KeyError) as error:
                raise TargetError(
                    f"{path.name} holds what was not staged: {error}.", hint="Load the run again; it is staged anew."
                ) from error
            self._others(window)
            end = window.end
        if content.end is not None and content.end != end - 1:
            content.problems.append("there are records after the last one")
        return content

    def _others(self, window: Window) -> None:
        content, stats = self._content, []
        for place, record in window.others:
            kind = record.WhichOneof("record_type")
            if kind == "run":
                content.run, content.project = record.run.run_id, record.run.project
                content.config.update((item.key, item.value_json) for item in record.run.config.update)
            elif kind == "summary":
                content.summary.update((item.nested_key[0], item.value_json) for item in record.summary.update)
            elif kind == "files":
                content.files.extend(item.path for item in record.files.files)
            elif kind == "request" and is_version(record):
                content.version = record
            elif kind == "request":
                artifact = read_artifact(record, self._directory)
                content.artifacts[artifact.name] = artifact
            elif kind == "stats":
                stats.append(record_points(record))
            elif kind == "exit":
                content.end = place
        if stats:
            content.system_rows += len(stats)
            _add_system(content.system, stats)

    def _history(self, items: HistoryItems) -> None:
        if not items.row_count:
            return
        self._no_key_twice(items)
        steps = self._steps(items)
        codes = {name: code for code, name in enumerate(items.names)}
        own = np.zeros(len(items.names), dtype=bool)
        own[[codes[name] for name in _OURS if name in codes]] = True
        wanted = ~own[items.codes]
        objects = wanted & _begins_with(items.values, ord("{"))
        for place in np.flatnonzero(objects).tolist():
            key = items.names[items.codes[place]]
            self._object(key, int(steps[items.rows[place]]), items.values[place].as_py())
        wanted &= ~objects
        values = items.values.filter(pa.array(wanted)).cast(pa.float64()).to_numpy()
        self._content.points.add(items.codes[wanted], items.names, steps[items.rows[wanted]], values)
        self._content.rows += items.row_count

    def _witness(self, window: Window) -> None:
        """Compare some rows with what wandb's own classes and Python's JSON read: our encoder needs another witness."""
        history, before = window.history, self._content.rows - window.history.row_count
        for row, record in window.sample:
            begin, end = np.searchsorted(history.rows, [row, row + 1])
            names = [history.names[code] for code in history.codes[begin:end].tolist()]
            values = history.values.slice(begin, end - begin)
            found = [(".".join(item.nested_key), item.value_json) for item in record.history.item]
            same = (
                record.WhichOneof("record_type") == "history"
                and found == list(zip(names, values.to_pylist(), strict=True))
                and record.history.step.num == history.step_numbers[row]
            )
            if not same or not _same_numbers(values):
                self._content.problems.append(f"history row {before + row} is not what wandb's own classes read")
                return

    def _steps(self, items: HistoryItems) -> Ints:
        """Return the micro-step of each row, after looking whether rows are in order."""
        content = self._content
        texts = self._one_a_row(items, _STEP)
        counts = texts.cast(pa.int64()).to_numpy()
        before = np.concatenate(([content.last_step], counts[:-1]))
        for row in np.flatnonzero(counts <= before)[:_MOST_SAID].tolist():
            content.problems.append(f"history row {content.rows + row} goes back to _step {counts[row]}")
        for row in np.flatnonzero(counts != items.step_numbers)[:_MOST_SAID].tolist():
            content.problems.append(
                f"history row {content.rows + row} has _step {counts[row]} and calls itself {items.step_numbers[row]}"
            )
        content.last_step = int(counts[-1])
        if not self._axis:
            return np.asarray(counts * self._unit, dtype=np.int64)
        return microsteps(self._one_a_row(items, AXIS).cast(pa.decimal128(18, 6)))

    def _one_a_row(self, items: HistoryItems, name: str) -> Any:
        """Return the values of a key that every row has."""
        chosen = items.codes == items.names.index(name) if name in items.names else np.zeros(0, dtype=bool)
        if int(chosen.sum()) != items.row_count:
            raise ValueError(f"a history row without {name}")
        return items.values.filter(pa.array(chosen))

    def _no_key_twice(self, items: HistoryItems) -> None:
        marks, width = items.rows * len(items.names) + items.codes, len(items.names)
        if items.row_count * width <= _MOST_MARKS:
            twice = bool((np.bincount(marks) > 1).any())
        else:
            twice = len(np.unique(marks)) != len(marks)
        if twice:
            found, counts = np.unique(marks, return_counts=True)
            row = int(found[np.flatnonzero(counts > 1)[0]]) // width
            self._content.problems.append(f"history row {self._content.rows + row} has a key twice")

    def _object(self, key: str, step: int, text: str) -> None:
        value = json.loads(text)
        if value["_type"] == "histogram":
            self._content.objects.add(np.array([0]), [key], np.array([step]), np.array([text_number(text)]))
        elif value["_type"] == "table-file":
            self._content.tables[key].append(value)
            self._content.media.append(value)
        else:
            self._content.media.append(value)


def _add_system(sums: SeriesChecksums, rows: list[tuple[int, list[str], list[float]]]) -> None:
    numbers: dict[str, int] = {}
    codes = [numbers.setdefault(key, len(numbers)) for _, keys, _ in rows for key in keys]
    times = np.repeat([time for time, _, _ in rows], [len(keys) for _, keys, _ in rows])
    values = np.array([value for _, _, found in rows for value in found], dtype=np.float64)
    sums.add(np.array(codes, dtype=np.int64), list(numbers), times.astype(np.int64), values)


def _same_numbers(values: Any) -> bool:
    """True if Python's JSON reads the same bits from the numbers among these texts as Arrow."""
    numbers = values.filter(pa.array(~_begins_with(values, ord("{"))))
    theirs = np.array([json.loads(text) for text in numbers.to_pylist()], dtype=np.float64)
    ours = numbers.cast(pa.float64()).to_numpy()
    return bool(np.all((ours.view(np.int64) == theirs.view(np.int64)) | (np.isnan(ours) & np.isnan(theirs))))


def _begins_with(texts: Any, byte: int) -> Bools:
    """Return which of the texts of an array begin with this byte."""
    offsets = np.frombuffer(texts.buffers()[1], dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = texts.buffers()[2]
    if data is None or data.size == 0:
        return np.zeros(len(texts), dtype=bool)
    letters = np.frombuffer(data, dtype=np.uint8)
    result: Bools = (letters[np.minimum(offsets[:-1], len(letters) - 1)] == byte) & (np.diff(offsets) > 0)
    return result


def text_number(text: str) -> float:
    """Return a number that stands for a text in checksums."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=6).digest()
    return float(int.from_bytes(digest, "big"))


Version = Callable[[list[StagedFile]], Any]
"""Makes the request that logs staged files as a model version."""

_MAX_SAID: Final = 20
_COMPARED: Final = PARAMETER_TYPES | {
    AttributeType.FLOAT_SERIES,
    AttributeType.HISTOGRAM_SERIES,
    AttributeType.STRING_SERIES,
}


def differences(
    run: LakeRun, layout: Layout, directory: Path, wandb_run: str, version: Version | None = None
) -> tuple[list[str], Content]:
    """Return everything in which the staged run is not what the lake holds (at most 20 lines), and what was read.

    ``version`` makes the request that must log the run's files as a model version; without it there must be none.
    """
    content = ContentReader(layout).read(directory / f"run-{wandb_run}.wandb")
    said = list(content.problems)
    if not content.finished:
        said.append("the run does not end")
    if content.run != wandb_run:
        said.append(f"the run is {content.run!r} and not {wandb_run!r}")
    if content.summary.get(OURS) != json_text({"digest": run.record.digest}):
        said.append("the summary does not name the digest that the lake has")
    lake = _Lake(run, layout, content, directory)
    said.extend(lake.differences())
    said.extend(_files(run, content, directory, version))
    return said[:_MAX_SAID], content


class _Lake:
    """What the lake says of a run, in the words of what was read back."""

    def __init__(self, run: LakeRun, layout: Layout, content: Content, directory: Path) -> None:
        self._layout, self._content = layout, content
        self._points, self._histograms, self._parameters = SeriesChecksums(), SeriesChecksums(), Parameters(layout)
        self._system = SeriesChecksums()
        self._texts = _Tables(layout, content, directory)
        inherited = Inheritance(layout.lineage)
        for kind, rows in typed_rows(run, _COMPARED):
            inherited.own(kind, rows)
            if kind is AttributeType.FLOAT_SERIES:
                points, system = self._split(rows)
                self._add_points(points)
                self._add_system(system)
            elif kind is AttributeType.HISTOGRAM_SERIES:
                self._add_histograms(rows)
            elif kind is AttributeType.STRING_SERIES:
                self._texts.compare(rows)
            else:
                self._parameters.add(kind, rows)
        for kind, rows in inherited.rows():
            if kind is AttributeType.FLOAT_SERIES and layout.system:
                rows = self._split(rows)[0]
            (self._add_points if kind is AttributeType.FLOAT_SERIES else self._add_histograms)(rows)

    def differences(self) -> Iterator[str]:
        """Yield what is not in the staged run as it is in the lake."""
        for key, difference in self._points.differences(self._content.points):
            yield f"{key}: {difference}"
        for key, difference in self._system.differences(self._content.system):
            yield f"{key}: system metrics differ, {difference}"
        for key, difference in self._histograms.differences(self._content.objects):
            yield f"{key}: histograms differ, {difference}"
        yield from self._texts.differences()
        expected = {key: _sorted(value) for key, value in self._parameters.config.items()}
        held = {key: _sorted(json.loads(text)) for key, text in self._content.config.items() if key != OURS}
        yield from (
            f"{key}: the config does not hold the lake's parameters"
            for key in sorted({*expected, *held})
            if expected.get(key) != held.get(key)
        )

    def _split(self, rows: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Return points of the history and points of system metrics."""
        if not self._layout.system:
            return rows, rows.slice(0, 0)
        numbers, names = codes(rows.column("attribute_path"))
        kind = str(AttributeType.FLOAT_SERIES)
        system = np.array([(name, kind) in self._layout.system for name in names], dtype=bool)[numbers]
        return rows.filter(pa.array(~system)), rows.filter(pa.array(system))

    def _add_system(self, rows: pa.RecordBatch) -> None:
        numbers, names = codes(rows.column("attribute_path"))
        keys = [self._layout.system[name, str(AttributeType.FLOAT_SERIES)] for name in names]
        times = milliseconds(rows.column("timestamp"))
        values = plain(rows.column("float_value")).fill_null(float("nan")).to_numpy(zero_copy_only=False)
        there = placeable(times)
        self._system.add(numbers[there], keys, times[there], values[there])

    def _add_points(self, rows: pa.RecordBatch) -> None:
        numbers, names = codes(rows.column("attribute_path"))
        keys = [self._layout.keys[name, str(AttributeType.FLOAT_SERIES)] for name in names]
        steps, values = microsteps(rows.column("step")), plain(rows.column("float_value")).fill_null(float("nan"))
        stepped, floats = steps != NONE, values.to_numpy(zero_copy_only=False)
        if stepped.all():
            self._points.add(numbers, keys, steps, floats)
        else:
            self._points.add(numbers[stepped], keys, steps[stepped], floats[stepped])

    def _add_histograms(self, rows: pa.RecordBatch) -> None:
        names: dict[str, int] = {}
        numbers, steps, marks = [], [], []
        for path, step, _, value in series_values(rows, AttributeType.HISTOGRAM_SERIES):
            made = histogram(value)
            if step is not None and made is not None:
                key = self._layout.keys[path, str(AttributeType.HISTOGRAM_SERIES)]
                numbers.append(names.setdefault(key, len(names)))
                steps.append(step)
                marks.append(text_number(made.json))
        self._histograms.add(
            np.array(numbers, dtype=np.int64), list(names), np.array(steps, dtype=np.int64), np.array(marks)
        )


class _Tables:
    """Compares the texts of the lake with the rows of the staged tables, one after the other."""

    def __init__(self, layout: Layout, content: Content, directory: Path) -> None:
        self._layout, self._content, self._directory = layout, content, directory
        self._key: str | None = None
        self._staged: Iterator[str] = iter(())
        self._seen: set[str] = set()
        self._said: list[str] = []
        self._broken = False

    def compare(self, rows: pa.RecordBatch) -> None:
        """Take the next texts of the lake."""
        for text in texts(rows):
            key = self._layout.keys[text.path, str(AttributeType.STRING_SERIES)]
            if key != self._key:
                self._end()
                self._key, self._broken = key, False
                self._seen.add(key)
                self._staged = _table_rows(self._content.tables.get(key, []), self._directory)
            if not self._broken and next(self._staged, None) != text_row(text):
                self._broken = True
                self._said.append(f"{key}: the tables do not hold the text of micro-step {text.step}")

    def differences(self) -> Iterator[str]:
        """Yield what differs, once all texts were compared."""
        self._end()
        yield from self._said
        more = sorted({*self._content.tables} - self._seen)
        yield from (f"{name}: a table that the lake does not have" for name in more)

    def _end(self) -> None:
        if self._key is not None and not self._broken and next(self._staged, None) is not None:
            self._said.append(f"{self._key}: the tables have more texts than the lake")
        self._key = None


def _table_rows(tables: list[dict[str, Any]], directory: Path) -> Iterator[str]:
    for facts in tables:
        path = directory / "files" / facts["path"]
        if not path.is_file():
            return
        table = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal, parse_int=Decimal)
        for step, time, value in table["data"]:
            yield f"[{_plain(step)},{_plain(time)},{json.dumps(value, ensure_ascii=False)}]"


def _plain(number: Decimal | None) -> str:
    return "null" if number is None else format(number, "f")


def _sorted(value: Any) -> str:
    """Return a JSON text that does not depend on the order of keys."""
    return json.dumps(value, sort_keys=True)


def _files(run: LakeRun, content: Content, directory: Path, version: Version | None) -> Iterator[str]:
    root = directory / "files"
    index = json.loads((root / INDEX).read_text(encoding="utf-8")) if (root / INDEX).is_file() else {"files": []}
    known = {(item.attribute_path, item.sha256) for item in run.record.files}
    staged: dict[str, str] = {}
    for file in index["files"]:
        path = root / file["path"]
        if file["path"] not in staged:
            staged[file["path"]] = sha256_of(path) if path.is_file() else ""
        if staged[file["path"]] != file["sha256"] or path.stat().st_size != file["size"]:
            yield f"{file['path']}: the file is gone or is not what was staged"
        elif (
            file["attribute_type"] != AttributeType.STRING_SERIES
            and (file["attribute_path"], file["sha256"]) not in known
        ):
            yield f"{file['path']}: the lake has no such file for {file['attribute_path']}"
    in_artifacts = {entry.file for artifact in content.artifacts.values() for entry in artifact.entries}
    if content.artifacts:
        files = [StagedFile(**file) for file in index["files"]]
        yield from artifacts.differences(content.artifacts, files, content.run, root)
    if content.version is not None:
        in_artifacts |= set(artifacts.local_files(content.version, directory))
    if (content.version is None) != (version is None):
        yield "a model version is logged where there is none, or the other way round"
    elif content.version is not None and version is not None:
        expected = version([StagedFile(**file) for file in index["files"]])
        expected.num = content.version.num
        if artifacts.compared(expected) != artifacts.compared(content.version):
            yield "the model version is not logged as it is in the lake"
    announced = {*content.files, *in_artifacts} - {artifacts.IDENTITY}
    for facts in content.media:
        if staged.get(facts["path"]) != facts["sha256"]:
            yield f"{facts['path']}: the history names a file that is not there"
    for path in sorted({*staged, INDEX} - announced):
        yield f"{path}: the file would not be uploaded"
    yield from (f"{path}: named, and not there" for path in sorted(announced - {*staged, INDEX, EXACT}))
    if EXACT in announced and not (root / EXACT).is_file():
        yield f"{EXACT}: named, and not there"
