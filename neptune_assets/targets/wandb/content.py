"""What a staged run holds, as read back from its ``.wandb`` file: sums of the points, and everything else in full."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from neptune_assets.errors import TargetError
from neptune_assets.targets.wandb.artifacts import Artifact
from neptune_assets.targets.wandb.artifacts import read as read_artifact
from neptune_assets.targets.wandb.columns import Bools, Ints, microsteps
from neptune_assets.targets.wandb.decoding import HistoryItems, Window, windows
from neptune_assets.targets.wandb.mapping import AXIS, Layout
from neptune_assets.targets.wandb.model_entry import is_version
from neptune_assets.targets.wandb.sums import SeriesSums
from neptune_assets.targets.wandb.system import record_points

_STEP: Final = "_step"
_OURS: Final = frozenset({_STEP, "_timestamp", "_runtime", AXIS})
_MOST_MARKS: Final = 1 << 24
_MOST_SAID: Final = 20


@dataclass(slots=True)
class Content:
    """What a staged run holds, as read back."""

    points: SeriesSums = field(default_factory=SeriesSums)
    objects: SeriesSums = field(default_factory=SeriesSums)
    """Histograms: count and a checksum over (step, JSON)."""
    system: SeriesSums = field(default_factory=SeriesSums)
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


def _add_system(sums: SeriesSums, rows: list[tuple[int, list[str], list[float]]]) -> None:
    numbers: dict[str, int] = {}
    codes = [numbers.setdefault(key, len(numbers)) for _, keys, _ in rows for key in keys]
    times = np.repeat([time for time, _, _ in rows], [len(keys) for _, keys, _ in rows])
    values = np.array([value for _, _, found in rows for value in found], dtype=np.float64)
    sums.add(np.array(codes, dtype=np.int64), list(numbers), times.astype(np.int64), values)


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
