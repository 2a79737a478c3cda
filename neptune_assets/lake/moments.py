"""Variance of values that come in pieces: each piece about its own mean, then pieces together."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

_LEAST: Final = 1e-120
_GREATEST: Final = 1e120
"""Squares of differences between these neither vanish nor overflow, however many are summed."""


class Moments:
    """Number, mean and squared deviations of finite values."""

    __slots__ = ("_count", "_mean", "_squares")

    def __init__(self) -> None:
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0

    def add(self, values: npt.NDArray[np.float64], mean: float) -> None:
        """Add values, at least one, whose mean is known (to rounding)."""
        count = len(values)
        with np.errstate(over="ignore", invalid="ignore"):
            deviations = values - mean
            rest = float(deviations.sum())
            # What the mean was rounded by is taken off again.
            squares = float(deviations @ deviations) - rest * rest / count
        together = self._count + count
        apart = mean - self._mean
        self._squares += squares + apart * apart * (self._count / together) * count
        self._mean += apart * (count / together)
        self._count = together

    def variance(self, least: float, greatest: float) -> float | None:
        """Return the variance of the population, given its bounds; None where sums of squares cannot tell it."""
        spread = greatest - least
        if not self._count or spread == 0:
            return 0.0 if self._count else None
        return max(0.0, self._squares / self._count) if _LEAST < spread < _GREATEST else None
