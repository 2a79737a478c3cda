"""Times that a source finds: which datetimes hold, which ones a row holds, and what is said of the others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.schema import MAX_TIME, MIN_TIME
from neptune_assets.sources.protocol import Issue

YEAR_1: Final = -62_135_596_800_000
YEAR_10000: Final = 253_402_300_800_000
"""Epoch milliseconds of the first time that Python's datetimes hold, and of the first one they no longer do."""


def moment_of(milliseconds: int | None) -> datetime | None:
    """Epoch milliseconds as a datetime; None for none, and for what datetimes cannot hold."""
    if milliseconds is None or not YEAR_1 <= milliseconds < YEAR_10000:
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)


class OddTimes:
    """Times of a run's points outside the years 1 to 9999: counted, kept where the lake can hold them, and reported."""

    def __init__(self) -> None:
        self._kept: tuple[int, str, int] = (0, "", 0)
        self._lost: tuple[int, str, int] = (0, "", 0)

    def take(self, path: str, time: int, points: int = 1) -> int | None:
        """Count a time of so many points; return it, or None if no row can hold it."""
        if MIN_TIME <= time <= MAX_TIME:
            self._kept = (self._kept[0] + points, *(self._kept[1:] if self._kept[0] else (path, time)))
            return time
        self._lost = (self._lost[0] + points, *(self._lost[1:] if self._lost[0] else (path, time)))
        return None

    def beyond(self, path: str | pa.Array, times: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
        """Count the times of a series, or of rows with these paths; return which no row can hold, None if all can."""
        if not len(times) or (times.min() >= YEAR_1 and times.max() < YEAR_10000):
            return None
        beyond: npt.NDArray[np.bool_] = (times < MIN_TIME) | (times > MAX_TIME)
        for odd in (beyond, ((times < YEAR_1) | (times >= YEAR_10000)) & ~beyond):
            if odd.any():
                first = int(odd.argmax())
                self.take(path if isinstance(path, str) else str(path[first]), int(times[first]), int(odd.sum()))
        return beyond if beyond.any() else None

    def issues(self) -> list[Issue]:
        """What to note at the end of the run."""
        issues = []
        count, path, time = self._kept
        if count:
            issues.append(
                Issue(
                    f"{count:,} times of points are outside the years 1 to 9999, the first is {time} ms since 1970 of "
                    f"{path!r}; they are kept exactly. Seconds and milliseconds may have been mixed up.",
                )
            )
        count, path, time = self._lost
        if count:
            issues.append(
                Issue(
                    f"{count:,} times of points are beyond what a time can hold, the first is {time} ms since 1970 of "
                    f"{path!r}; these points are kept without a time.",
                )
            )
        return issues
