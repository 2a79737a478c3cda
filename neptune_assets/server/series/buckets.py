"""Points gathered into buckets along the steps: where a series is, and was, in each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from neptune_assets.server.series.points import FloatPoints, step_doubles

_NOWHERE: Final = (float("nan"), float("nan"))


@dataclass(frozen=True, slots=True)
class Bucket:
    """Points with steps above ``low`` up to ``high``; first, last, least, greatest and sum are of finite values.

    ``first`` and ``last`` are (step, value), NaN both where no value is finite.
    """

    index: int
    low: float
    high: float
    first: tuple[float, float]
    last: tuple[float, float]
    least: float | None
    greatest: float | None
    finite: int
    nans: int
    positive_infinities: int
    negative_infinities: int
    total: float | None


def edges(low: float, high: float, count: int) -> npt.NDArray[np.float64]:
    """Return the upper ends of all buckets but the last, which has none.

    The first bucket holds what is not above ``low``. If there is no range there is one bucket, and no end.
    """
    if low == high or count < 2:
        return np.zeros(0, np.float64)
    width = (high - low) / (count - 1)
    return low + width * np.arange(count, dtype=np.float64)


def gather(pieces: Iterable[FloatPoints], low: float, ends: npt.NDArray[np.float64]) -> list[Bucket]:
    """Return the buckets that hold any point, in order; ``ends`` are from :func:`edges`, pieces in ascending order."""
    found: list[Bucket] = []
    for piece in pieces:
        for bucket in _gathered(piece, low, ends):
            # Pieces end where they happen to: the first bucket of one may be the last of the one before.
            if found and found[-1].index == bucket.index:
                found[-1] = _together(found[-1], bucket)
            else:
                found.append(bucket)
    return found


def _gathered(points: FloatPoints, low: float, ends: npt.NDArray[np.float64]) -> Iterator[Bucket]:
    steps = step_doubles(points.steps)
    values = points.values
    if not len(ends):
        steps, values = steps[steps >= low], values[steps >= low]
    if not len(steps):
        return
    places = np.searchsorted(ends, steps, "left")
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    stops = np.append(starts[1:], len(steps))
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        index = int(places[start])
        some = values[start:stop]
        finite = np.flatnonzero(np.isfinite(some))
        first = last = _NOWHERE
        if len(finite):
            first, last = (
                (float(steps[start + place]), float(some[place])) for place in (int(finite[0]), int(finite[-1]))
            )
        known = some[finite]
        with np.errstate(over="ignore"):
            total = float(known.sum()) if len(known) else None
        yield Bucket(
            index=index,
            low=_lower(index, low, ends),
            high=float(ends[index]) if index < len(ends) else float("inf"),
            first=first,
            last=last,
            least=float(known.min()) if len(known) else None,
            greatest=float(known.max()) if len(known) else None,
            finite=len(known),
            nans=int(np.isnan(some).sum()),
            positive_infinities=int(np.isposinf(some).sum()),
            negative_infinities=int(np.isneginf(some).sum()),
            total=total,
        )


def _together(before: Bucket, after: Bucket) -> Bucket:
    """Return one bucket of what is in two of the same index."""
    known = [bucket for bucket in (before, after) if bucket.finite]
    return Bucket(
        index=before.index,
        low=before.low,
        high=before.high,
        first=known[0].first if known else _NOWHERE,
        last=known[-1].last if known else _NOWHERE,
        least=min((bucket.least for bucket in known if bucket.least is not None), default=None),
        greatest=max((bucket.greatest for bucket in known if bucket.greatest is not None), default=None),
        finite=before.finite + after.finite,
        nans=before.nans + after.nans,
        positive_infinities=before.positive_infinities + after.positive_infinities,
        negative_infinities=before.negative_infinities + after.negative_infinities,
        total=sum(bucket.total for bucket in known if bucket.total is not None) if known else None,
    )


def _lower(index: int, low: float, ends: npt.NDArray[np.float64]) -> float:
    if index > 0:
        return float(ends[index - 1])
    return float("-inf") if len(ends) else low
