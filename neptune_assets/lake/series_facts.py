"""What is known of one series: counts, ends, bounds and moments, gathered piece by piece in order of steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from neptune_assets.lake.moments import Moments
from neptune_assets.lake.rows import NONE

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
class SeriesFacts:
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
    least: float | None = None
    greatest: float | None = None
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
        """Variance of finite values, of the population; None where it cannot be told."""
        if self.least is None or self.greatest is None:
            return None
        return self.moments.variance(self.least, self.greatest)

    def add_steps(self, steps: Ints) -> None:
        """Take sorted steps, where :data:`NONE` comes first."""
        # The last is the greatest, and if the first is not NONE it is the least.
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
            self.least = low if self.least is None else min(self.least, low)
            self.greatest = high if self.greatest is None else max(self.greatest, high)
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
) -> dict[int, SeriesFacts]:
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
        found[attribute] = SeriesFacts(
            attribute,
            count,
            first=first,
            last=last,
            least=low,
            greatest=high,
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
