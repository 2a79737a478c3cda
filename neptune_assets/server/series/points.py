"""Points in memory, as arrays, in ascending order of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from neptune_assets.schema import MICROSTEPS

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_EXACT: Final = 1 << 53
"""Integers up to here are doubles without rounding."""
_NO_INTS: Final = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Window:
    """Which points are asked for: steps from ``low`` to ``high``, both included, at most ``limit``, the last or first.

    Micro-steps; None is no bound.
    """

    low: int | None = None
    high: int | None = None
    limit: int | None = None
    last: bool = True

    def narrowed(self, low: int | None, high: int | None) -> Window:
        """Return this window within other bounds."""
        lows = [step for step in (self.low, low) if step is not None]
        highs = [step for step in (self.high, high) if step is not None]
        return Window(max(lows, default=None), min(highs, default=None), self.limit, self.last)

    def fewer(self, taken: int) -> Window:
        """Return this window with what is left of its limit."""
        return Window(self.low, self.high, None if self.limit is None else self.limit - taken, self.last)

    @property
    def empty(self) -> bool:
        """True if no point can be in it."""
        return (self.limit is not None and self.limit <= 0) or (
            self.low is not None and self.high is not None and self.low > self.high
        )

    def bounds(self, steps: Ints) -> tuple[int, int]:
        """Return the range of indexes of ascending steps that are in it."""
        start = 0 if self.low is None else int(np.searchsorted(steps, self.low, "left"))
        end = len(steps) if self.high is None else int(np.searchsorted(steps, self.high, "right"))
        if self.limit is not None and end - start > self.limit:
            start, end = (end - self.limit, end) if self.last else (start, start + self.limit)
        return start, max(start, end)


@dataclass(frozen=True, slots=True)
class FloatPoints:
    """Points of a float series: micro-steps, milliseconds (0 where there is no time), values.

    ``previews`` is None where all points are final, else how complete each one is, NaN for final ones.
    """

    steps: Ints
    times: Ints
    values: Floats
    previews: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.steps)

    def slice(self, start: int, end: int) -> FloatPoints:
        """Return some of the points."""
        previews = None if self.previews is None else self.previews[start:end]
        return FloatPoints(self.steps[start:end], self.times[start:end], self.values[start:end], previews)

    def within(self, window: Window) -> FloatPoints:
        """Return the points in a window."""
        return self.slice(*window.bounds(self.steps))


NO_POINTS: Final = FloatPoints(_NO_INTS, _NO_INTS, np.zeros(0, np.float64))


def step_doubles(steps: Ints) -> Floats:
    """Return steps as clients see them, each rounded once."""
    if len(steps) and max(abs(int(steps.min())), abs(int(steps.max()))) > _EXACT:
        return np.array([step / MICROSTEPS for step in steps.tolist()], np.float64)
    return steps / MICROSTEPS


def join(pieces: list[FloatPoints]) -> FloatPoints:
    """Put pieces, in ascending order, together."""
    pieces = [piece for piece in pieces if len(piece)]
    if len(pieces) <= 1:
        return pieces[0] if pieces else NO_POINTS
    previews = None
    if any(piece.previews is not None for piece in pieces):
        previews = np.concatenate(
            [np.full(len(piece), np.nan, np.float32) if piece.previews is None else piece.previews for piece in pieces]
        )
    return FloatPoints(
        np.concatenate([piece.steps for piece in pieces]),
        np.concatenate([piece.times for piece in pieces]),
        np.concatenate([piece.values for piece in pieces]),
        previews,
    )


@dataclass(frozen=True, slots=True)
class ObjectPoint:
    """A point of a series of strings (``value`` is a str), histograms or files (a dict, as the store keeps them)."""

    step: int
    time: int
    value: Any
