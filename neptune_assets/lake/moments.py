"""Variance of values that come in pieces: each piece about its own mean, then pieces together."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

_LEAST: Final = 1e-120
_GREATEST: Final = 1e120
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

    def variance(self, least: float, greatest: float) -> float | None:
        """Return the variance of the population, given its bounds; None where sums of squares cannot tell it."""
        spread = greatest - least
        if not self._count or spread == 0:
            return 0.0 if self._count else None
        return max(0.0, self._squares / self._count) if _LEAST < spread < _GREATEST else None
