"""Statistics of every series and parameter, measured while sorted rows pass the writer, as tables for the summary.

They are in ``<root>/statistics/<S(project)>/{series,params}.parquet``. These are a cache: a row counts for one content
digest of a run, and a run without rows is scanned by the summary.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neptune_assets.lake.integrity import UNKNOWN, difference, replacing_hashed
from neptune_assets.lake.layout import Layout
from neptune_assets.lake.manifest import RunRecord
from neptune_assets.lake.parts import open_parquet
from neptune_assets.lake.rows import NONE, concat, decimals, raw, validity
from neptune_assets.lake.storage import Storage
from neptune_assets.schema import PARAMETER_TYPES, SCHEMA, STEP_TYPE
from neptune_assets.tempdirs import TempDirectory

_MIN_SPREAD: Final = 1e-120
_MAX_SPREAD: Final = 1e120
"""Squares of differences between these neither vanish nor overflow, however many are summed."""


class Moments:
    """Number, mean and squared deviations of finite values.

    Means are kept as differences from the first one: far from zero they would lose what pieces differ by.
    """

    __slots__ = ("_count", "_offset", "_origin", "_squares")

    def __init__(self) -> None:
        self._count = 0
        self._origin = 0.0
        self._offset = 0.0
        self._squares = 0.0

    @property
    def mean(self) -> float:
        """Mean of all values; 0 if there are none."""
        return self._origin + self._offset

    def add(self, values: npt.NDArray[np.float64], mean: float) -> None:
        """Add values, at least one, whose mean is known (to rounding)."""
        count = len(values)
        with np.errstate(over="ignore", invalid="ignore"):
            deviations = values - mean
            rest = float(deviations.sum()) / count
            # What the mean was rounded by is taken off again.
            squares = float(deviations @ deviations) - rest * rest * count
        self.join(count, mean, rest, squares)

    def join(self, count: int, mean: float, rest: float, squares: float) -> None:
        """Add values by their number, their mean, what it was rounded by, and their squared deviations."""
        if not self._count:
            self._origin = mean
        together = self._count + count
        apart = (mean - self._origin) + rest - self._offset
        self._squares += squares + apart * apart * (self._count / together) * count
        self._offset += apart * (count / together)
        self._count = together

    def variance(self, min_value: float, max_value: float) -> float | None:
        """Return the variance of the population, given its bounds; None where sums of squares cannot tell it."""
        spread = max_value - min_value
        if not self._count or spread == 0:
            return 0.0 if self._count else None
        return max(0.0, self._squares / self._count) if _MIN_SPREAD < spread < _MAX_SPREAD else None


SCALE: Final = 2.0**-64
"""A plain sum of finite values can overflow though their mean cannot; this factor is exact and leaves room."""
_UNIT: Final = 1 << 1126
"""Every finite double is a whole number of 2^-1126."""
_SHORT: Final = 256
"""Points of a series up to which plain sums are as good as pairwise ones."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(slots=True)
class SeriesStats:
    """One series; NONE means no step and no time.

    The mean is the exact sum of the finite values, rounded once, divided by their number: it does not depend on how the
    rows came in batches. ``total`` is that sum, in units of 2^-1126.
    """

    attribute: int
    """Id of the attribute in its run."""
    rows: int = 0
    non_finite: int = 0
    nan: int = 0
    positive_infinity: int = 0
    first: float | None = None
    last: float | None = None
    min_value: float | None = None
    max_value: float | None = None
    total: int = 0
    finite: int = 0
    short_mean: float | None = None
    """Mean of a series that was measured at once, whose exact sum is not kept."""
    first_step: int = NONE
    last_step: int = NONE
    first_time: int = NONE
    last_time: int = NONE
    moments: Moments = field(default_factory=Moments)

    @property
    def mean(self) -> float | None:
        """Mean of finite values."""
        if self.short_mean is not None or not self.finite:
            return self.short_mean
        return _mean(self.total, self.finite)

    @property
    def variance(self) -> float | None:
        """Variance of finite values, of the population; None where it cannot be computed."""
        if self.min_value is None or self.max_value is None:
            return None
        return self.moments.variance(self.min_value, self.max_value)

    def add_steps(self, steps: Ints) -> None:
        """Take sorted steps, where :data:`NONE` comes first."""
        # The last is the maximum, and if the first is not NONE it is the minimum.
        if steps[-1] == NONE:
            return
        low = int(steps[0] if steps[0] != NONE else steps[steps != NONE][0])
        self.first_step = low if self.first_step == NONE else min(self.first_step, low)
        self.last_step = max(self.last_step, int(steps[-1]))

    def add_times(self, times: Ints) -> None:
        """Take times in any order."""
        low, high = times.min(), times.max()
        if high == NONE:
            return
        if low == NONE:
            low = times[times != NONE].min()
        self.first_time = int(low) if self.first_time == NONE else min(self.first_time, int(low))
        self.last_time = max(self.last_time, int(high))

    def add_values(self, values: Floats, steps: Ints, known: Bools | None) -> None:
        """Take values with their steps; ``known`` says which are not null, at least one."""
        if known is not None:
            values, steps = values[known], steps[known]
        placed = values if steps[0] != NONE else values[steps != NONE]
        if len(placed):
            if self.first is None:
                self.first = float(placed[0])
            self.last = float(placed[-1])
        finite = np.isfinite(values)
        if not finite.all():
            self.non_finite += int(len(values) - finite.sum())
            self.nan += int(np.isnan(values).sum())
            self.positive_infinity += int(np.isposinf(values).sum())
            values = values[finite]
        if len(values):
            low, high = float(values.min()), float(values.max())
            self.min_value = low if self.min_value is None else min(self.min_value, low)
            self.max_value = high if self.max_value is None else max(self.max_value, high)
            self.total += exact_sum(values)
            self.finite += len(values)
            self.moments.add(values, float((values * SCALE).sum()) / len(values) / SCALE)


def exact_sum(values: Floats) -> int:
    """Return the sum of finite values in units of 2^-1126, exactly: bounded memory, whatever their order."""
    fractions, exponents = np.frexp(values)
    whole = np.ldexp(fractions, 53).astype(np.int64)
    shifts = exponents.astype(np.int64) + 1073
    low = int(shifts.min())
    places = shifts - low
    # Halves of 27 bits: sums of up to 2^26 of them are exact in a double.
    highs = np.bincount(places, weights=(whole >> 27).astype(np.float64))
    lows = np.bincount(places, weights=(whole & ((1 << 27) - 1)).astype(np.float64))
    total = 0
    for place in np.flatnonzero((highs != 0) | (lows != 0)).tolist():
        total += ((int(highs[place]) << 27) + int(lows[place])) << (place + low)
    return total


def _mean(total: int, count: int) -> float:
    try:
        return total / _UNIT / count
    except OverflowError:
        # The sum is not a double, the mean is. Dividing whole numbers rounds once.
        return total / (_UNIT * count)


def _short_mean(values: list[float]) -> float:
    """Return the mean of a few finite values, the same as :func:`_mean` of their exact sum."""
    try:
        return (math.fsum(values) + 0.0) / len(values)
    except OverflowError:
        return _mean(exact_sum(np.asarray(values)), len(values))


def short_segments(
    starts: Ints,
    ends: Ints,
    chosen: Ints,
    values: Floats,
    known: Bools | None,
    steps: Ints,
    times: Ints,
) -> Ints:
    """Return the chosen segments of few points that all have a finite value, a step and a time."""
    chosen = chosen[ends[chosen] - starts[chosen] <= _SHORT]
    if not len(chosen):
        return chosen
    plain = np.isfinite(values) & (steps != NONE) & (times != NONE)
    if known is not None:
        plain &= known
    return chosen[np.logical_and.reduceat(plain, starts)[chosen]]


def short_series(
    starts: Ints,
    ends: Ints,
    of_segment: npt.NDArray[np.int32],
    values: Floats,
    steps: Ints,
    times: Ints,
) -> dict[int, SeriesStats]:
    """Return series that are whole segments, by attribute: together, since few points cost less than numpy's calls."""
    if not len(starts):
        return {}
    counts = ends - starts
    places = np.repeat(starts - np.concatenate(([0], np.cumsum(counts)[:-1])), counts) + np.arange(int(counts.sum()))
    edges = np.concatenate(([0], np.cumsum(counts)[:-1]))
    values, times = values[places], times[places]
    totals = np.add.reduceat(values * SCALE, edges)
    means = totals / counts / SCALE
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
        steps[starts],
        steps[ends - 1],
        np.minimum.reduceat(times, edges),
        np.maximum.reduceat(times, edges),
        means,
        rests,
        squares,
    )
    found = {}
    listed, place = values.tolist(), 0
    for attribute, count, first, last, low, high, begin, end, early, late, mean, rest, square in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        moments = Moments()
        moments.join(count, mean, rest, square)
        found[attribute] = SeriesStats(
            attribute,
            count,
            first=first,
            last=last,
            min_value=low,
            max_value=high,
            finite=count,
            short_mean=_short_mean(listed[place : place + count]),
            first_step=begin,
            last_step=end,
            first_time=early,
            last_time=late,
            moments=moments,
        )
        place += count
    return found


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
        ("first_time", pa.int64()),
        ("last_time", pa.int64()),
        ("variance_value", pa.float64()),
    ]
)
"""One row for each attribute with points or files; times are milliseconds since 1970, as whole numbers, because not
every reader's times reach as far as the lake's. Minimum, maximum, mean and variance (of the population) are of finite
values; first and last are by step, of rows with a step and a value. A variance may be left out, see
:meth:`Moments.variance`; files from before it was kept lack the column."""

_PARAMETER_COLUMNS: Final = tuple(
    pa.field("datetime_value", pa.int64()) if name == "datetime_value" else SCHEMA.field(name)
    for name in ("int_value", "float_value", "string_value", "bool_value", "datetime_value", "string_set_value")
)
PARAMS: Final = pa.schema([*_KEY, *_NAMES, *_PARAMETER_COLUMNS])
"""One row for each parameter, as in the lake, but times as milliseconds since 1970."""

_STEPS: Final = ("first_step", "last_step")


@dataclass(frozen=True, slots=True)
class RunStats:
    """What was found out about one run: its series, its parameters as compact rows, and their names."""

    run_id: str
    digest: str
    series: list[SeriesStats]
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


def series_table(runs: Sequence[RunStats]) -> pa.RecordBatch:
    """Return rows in :data:`SERIES`, of many runs at once: a table for each would cost small runs too much."""
    series = [item for run in runs for item in run.series]

    def numbers(name: str, kind: pa.DataType) -> pa.Array:
        return pa.array([getattr(item, name) for item in series], kind)

    arrays = [
        *_key([(run, len(run.series)) for run in runs]),
        *_names_of([name for run in runs for name in run.series_names]),
        *(numbers(name, pa.int64()) for name in ("rows", "non_finite", "nan", "positive_infinity")),
        *(numbers(name, pa.float64()) for name in ("first", "last", "min_value", "max_value", "mean")),
        *(decimals(np.asarray([getattr(item, name) for item in series], np.int64)) for name in _STEPS),
        *(_instants([getattr(item, name) for item in series]) for name in ("first_time", "last_time")),
        numbers("variance", pa.float64()),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SERIES)


def parameter_table(runs: Sequence[RunStats]) -> pa.RecordBatch:
    """Return rows in :data:`PARAMS`, of many runs at once."""
    batches = [batch for run in runs for batch in run.parameters]
    if not batches:
        return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in PARAMS], schema=PARAMS)
    rows = concat(batches)
    arrays = [
        *_key([(run, len(run.parameter_names)) for run in runs]),
        *_names_of([name for run in runs for name in run.parameter_names]),
    ]
    for column in _PARAMETER_COLUMNS:
        place = rows.schema.get_field_index(column.name)
        arrays.append(rows.column(place).cast(column.type) if place >= 0 else pa.nulls(rows.num_rows, column.type))
    return pa.RecordBatch.from_arrays(arrays, schema=PARAMS)


def _key(counts: Sequence[tuple[RunStats, int]]) -> list[pa.Array]:
    return [
        pa.array([text for run, count in counts for text in [getattr(run, name)] * count], kind) for name, kind in _KEY
    ]


def _names_of(names: Sequence[tuple[str, str]]) -> list[pa.Array]:
    return [pa.array([path for path, _ in names], pa.string()), pa.array([kind for _, kind in names], pa.string())]


def _instants(milliseconds: Any) -> pa.Array:
    values = np.asarray(milliseconds, np.int64)
    return pa.array(values, mask=values == NONE)


PARAMETER_BYTES: Final = 64 << 20
"""A run whose parameters take more memory is left to the summary, which reads it within its own bounds."""

_PARAMETERS: Final = frozenset(str(kind) for kind in PARAMETER_TYPES)


class RunStatistics:
    """Takes compact rows of one run in sorted order, any number at a time.

    Small runs may be taken together, one after the other, and separated by :meth:`split`.
    """

    def __init__(self, names: Sequence[tuple[str, str]]) -> None:
        self._names = names
        self._series: list[SeriesStats] = []
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
        kinds = [self._names[place][1] for place in of_segment.tolist()]
        parameter = np.fromiter((kind in _PARAMETERS for kind in kinds), np.bool_, len(kinds))
        if parameter.any():
            self._keep_parameters(rows.filter(pa.array(np.repeat(parameter, ends - starts))))
        chosen = np.flatnonzero(~parameter)
        if len(chosen):
            self._measure(rows, starts, ends, of_segment, chosen)

    def facts(self, run_id: str, digest: str, *, parameters: bool = True) -> RunStats | None:
        """Return what was found out, or None for a run whose parameters are too large, unless they are left out."""
        if parameters and self._parameter_bytes > PARAMETER_BYTES:
            return None
        names = self._names
        return RunStats(
            run_id,
            digest,
            self._series,
            [names[item.attribute] for item in self._series],
            self._parameters if parameters else [],
            [
                names[place]
                for batch in (self._parameters if parameters else [])
                for place in batch["attribute"].to_numpy().tolist()
            ],
            self._parameter_bytes,
        )

    def split(self, edges: Sequence[int]) -> list[RunStatistics]:
        """Return the statistics of each of several runs, whose attributes are those from one edge to the next."""
        series = np.searchsorted([item.attribute for item in self._series], edges).tolist()
        parameters = concat(self._parameters) if self._parameters else None
        places = [0] * len(edges)
        if parameters is not None:
            places = np.searchsorted(parameters["attribute"].to_numpy(), edges).tolist()
        found = []
        for run in range(len(edges) - 1):
            one = RunStatistics(self._names)
            one._series = self._series[series[run] : series[run + 1]]
            if parameters is not None and places[run] < places[run + 1]:
                one._keep_parameters(parameters.slice(places[run], places[run + 1] - places[run]))
            found.append(one)
        return found

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
        together: dict[int, SeriesStats] = {}
        if place >= 0:
            column = rows.column(place)
            values = raw(column, np.float64)
            if column.null_count:
                known = validity(column)
        if values is not None:
            short = short_segments(starts, ends, chosen, values, known, steps, times)
            if len(short):
                # An attribute that goes on from the batch before is the first segment.
                if int(of_segment[short[0]]) == self._last_id:
                    short = short[1:]
                # The last segment may go on in the next batch, so its exact sum has to be kept.
                if len(short) and int(ends[short[-1]]) == rows.num_rows:
                    short = short[:-1]
                together = short_series(starts[short], ends[short], of_segment[short], values, steps, times)
        for number in chosen.tolist():
            current = int(of_segment[number])
            if current in together:
                self._series.append(together[current])
                self._last_id = current
                continue
            start, end = int(starts[number]), int(ends[number])
            if current != self._last_id:
                self._series.append(SeriesStats(current))
                self._last_id = current
            series = self._series[-1]
            series.rows += end - start
            series.add_steps(steps[start:end])
            series.add_times(times[start:end])
            if values is not None:
                some = None if known is None else known[start:end]
                if some is None or some.any():
                    series.add_values(values[start:end], steps[start:end], some)


log = logging.getLogger(__name__)

_SCHEMAS: Final = {"series": SERIES, "params": PARAMS}
_BATCH_ROWS: Final = 65_536
_BATCH_BYTES: Final = 16 << 20
_OPTIONS: Final[dict[str, Any]] = {
    "compression": "zstd",
    "compression_level": 13,
    "write_page_checksum": True,
    "store_decimal_as_integer": True,
    "use_dictionary": [field.name for schema in (SERIES, PARAMS) for field in schema if field.type == pa.string()],
}


class StatisticsFiles:
    """The statistics of one project, rewritten once at the end of a materialization that read runs."""

    def __init__(self, storage: Storage, layout: Layout, project_id: str, scratch: str | None) -> None:
        self._storage = storage
        self._directory = layout.statistics(project_id)
        self._scratch = scratch
        self._spool: TempDirectory | None = None
        self._writers: list[Any] = []
        self._added: dict[str, str] = {}
        self._held: list[RunStats] = []
        self._held_rows = 0
        self._held_bytes = 0

    def add(self, facts: RunStats) -> None:
        """Take what was found out about a run that was committed."""
        self._held.append(facts)
        self._held_rows += facts.rows
        self._held_bytes += facts.nbytes
        self._added[facts.run_id] = facts.digest
        if self._held_rows >= _BATCH_ROWS or self._held_bytes >= _BATCH_BYTES:
            self._spill()

    def _spill(self) -> None:
        if self._spool is None:
            self._spool = TempDirectory("statistics", self._scratch)
            for name, schema in _SCHEMAS.items():
                sink = pa.OSFile(f"{self._spool.path}/{name}.arrow", "wb")
                self._writers.append((sink, pa.ipc.new_stream(sink, schema)))
        for (_, writer), table in zip(self._writers, (series_table, parameter_table), strict=True):
            writer.write_batch(table(self._held))
        self._held, self._held_rows, self._held_bytes = [], 0, 0

    def save(self, records: Mapping[str, RunRecord]) -> None:
        """Write the files anew: what was added, and what was there of runs that are as they were."""
        if self._held:
            self._spill()
        if self._spool is None:
            return
        self._close_writers()
        digests = {run_id: record.digest for run_id, record in records.items()}
        kept = {run_id: digest for run_id, digest in digests.items() if self._added.get(run_id) != digest}
        self._storage.make_directory(self._directory)
        for name, schema in _SCHEMAS.items():
            target = f"{self._directory}/{name}.parquet"
            # Under the project's lock nobody else writes here; a local move needs the same file system.
            local = f"{target}.tmp" if self._storage.local else f"{self._spool.path}/{name}.parquet"
            with pq.ParquetWriter(local, schema, **_OPTIONS) as writer:
                old, new = self._stored(target, schema), _spooled(f"{self._spool.path}/{name}.arrow")
                for batches, chosen in ((old, kept), (new, self._added)):
                    for table in _gathered((_of(batch, chosen) for batch in batches), schema):
                        writer.write_table(table)
            with replacing_hashed(Path(local), target, None if self._storage.local else self._storage.filesystem):
                self._storage.put_file(local, target)

    def added(self) -> dict[str, str]:
        """Write what was added to Parquet files that live until :meth:`close`, by table; empty if nothing was."""
        if self._held:
            self._spill()
        if self._spool is None:
            return {}
        self._close_writers()
        found = {}
        for name, schema in _SCHEMAS.items():
            found[name] = f"{self._spool.path}/{name}-added.parquet"
            with pq.ParquetWriter(found[name], schema, store_decimal_as_integer=True) as writer:
                for table in _gathered(_spooled(f"{self._spool.path}/{name}.arrow"), schema):
                    writer.write_table(table)
        return found

    def _stored(self, path: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        try:
            if not usable_statistics(self._storage, path):
                return
            with open_parquet(self._storage, path) as file:
                for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                    yield _completed(batch, schema)
        except FileNotFoundError:
            return
        except (pa.ArrowException, OSError) as error:
            log.warning("Statistics %s cannot be read (%s): the summary makes them again.", path, error)

    def close(self) -> None:
        """Remove what was spooled."""
        self._close_writers()
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def _close_writers(self) -> None:
        for sink, writer in self._writers:
            writer.close()
            sink.close()
        self._writers = []


def usable_statistics(storage: Storage, path: str) -> bool:
    """True if statistics are as they were written; a warning names those that are damaged. They can be made again."""
    damage = difference(path, None if storage.local else storage.filesystem)
    if damage not in {None, UNKNOWN}:
        log.warning("Statistics %s are damaged: %s. They are made again.", storage.url(path), damage)
    return damage is None


def _spooled(path: str) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(path, "rb") as source:
        yield from pa.ipc.open_stream(source)


def _completed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return rows of an older file with the columns that it did not have yet, empty."""
    columns = [
        batch[field.name] if field.name in batch.schema.names else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _of(batch: pa.RecordBatch, digest_by_run: Mapping[str, str]) -> pa.RecordBatch:
    """Return the rows of these runs, where they are of this digest."""
    runs = batch["run_id"].dictionary_encode()
    # A batch holds few runs in long stretches; a run that was read twice is there with its last digest only.
    digests = pa.array([digest_by_run.get(run_id) for run_id in runs.dictionary.to_pylist()], pa.string())
    return batch.filter(pc.equal(batch["digest"], digests.take(runs.indices)))


def _gathered(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Join small batches into tables worth a row group."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        if rows >= _BATCH_ROWS:
            yield pa.Table.from_batches(held, schema=schema)
            held, rows = [], 0
    if rows:
        yield pa.Table.from_batches(held, schema=schema)
