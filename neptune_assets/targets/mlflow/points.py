"""Metric points of one run on their way into MLflow: whole steps, legal keys, and what MLflow cannot hold set apart.

MLflow's steps are 64-bit integers, its times are not negative, and its SQL store turns infinities into the largest
double and -0.0 into 0.0. Points that it would change are kept exactly in a sidecar; the others go in as metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.lake.reader import LakeRun
from neptune_assets.lake.rows import microsteps
from neptune_assets.schema import STEP_TYPE, TIME_TYPE, AttributeType
from neptune_assets.targets.profile import Ints, scale

COLUMNS: Final = ("attribute_path", "step", "timestamp", "float_value")

SIDECAR: Final = pa.schema(
    [
        ("attribute_path", pa.string()),
        ("step", STEP_TYPE),
        ("timestamp", TIME_TYPE),
        ("float_value", pa.float64()),
        ("reason", pa.string()),
    ]
)
"""Points kept beside the metrics. ``reason``: infinite, step, time (not in MLflow); negative_zero (there as 0.0)."""


@dataclass(frozen=True, slots=True)
class Points:
    """Some points as MLflow holds them. ``keys[codes[i]]`` is the key of point i; NaN is 0.0 with ``is_nan``."""

    keys: list[str]
    codes: npt.NDArray[np.intp]
    steps: Ints
    times: Ints
    values: npt.NDArray[np.float64]
    is_nan: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.codes)


@dataclass
class PointStream:
    """Reads the points of a run once, counting as it goes; counts are complete when the iterator has ended."""

    run: LakeRun
    names: Mapping[str, str]
    """Attribute path -> metric key, for every float series of the run."""
    multiplier: int
    fill_time: int
    """Milliseconds given to points that have no time."""
    rows: int = 0
    logged: int = 0
    apart: dict[str, int] = field(default_factory=dict)
    """Reason -> points in the sidecar; all but negative_zero are not metrics."""
    filled: int = 0
    sidecar: list[pa.RecordBatch] = field(default_factory=list)

    def __iter__(self) -> Iterator[Points]:
        for batch in self.run.batches(types=[AttributeType.FLOAT_SERIES], columns=COLUMNS):
            if batch.num_rows:
                yield self._points(batch)

    def _points(self, batch: pa.RecordBatch) -> Points:
        paths = batch["attribute_path"].dictionary_encode()
        codes = paths.indices.to_numpy().astype(np.intp)
        keys = [self.names[path] for path in paths.dictionary.to_pylist()]
        values = batch["float_value"].fill_null(np.nan).to_numpy().astype(np.float64)
        micro = microsteps(batch["step"])
        times_column = batch["timestamp"].cast(pa.int64())
        missing = times_column.null_count
        times = times_column.fill_null(self.fill_time).to_numpy()
        steps, whole = scale(micro, self.multiplier)
        infinite, early = np.isinf(values), times < 0
        minus = (values == 0.0) & np.signbit(values)
        out = infinite | ~whole | early
        self.rows += len(values)
        self.filled += missing
        if out.any() or minus.any():
            reasons = np.select([infinite, ~whole, early], ["infinite", "step", "time"], "negative_zero")
            self._keep_apart(batch, np.flatnonzero(out | minus), reasons)
        keep = ~out
        is_nan = np.isnan(values)
        # Adding 0.0 turns -0.0 into 0.0, as the store would.
        clean = np.where(is_nan, 0.0, values) + 0.0
        self.logged += int(keep.sum())
        return Points(keys, codes[keep], steps[keep], times[keep].astype(np.int64), clean[keep], is_nan[keep])

    def _keep_apart(self, batch: pa.RecordBatch, rows: npt.NDArray[np.intp], reasons: npt.NDArray[np.str_]) -> None:
        chosen = reasons[rows]
        for reason, count in zip(*np.unique(chosen, return_counts=True), strict=True):
            self.apart[str(reason)] = self.apart.get(str(reason), 0) + int(count)
        part = batch.take(pa.array(rows))
        columns = [part[name] for name in COLUMNS]
        self.sidecar.append(pa.RecordBatch.from_arrays([*columns, pa.array(chosen.tolist())], schema=SIDECAR))


def point_hashes(points: Points) -> npt.NDArray[np.uint64]:
    """Return one 64-bit hash a point, over step, time, value bits and is_nan; equal points have equal hashes."""
    result = points.steps.view(np.uint64).copy()
    for column in (points.times.view(np.uint64), points.values.view(np.uint64), points.is_nan.astype(np.uint64)):
        result = _mix(result) ^ column
    return _mix(result)


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class SeriesSum:
    """What one metric must be: its points, first and last step, least and largest value, and the sum of hashes."""

    points: int
    first: int
    last: int
    least: float
    largest: float
    checksum: int


class Sums:
    """Sums of every metric, built from points in any order and any portions."""

    def __init__(self) -> None:
        self._sums: dict[str, SeriesSum] = {}

    def add(self, points: Points) -> None:
        """Take in some points."""
        if not len(points):
            return
        in_order = bool((np.diff(points.codes) >= 0).all())
        order: Any = slice(None) if in_order else np.argsort(points.codes, kind="stable")
        codes = points.codes[order]
        starts = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]]))
        counts = np.diff(np.append(starts, len(codes)))
        steps, values = points.steps[order], points.values[order]
        hashes = np.add.reduceat(point_hashes(points)[order], starts)
        first, last = np.minimum.reduceat(steps, starts), np.maximum.reduceat(steps, starts)
        least, largest = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        for place, start in enumerate(starts.tolist()):
            key = points.keys[int(codes[start])]
            now = SeriesSum(
                int(counts[place]),
                int(first[place]),
                int(last[place]),
                float(least[place]),
                float(largest[place]),
                int(hashes[place]),
            )
            old = self._sums.get(key)
            if old is not None:
                now = SeriesSum(
                    old.points + now.points,
                    min(old.first, now.first),
                    max(old.last, now.last),
                    min(old.least, now.least),
                    max(old.largest, now.largest),
                    (old.checksum + now.checksum) % 2**64,
                )
            self._sums[key] = now

    def result(self) -> dict[str, SeriesSum]:
        """Return the sums by key."""
        return self._sums


class Latest:
    """The latest point of every metric, as MLflow decides it: the largest (step, time, value)."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[int, int, float, bool]] = {}

    def add(self, points: Points) -> None:
        """Take in some points."""
        if not len(points):
            return
        ahead, same = points.steps[1:] > points.steps[:-1], points.codes[1:] == points.codes[:-1]
        # The lake's order is by name and step: then the last row of each name is its latest, without sorting.
        if (ahead | ~same).all() and (np.diff(points.codes)[~same] > 0).all():
            rows = np.flatnonzero(np.concatenate([~same, [True]]))
        else:
            order = np.lexsort((points.values, points.times, points.steps, points.codes))
            codes = points.codes[order]
            rows = order[np.flatnonzero(np.concatenate([codes[1:] != codes[:-1], [True]]))]
        for row in rows.tolist():
            new = (int(points.steps[row]), int(points.times[row]), float(points.values[row]), bool(points.is_nan[row]))
            key = points.keys[int(points.codes[row])]
            old = self._rows.get(key)
            if old is None or new[:3] > old[:3]:
                self._rows[key] = new

    def rows(self) -> Iterator[tuple[str, int, int, float, bool]]:
        """Yield (key, step, time, value, is_nan)."""
        for key, row in self._rows.items():
            yield (key, *row)
