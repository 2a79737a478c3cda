"""What is known of every series once a run was read: counts, first, last, least, greatest, mean, variance.

Rows pass the writer once, sorted; looking at them then costs little and spares the summary a second pass over
everything. The file, beside the lake, is a cache: an entry counts for one content digest of a run, and a run without
one is scanned. Where it lies and when it is written is in
:mod:`neptune_assets.lake.statistics_files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.lake.moments import Moments
from neptune_assets.lake.rows import NONE, Attributes, concat, decimals, raw, validity
from neptune_assets.schema import PARAMETER_TYPES, SCHEMA, STEP_TYPE, TIME_TYPE

_KEY: Final = (("run_id", pa.string()), ("digest", pa.string()))
_NAMES: Final = (("attribute_path", pa.string()), ("attribute_type", pa.string()))
SERIES: Final = pa.schema(
    [
        *_KEY,
        *_NAMES,
        ("row_count", pa.int64()),
        ("non_finite_count", pa.int64()),
        ("nan_count", pa.int64()),
        ("positive_infinity_count", pa.int64()),
        ("first_value", pa.float64()),
        ("last_value", pa.float64()),
        ("min_value", pa.float64()),
        ("max_value", pa.float64()),
        ("mean_value", pa.float64()),
        ("first_step", STEP_TYPE),
        ("last_step", STEP_TYPE),
        ("first_time", TIME_TYPE),
        ("last_time", TIME_TYPE),
        ("variance_value", pa.float64()),
    ]
)
"""One row for each attribute with points or files. Least, greatest, mean and variance (of the population) are of finite
values; first and last are by step, of rows with a step and a value. A variance may be left out, see
:mod:`neptune_assets.lake.moments`; files from before it was kept lack the column."""

_PARAMETER_COLUMNS: Final = tuple(
    SCHEMA.field(name)
    for name in ("int_value", "float_value", "string_value", "bool_value", "datetime_value", "string_set_value")
)
PARAMS: Final = pa.schema([*_KEY, *_NAMES, *_PARAMETER_COLUMNS])
"""One row for each parameter, as in the lake."""

PARAMETER_BYTES: Final = 64 << 20
"""A run whose parameters take more memory is left to the summary, which reads it within its own bounds."""

_PARAMETERS: Final = frozenset(str(kind) for kind in PARAMETER_TYPES)
_SHORT: Final = 256
"""Points of a series up to which plain sums are as good as pairwise ones."""
_SCALE: Final = 2.0**-64
"""A plain sum of finite values can overflow though their mean cannot; this factor is exact and leaves room."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What was found out about one run: entries of its series, its parameters as compact rows, and their names."""

    run_id: str
    digest: str
    series: list[list[Any]]
    series_names: list[tuple[str, str]]
    parameters: list[pa.RecordBatch]
    parameter_names: list[tuple[str, str]]
    parameter_bytes: int

    @property
    def rows(self) -> int:
        """Rows that both tables get."""
        return len(self.series) + len(self.parameter_names)

    @property
    def nbytes(self) -> int:
        """About the bytes that this takes in memory."""
        return 600 * len(self.series) + self.parameter_bytes


class RunStatistics:
    """Takes compact rows of one run in sorted order, any number at a time."""

    def __init__(self, attributes: Attributes) -> None:
        self._attributes = attributes
        self._series: list[list[Any]] = []
        self._last_id = -1
        self._parameters: list[pa.RecordBatch] = []
        self._parameter_bytes = 0

    def update(self, rows: pa.RecordBatch) -> None:
        """Take the next compact rows."""
        ids = rows["attribute"].to_numpy()
        if not len(ids):
            return
        edges = np.flatnonzero(np.diff(ids)) + 1
        starts = np.concatenate(([0], edges))
        ends = np.concatenate((edges, [len(ids)]))
        of_segment = ids[starts]
        kinds = [self._attributes.names[place][1] for place in of_segment.tolist()]
        parameter = np.fromiter((kind in _PARAMETERS for kind in kinds), np.bool_, len(kinds))
        if parameter.any():
            self._keep_parameters(rows.filter(pa.array(np.repeat(parameter, ends - starts))))
        chosen = np.flatnonzero(~parameter)
        if len(chosen):
            self._measure(rows, starts, ends, of_segment, chosen)

    def facts(self, run_id: str, digest: str) -> RunFacts | None:
        """Return what was found out, or None for a run whose parameters are too large."""
        if self._parameter_bytes > PARAMETER_BYTES:
            return None
        names = self._attributes.names
        return RunFacts(
            run_id,
            digest,
            self._series,
            [names[entry[0]] for entry in self._series],
            self._parameters,
            [names[place] for batch in self._parameters for place in batch["attribute"].to_numpy().tolist()],
            self._parameter_bytes,
        )

    def _keep_parameters(self, rows: pa.RecordBatch) -> None:
        self._parameter_bytes += rows.nbytes
        if self._parameter_bytes > PARAMETER_BYTES:
            self._parameters.clear()
        else:
            self._parameters.append(rows)

    def _measure(
        self,
        rows: pa.RecordBatch,
        starts: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        of_segment: npt.NDArray[np.int32],
        chosen: npt.NDArray[np.int64],
    ) -> None:
        steps, times = rows["step"].to_numpy(), rows["time"].to_numpy()
        place = rows.schema.get_field_index("float_value")
        values = known = None
        entries: dict[int, list[Any]] = {}
        if place >= 0:
            column = rows.column(place)
            values = raw(column, np.float64)
            if column.null_count:
                known = validity(column)
        if values is not None:
            short = _short_segments(starts, ends, chosen, values, known, steps, times)
            if len(short):
                # An attribute that goes on from the batch before is the first segment.
                if int(of_segment[short[0]]) == self._last_id:
                    short = short[1:]
                entries = _short_entries(starts[short], ends[short], of_segment[short], values, steps, times)
        for number in chosen.tolist():
            current = int(of_segment[number])
            if current in entries:
                self._series.append(entries[current])
                self._last_id = current
                continue
            start, end = int(starts[number]), int(ends[number])
            if current != self._last_id:
                self._series.append(
                    [current, 0, 0, 0, 0, None, None, None, None, 0.0, 0, NONE, NONE, NONE, NONE, Moments()]
                )
                self._last_id = current
            entry = self._series[-1]
            entry[1] += end - start
            _bounds(entry, 11, steps[start:end], ordered=True)
            _bounds(entry, 13, times[start:end], ordered=False)
            if values is not None:
                some = None if known is None else known[start:end]
                if some is None or some.any():
                    _values(entry, values[start:end], steps[start:end], some)


def series_table(runs: Sequence[RunFacts]) -> pa.RecordBatch:
    """Return rows in :data:`SERIES`, of many runs at once: a table for each would cost small runs too much."""
    series = [entry for run in runs for entry in run.series]
    columns = list(zip(*series, strict=True)) if series else [()] * 16
    means = [total / finite / _SCALE if finite else None for total, finite in zip(*columns[9:11], strict=True)]
    variances = [
        moments.variance(least, greatest) if finite else None
        for moments, least, greatest, finite in zip(columns[15], *columns[7:9], columns[10], strict=True)
    ]
    arrays = [
        *_key([(run, len(run.series)) for run in runs]),
        *_names_of([name for run in runs for name in run.series_names]),
        *(pa.array(column, pa.int64()) for column in columns[1:5]),
        *(pa.array(column, pa.float64()) for column in columns[5:9]),
        pa.array(means, pa.float64()),
        *(decimals(np.asarray(column, np.int64)) for column in columns[11:13]),
        *(_instants(column) for column in columns[13:15]),
        pa.array(variances, pa.float64()),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SERIES)


def parameter_table(runs: Sequence[RunFacts]) -> pa.RecordBatch:
    """Return rows in :data:`PARAMS`, of many runs at once."""
    batches = [batch for run in runs for batch in run.parameters]
    if not batches:
        return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in PARAMS], schema=PARAMS)
    rows = concat(batches)
    arrays = [
        *_key([(run, len(run.parameter_names)) for run in runs]),
        *_names_of([name for run in runs for name in run.parameter_names]),
    ]
    for field in _PARAMETER_COLUMNS:
        place = rows.schema.get_field_index(field.name)
        arrays.append(rows.column(place) if place >= 0 else pa.nulls(rows.num_rows, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=PARAMS)


def _short_segments(
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    chosen: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
    known: npt.NDArray[np.bool_] | None,
    steps: npt.NDArray[np.int64],
    times: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Return the chosen segments of few points that all have a finite value, a step and a time."""
    chosen = chosen[ends[chosen] - starts[chosen] <= _SHORT]
    if not len(chosen):
        return chosen
    plain = np.isfinite(values) & (steps != NONE) & (times != NONE)
    if known is not None:
        plain &= known
    return chosen[np.logical_and.reduceat(plain, starts)[chosen]]


def _short_entries(
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    of_segment: npt.NDArray[np.int32],
    values: npt.NDArray[np.float64],
    steps: npt.NDArray[np.int64],
    times: npt.NDArray[np.int64],
) -> dict[int, list[Any]]:
    """Return entries of whole segments, made together: series of few points cost numpy's calls, not their points."""
    if not len(starts):
        return {}
    counts = ends - starts
    places = np.repeat(starts - np.concatenate(([0], np.cumsum(counts)[:-1])), counts) + np.arange(int(counts.sum()))
    edges = np.concatenate(([0], np.cumsum(counts)[:-1]))
    values, times = values[places], times[places]
    totals = np.add.reduceat(values * _SCALE, edges)
    means = totals / counts / _SCALE
    with np.errstate(over="ignore", invalid="ignore"):
        deviations = values - np.repeat(means, counts)
        rests = np.add.reduceat(deviations, edges) / counts
        squares = np.add.reduceat(deviations * deviations, edges) - rests * rests * counts
    columns = (
        of_segment,
        counts,
        values[edges],
        values[edges + counts - 1],
        np.minimum.reduceat(values, edges),
        np.maximum.reduceat(values, edges),
        totals,
        steps[starts],
        steps[ends - 1],
        np.minimum.reduceat(times, edges),
        np.maximum.reduceat(times, edges),
        means,
        rests,
        squares,
    )
    entries = {}
    for place, count, first, last, low, high, total, begin, end, early, late, mean, rest, square in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        moments = Moments()
        moments.join(count, mean, rest, square)
        entries[place] = [
            place, count, 0, 0, 0, first, last, low, high, total, count, begin, end, early, late, moments,
        ]  # fmt: skip
    return entries


def _bounds(entry: list[Any], place: int, values: npt.NDArray[np.int64], *, ordered: bool) -> None:
    """Widen the bounds at ``place`` and the next by values that may be :data:`NONE`."""
    if ordered:
        # Sorted, and NONE comes first: the last is the greatest, and if the first is not NONE it is the least.
        if values[-1] == NONE:
            return
        low, high = (values[0] if values[0] != NONE else values[values != NONE][0]), values[-1]
    else:
        low, high = values.min(), values.max()
        if high == NONE:
            return
        if low == NONE:
            low = values[values != NONE].min()
    entry[place] = int(low) if entry[place] == NONE else min(entry[place], int(low))
    entry[place + 1] = max(entry[place + 1], int(high))


def _values(
    entry: list[Any],
    values: npt.NDArray[np.float64],
    steps: npt.NDArray[np.int64],
    known: npt.NDArray[np.bool_] | None,
) -> None:
    """Add values of one series; ``known`` says which are not null."""
    if known is not None:
        values, steps = values[known], steps[known]
    placed = values if steps[0] != NONE else values[steps != NONE]
    if len(placed):
        if entry[5] is None:
            entry[5] = float(placed[0])
        entry[6] = float(placed[-1])
    finite = np.isfinite(values)
    if not finite.all():
        entry[2] += int(len(values) - finite.sum())
        entry[3] += int(np.isnan(values).sum())
        entry[4] += int(np.isposinf(values).sum())
        values = values[finite]
    if len(values):
        low, high = float(values.min()), float(values.max())
        entry[7] = low if entry[7] is None else min(entry[7], low)
        entry[8] = high if entry[8] is None else max(entry[8], high)
        total = float((values * _SCALE).sum())
        entry[9] += total
        entry[10] += len(values)
        entry[15].add(values, total / len(values) / _SCALE)


def _key(counts: Sequence[tuple[RunFacts, int]]) -> list[pa.Array]:
    return [
        pa.array([text for run, count in counts for text in [getattr(run, name)] * count], kind) for name, kind in _KEY
    ]


def _names_of(names: Sequence[tuple[str, str]]) -> list[pa.Array]:
    return [pa.array([path for path, _ in names], pa.string()), pa.array([kind for _, kind in names], pa.string())]


def _instants(milliseconds: Any) -> pa.Array:
    values = np.asarray(milliseconds, np.int64)
    return pa.array(values, mask=values == NONE).cast(TIME_TYPE)
