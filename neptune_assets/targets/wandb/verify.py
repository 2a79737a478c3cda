"""Reading a staged run back and comparing it with the lake: every point, histogram, text, parameter and file."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from neptune_assets.schema import MICROSTEPS, AttributeType
from neptune_assets.targets.wandb.columns import Ints, codes, microsteps, plain, present
from neptune_assets.targets.wandb.gathering import EXACT
from neptune_assets.targets.wandb.mapping import AXIS, Layout, parameters
from neptune_assets.targets.wandb.media import sha256_of
from neptune_assets.targets.wandb.records import json_text, protobuf
from neptune_assets.targets.wandb.series import histogram, text_row, texts
from neptune_assets.targets.wandb.staging import INDEX, OURS
from neptune_assets.targets.wandb.transaction_log import read_log

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun

_MAX_SAID: Final = 20
_BUFFER: Final = 65_536
_OURS: Final = frozenset({"_step", "_timestamp", "_runtime", AXIS})


@dataclass(slots=True)
class Sums:
    """What is compared of one series. ``checksum`` is over (step, bits of the value) and does not depend on order."""

    count: int = 0
    first: int | None = None
    last: int | None = None
    low: float | None = None
    high: float | None = None
    checksum: int = 0

    def add(self, steps: Ints, values: npt.NDArray[np.float64]) -> None:
        """Take points of this series in."""
        low, high = int(steps.min()), int(steps.max())
        self.count += len(steps)
        self.first = low if self.first is None else min(self.first, low)
        self.last = high if self.last is None else max(self.last, high)
        numbers = values[~np.isnan(values)]
        if len(numbers):
            self.low = float(numbers.min()) if self.low is None else min(self.low, float(numbers.min()))
            self.high = float(numbers.max()) if self.high is None else max(self.high, float(numbers.max()))
        self.checksum = (self.checksum + int(_mixed(steps, values).sum(dtype=np.uint64))) % 2**64

    def difference(self, other: Sums) -> str | None:
        """Say in what the other differs; None if in nothing."""
        for name, mine, theirs in (
            ("points", self.count, other.count),
            ("first micro-step", self.first, other.first),
            ("last micro-step", self.last, other.last),
            ("minimum", self.low, other.low),
            ("maximum", self.high, other.high),
            ("checksum", self.checksum, other.checksum),
        ):
            if mine != theirs:
                return f"{name}: {mine} in the lake, {theirs} in the run"
        return None


def _mixed(steps: Ints, values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint64]:
    """Return a well-mixed 64-bit number for each (step, value); every NaN counts as the same."""
    bits = np.where(np.isnan(values), np.nan, values).view(np.uint64)
    with np.errstate(over="ignore"):
        mixed = steps.astype(np.int64).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ bits
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result: npt.NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return result


@dataclass(slots=True)
class Content:
    """What a staged run holds, as read back."""

    points: defaultdict[str, Sums] = field(default_factory=lambda: defaultdict(Sums))
    objects: defaultdict[str, Sums] = field(default_factory=lambda: defaultdict(Sums))
    """Histograms: count and a checksum over (step, JSON)."""
    tables: defaultdict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    media: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    config: dict[str, str] = field(default_factory=dict)
    summary: dict[str, str] = field(default_factory=dict)
    run: str = ""
    project: str = ""
    rows: int = 0
    last_step: int = -1
    finished: bool = False
    problems: list[str] = field(default_factory=list)


class ContentReader:
    """Reads a ``.wandb`` file with wandb's own classes; memory grows with keys, not with points."""

    def __init__(self, layout: Layout) -> None:
        self._unit, self._axis = layout.stepping.unit, layout.stepping.axis
        self._content = Content()
        self._numbers: dict[str, int] = {}
        self._keys: list[int] = []
        self._steps: list[int] = []
        self._values: list[float] = []

    def read(self, path: Path) -> Content:
        """Return what the file holds. Raises TargetError if it is damaged."""
        content, parse = self._content, protobuf().Record.FromString  # parsing into one message again keeps its memory
        for payload in read_log(path):
            if content.finished:
                content.problems.append("there are records after the last one")
            record = parse(payload)
            kind = record.WhichOneof("record_type")
            if kind == "history":
                self._row(record.history)
            elif kind == "run":
                content.run, content.project = record.run.run_id, record.run.project
                content.config.update((item.key, item.value_json) for item in record.run.config.update)
            elif kind == "summary":
                content.summary.update((item.nested_key[0], item.value_json) for item in record.summary.update)
            elif kind == "files":
                content.files.extend(item.path for item in record.files.files)
            elif kind == "exit":
                content.finished = True
        self._flush()
        return content

    def _row(self, history: Any) -> None:
        content = self._content
        items = [(item.nested_key[0], item.value_json) for item in history.item]
        row = dict(items)
        if len(row) != len(items):
            content.problems.append(f"history row {content.rows} has a key twice")
        count = int(row["_step"])
        if count <= content.last_step:
            content.problems.append(f"history row {content.rows} goes back to _step {count}")
        content.last_step, content.rows = count, content.rows + 1
        step = int(Decimal(row[AXIS]) * MICROSTEPS) if self._axis else count * self._unit
        numbers, keys, steps, values = self._numbers, self._keys, self._steps, self._values
        for key, text in items:
            if key in _OURS:
                continue
            if text[0] == "{":
                self._object(key, step, text)
                continue
            keys.append(numbers.setdefault(key, len(numbers)))
            steps.append(step)
            values.append(float(text))
        if len(keys) >= _BUFFER:
            self._flush()

    def _object(self, key: str, step: int, text: str) -> None:
        value = json.loads(text)
        if value["_type"] == "histogram":
            self._content.objects[key].add(np.array([step]), _text_number(text))
        elif value["_type"] == "table-file":
            self._content.tables[key].append(value)
            self._content.media.append(value)
        else:
            self._content.media.append(value)

    def _flush(self) -> None:
        if self._keys:
            names = list(self._numbers)
            for number, steps, values in _grouped(
                np.array(self._keys), np.array(self._steps), np.array(self._values, dtype=np.float64)
            ):
                self._content.points[names[number]].add(steps, values)
            self._keys.clear()
            self._steps.clear()
            self._values.clear()


def _grouped(
    keys: Ints, steps: Ints, values: npt.NDArray[np.float64]
) -> Iterator[tuple[int, Ints, npt.NDArray[np.float64]]]:
    order = np.argsort(keys, kind="stable")
    keys, steps, values = keys[order], steps[order], values[order]
    starts = np.concatenate(([0], np.flatnonzero(np.diff(keys)) + 1)).tolist()
    for begin, end in zip(starts, [*starts[1:], len(keys)], strict=True):
        yield int(keys[begin]), steps[begin:end], values[begin:end]


def _text_number(text: str) -> npt.NDArray[np.float64]:
    """Return a float that stands for a text in checksums."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=6).digest()
    return np.array([float(int.from_bytes(digest, "big"))])


def differences(run: LakeRun, layout: Layout, directory: Path, wandb_run: str) -> tuple[list[str], Content]:
    """Return everything in which the staged run is not what the lake holds (at most 20 lines), and what was read."""
    content = ContentReader(layout).read(directory / f"run-{wandb_run}.wandb")
    said = list(content.problems)
    if not content.finished:
        said.append("the run does not end")
    if content.run != wandb_run:
        said.append(f"the run is {content.run!r} and not {wandb_run!r}")
    if content.summary.get(OURS) != json_text({"digest": run.record.digest}):
        said.append("the summary does not name the digest that the lake has")
    said.extend(_points(run, layout, content))
    said.extend(_histograms(run, layout, content))
    said.extend(_texts(run, layout, content, directory))
    said.extend(_config(run, layout, content))
    said.extend(_files(run, content, directory))
    return said[:_MAX_SAID], content


def _points(run: LakeRun, layout: Layout, content: Content) -> Iterator[str]:
    kind = str(AttributeType.FLOAT_SERIES)
    lake: defaultdict[str, Sums] = defaultdict(Sums)
    for batch in run.batches(types={AttributeType.FLOAT_SERIES}, columns=["attribute_path", "step", "float_value"]):
        numbers, names = codes(batch.column("attribute_path"))
        stepped = present(batch.column("step"))
        values = plain(batch.column("float_value")).fill_null(float("nan")).to_numpy(zero_copy_only=False)
        if stepped.any():
            for number, steps, own in _grouped(
                numbers[stepped], microsteps(batch.column("step"))[stepped], values[stepped]
            ):
                lake[names[number]].add(steps, own)
    expected = {layout.keys[path, kind]: (path, sums) for path, sums in lake.items()}
    for key, (path, sums) in expected.items():
        difference = sums.difference(content.points.get(key, Sums()))
        if difference is not None:
            yield f"{path}: {difference}"
    yield from (f"{key}: a metric that the lake does not have" for key in sorted({*content.points} - {*expected}))


def _histograms(run: LakeRun, layout: Layout, content: Content) -> Iterator[str]:
    kind = str(AttributeType.HISTOGRAM_SERIES)
    lake: defaultdict[str, Sums] = defaultdict(Sums)
    columns = ["attribute_path", "step", "histogram_value"]
    for batch in run.batches(types={AttributeType.HISTOGRAM_SERIES}, columns=columns, batch_rows=1_024):
        for path, step, stepped, value in zip(
            plain(batch.column("attribute_path")).to_pylist(),
            microsteps(batch.column("step")).tolist(),
            present(batch.column("step")).tolist(),
            batch.column("histogram_value").to_pylist(),
            strict=True,
        ):
            made = histogram(value) if stepped else None
            if made is not None:
                lake[layout.keys[path, kind]].add(np.array([step]), _text_number(made.json))
    for key in sorted({*lake, *content.objects}):
        difference = lake[key].difference(content.objects[key])
        if difference is not None:
            yield f"{key}: histograms differ, {difference}"


def _texts(run: LakeRun, layout: Layout, content: Content, directory: Path) -> Iterator[str]:
    kind = str(AttributeType.STRING_SERIES)
    key: str | None = None
    staged: Iterator[str] = iter(())
    seen: set[str] = set()
    broken = False
    for text in texts(run):
        if layout.keys[text.path, kind] != key:
            if key is not None and not broken and next(staged, None) is not None:
                yield f"{key}: the tables have more texts than the lake"
            key, broken = layout.keys[text.path, kind], False
            seen.add(key)
            staged = _table_rows(content.tables.get(key, []), directory)
        if not broken and next(staged, None) != text_row(text):
            broken = True
            yield f"{key}: the tables do not hold the text of micro-step {text.step}"
    if key is not None and not broken and next(staged, None) is not None:
        yield f"{key}: the tables have more texts than the lake"
    yield from (f"{name}: a table that the lake does not have" for name in sorted({*content.tables} - seen))


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


def _config(run: LakeRun, layout: Layout, content: Content) -> Iterator[str]:
    expected = {key: json_text(value) for key, value in parameters(run, layout).config.items()}
    held = {key: value for key, value in content.config.items() if key != OURS}
    yield from (
        f"{key}: the config does not hold the lake's parameters"
        for key in sorted({*expected, *held})
        if expected.get(key) != held.get(key)
    )


def _files(run: LakeRun, content: Content, directory: Path) -> Iterator[str]:
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
    announced = set(content.files)
    for facts in content.media:
        if staged.get(facts["path"]) != facts["sha256"]:
            yield f"{facts['path']}: the history names a file that is not there"
    for path in sorted({*staged, INDEX} - announced):
        yield f"{path}: the file would not be uploaded"
    yield from (f"{path}: named, and not there" for path in sorted(announced - {*staged, INDEX, EXACT}))
    if EXACT in announced and not (root / EXACT).is_file():
        yield f"{EXACT}: named, and not there"
