"""Reading a staged run back and comparing it with the lake: every point, histogram, text, parameter and file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from neptune_assets.schema import PARAMETER_TYPES, AttributeType
from neptune_assets.targets.wandb import artifacts, model_entry
from neptune_assets.targets.wandb.account import EXACT
from neptune_assets.targets.wandb.columns import codes, microsteps, milliseconds, plain, present
from neptune_assets.targets.wandb.content import Content, ContentReader, text_number
from neptune_assets.targets.wandb.lineage import Inheritance
from neptune_assets.targets.wandb.mapping import Layout
from neptune_assets.targets.wandb.media import StagedFile, sha256_of
from neptune_assets.targets.wandb.parameters import Parameters
from neptune_assets.targets.wandb.records import json_text
from neptune_assets.targets.wandb.rows import typed_rows
from neptune_assets.targets.wandb.series import histogram, text_row, texts
from neptune_assets.targets.wandb.staging import INDEX, OURS
from neptune_assets.targets.wandb.sums import SeriesSums
from neptune_assets.targets.wandb.system import placeable

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun

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
        self._points, self._histograms, self._parameters = SeriesSums(), SeriesSums(), Parameters(layout)
        self._system = SeriesSums()
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
        stepped, floats = present(rows.column("step")), values.to_numpy(zero_copy_only=False)
        if stepped.all():
            self._points.add(numbers, keys, steps, floats)
        else:
            self._points.add(numbers[stepped], keys, steps[stepped], floats[stepped])

    def _add_histograms(self, rows: pa.RecordBatch) -> None:
        names: dict[str, int] = {}
        numbers, steps, marks = [], [], []
        for path, step, stepped, value in zip(
            plain(rows.column("attribute_path")).to_pylist(),
            microsteps(rows.column("step")).tolist(),
            present(rows.column("step")).tolist(),
            rows.column("histogram_value").to_pylist(),
            strict=True,
        ):
            made = histogram(value) if stepped else None
            if made is not None:
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
        in_artifacts |= set(model_entry.local_files(content.version, directory))
    if (content.version is None) != (version is None):
        yield "a model version is logged where there is none, or the other way round"
    elif content.version is not None and version is not None:
        expected = version([StagedFile(**file) for file in index["files"]])
        expected.num = content.version.num
        if model_entry.compared(expected) != model_entry.compared(content.version):
            yield "the model version is not logged as it is in the lake"
    announced = {*content.files, *in_artifacts} - {model_entry.IDENTITY}
    for facts in content.media:
        if staged.get(facts["path"]) != facts["sha256"]:
            yield f"{facts['path']}: the history names a file that is not there"
    for path in sorted({*staged, INDEX} - announced):
        yield f"{path}: the file would not be uploaded"
    yield from (f"{path}: named, and not there" for path in sorted(announced - {*staged, INDEX, EXACT}))
    if EXACT in announced and not (root / EXACT).is_file():
        yield f"{EXACT}: named, and not there"
