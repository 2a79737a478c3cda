"""What is known of one series: counts, ends, bounds and moments, gathered piece by piece in order of steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from neptune_assets.lake.moments import Moments
from neptune_assets.lake.rows import NONE

SCALE: Final = 2.0**-64
"""A plain sum of finite values can overflow though their mean cannot; this factor is exact and leaves room."""
_SHORT: Final = 256
"""Points of a series up to which plain sums are as good as pairwise ones."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(slots=True)
class SeriesFacts:
    """One series. ``total`` is the sum of finite values times :data:`SCALE`; NONE stands for no step and no time."""

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
    total: float = 0.0
    finite: int = 0
    first_step: int = NONE
    last_step: int = NONE
    first_time: int = NONE
    last_time: int = NONE
    moments: Moments = field(default_factory=Moments)

    @property
    def mean(self) -> float | None:
        """Mean of finite values."""
        return self.total / self.finite / SCALE if self.finite else None

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
            total = float((values * SCALE).sum())
            self.total += total
            self.finite += len(values)
            self.moments.add(values, total / len(values) / SCALE)


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
        totals,
        steps[starts],
        steps[ends - 1],
        np.minimum.reduceat(times, edges),
        np.maximum.reduceat(times, edges),
        means,
        rests,
        squares,
    )
    found = {}
    for attribute, count, first, last, low, high, total, begin, end, early, late, mean, rest, square in zip(
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
            total=total,
            finite=count,
            first_step=begin,
            last_step=end,
            first_time=early,
            last_time=late,
            moments=moments,
        )
    return found
