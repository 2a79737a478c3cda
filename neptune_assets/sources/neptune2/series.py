"""Points of series: pages of the server's answers as arrays, and arrays as Arrow batches.

Times are the epoch milliseconds of the answer itself: the client makes local times without a zone of them, in which an
hour of autumn occurs twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.schema import MICROSTEPS, AttributeType
from neptune_assets.sources.blocks import FULL, weight_of
from neptune_assets.sources.neptune2.values import real, whole
from neptune_assets.sources.rows import NO_TIME, Ints, check_value, rows_of_series
from neptune_assets.sources.values import micro_steps, text

CALLS: Final[Mapping[AttributeType, str]] = {
    AttributeType.FLOAT_SERIES: "getFloatSeriesValues",
    AttributeType.STRING_SERIES: "getStringSeriesValues",
    AttributeType.FILE_SERIES: "getImageSeriesValues",
}
"""The call that gives the points of each type."""

_INT64: Final = range(-(2**63) + 1, 2**63)
_MOST_IMAGES: Final = 10_000_000
"""Images that a series may have whose server reports no more than their number."""


@dataclass(frozen=True)
class Page:
    """Some points of one series: whole micro-steps, epoch milliseconds, values; and how many the server has in all.

    A time that the server does not report is :data:`NO_TIME`. ``sent`` counts the points that no row can hold, too.
    """

    steps: Ints
    times: Ints
    values: npt.NDArray[np.float64] | list[str]
    total: int
    sent: int = 0
    refused: str = ""
    """Why the first of the points that no row can hold was left out."""
    untimed: int = 0
    """Points whose times are not numbers; they are kept without."""

    def __len__(self) -> int:
        return len(self.steps)

    @cached_property
    def weight(self) -> int:
        """Rows that take as much room: long texts count for several."""
        return sum(map(weight_of, self.values)) if isinstance(self.values, list) else len(self.steps)


@dataclass(frozen=True, slots=True)
class Points:
    """Some points of one series, and which."""

    path: str
    kind: AttributeType
    page: Page


def parse_page(answer: Mapping[str, Any], kind: AttributeType) -> Page:
    """Turn an answer into a page of floats or strings, without the points that no row can hold.

    Raises TypeError, KeyError, ValueError or OverflowError if it is not a page.
    """
    points = _points(answer)
    total = whole(answer["totalItemCount"])
    refused = ""
    try:
        steps, values = _columns(points, kind)
    except (TypeError, KeyError, ValueError, OverflowError, AttributeError):
        # One by one, to lose no more than what is odd.
        kept = []
        for point in points:
            try:
                _columns([point], kind)
            except (TypeError, KeyError, ValueError, OverflowError, AttributeError) as error:
                refused = refused or f"{type(error).__name__} {error!s:.100}"
            else:
                kept.append(point)
        steps, values = _columns(kept, kind)
        sent, points = len(points), kept
    else:
        sent = len(points)
    times, untimed = _times(points)
    return Page(steps, times, values, total, sent, refused, untimed)


def _points(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    points = answer.get("values") or []
    if not isinstance(points, list):
        raise TypeError(f"{points!r:.80} is not a list of points")
    return points


def _columns(
    points: Sequence[Mapping[str, Any]], kind: AttributeType
) -> tuple[Ints, npt.NDArray[np.float64] | list[str]]:
    raw = [point["value"] for point in points]
    steps = _steps(points)
    if kind is AttributeType.FLOAT_SERIES:
        # Whole numbers arrive without a point, and not-a-number may be text.
        return steps, np.array([value if type(value) is float else real(value) for value in raw], np.float64)
    texts = [text(value) for value in raw]
    for value in texts:
        check_value("string_value", value)
    return steps, texts


def _steps(points: Sequence[Mapping[str, Any]]) -> Ints:
    """Steps of points as whole micro-steps. Raises TypeError or ValueError for what no step can be."""
    steps = [point["step"] for point in points]
    if any(isinstance(step, bool) or not isinstance(step, int | float) for step in steps):
        raise TypeError("a step is not a number")
    return micro_steps(np.array(steps, np.float64))


def _times(points: Sequence[Mapping[str, Any]]) -> tuple[Ints, int]:
    """Times of points, and how many of them are not numbers that 64 bits hold."""
    times = [point.get("timestampMillis") for point in points]
    odd = [place for place, time in enumerate(times) if type(time) is not int or time not in _INT64]
    for place in odd:
        times[place] = NO_TIME
    return np.array(times, np.int64), len(odd)


def image_page(answer: Mapping[str, Any], offset: int, asked: int, refer: Callable[[str], str]) -> tuple[Page, bool]:
    """Turn an answer about images into a page, and whether steps and times are the server's.

    ``refer`` makes a reference from an image's place in its series.

    Neptune's own service reports only how many there are; then steps are places in the series and times are unknown.
    """
    total = whole(answer["totalItemCount"])
    points = _points(answer)
    if points and all("step" in point and "timestampMillis" in point for point in points):
        references = [refer(str(offset + place)) for place in range(len(points))]
        steps = _steps(points)
        times, untimed = _times(points)
        return Page(steps, times, references, total, sent=len(points), untimed=untimed), True
    if total > _MOST_IMAGES:
        raise ValueError(f"{total:,} images are more than can be")
    found = range(offset, min(offset + asked, total))
    steps = np.array(found, np.int64) * MICROSTEPS
    references = [refer(str(place)) for place in found]
    return Page(steps, np.full(len(found), NO_TIME, np.int64), references, total, sent=len(found)), False


class PointRows:
    """Collects points of series of one type, of runs that are known by number."""

    def __init__(self, kind: AttributeType) -> None:
        self._kind = kind
        self._runs: list[int] = []
        self._points: list[Points] = []
        self._weight = 0

    @property
    def full(self) -> bool:
        """True if there is enough for a batch."""
        return self._weight >= FULL

    def add(self, run: int, points: Points) -> None:
        """Add points of a run."""
        self._runs.append(run)
        self._points.append(points)
        self._weight += points.page.weight

    def batch(self, project_id: str, run_ids: Sequence[str]) -> tuple[pa.RecordBatch, Ints]:
        """Return the rows, and the number of each one's run."""
        pages = [points.page for points in self._points]
        series = np.repeat(np.arange(len(pages)), [len(page) for page in pages])
        runs = np.array(self._runs, np.int64)[series]
        values: Any = [page.values for page in pages]
        batch = rows_of_series(
            project_id,
            run_ids,
            self._kind,
            [points.path for points in self._points],
            series,
            np.concatenate([page.steps for page in pages]),
            np.concatenate([page.times for page in pages]),
            np.concatenate(values) if self._kind is AttributeType.FLOAT_SERIES else list(chain.from_iterable(values)),
            runs if len(run_ids) > 1 else None,
        )
        return batch, runs
