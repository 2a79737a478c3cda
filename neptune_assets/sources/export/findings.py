"""What reading one run of an export brought to light, and how it is told at the run's end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.schema import MAX_TIME, MIN_TIME, AttributeType
from neptune_assets.sources.protocol import Issue, RunEnd

_NAMED: Final = 20
"""Attributes named one by one in notes; further ones are counted."""

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


@dataclass(slots=True)
class Findings:
    """What reading one run brought to light, collected for its RunEnd."""

    errors: list[Issue] = field(default_factory=list)
    notes: list[Issue] = field(default_factory=list)
    repairs: Counter[str] = field(default_factory=Counter)
    lost_files: Counter[str] = field(default_factory=Counter)
    unusable: Counter[str] = field(default_factory=Counter)
    rounded: dict[str, int] = field(default_factory=dict)
    empty_points: Counter[tuple[str, str]] = field(default_factory=Counter)
    references: dict[str, str] = field(default_factory=dict)
    indexed: set[str] = field(default_factory=set)
    doubtful_times: int = 0
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    odd_times: OddTimes = field(default_factory=OddTimes)

    def count(self, name: str, rows: int) -> None:
        """Add rows to a repair."""
        if rows:
            self.repairs[name] += rows

    def error(self, message: str) -> None:
        """Report what makes the run partial."""
        self.errors.append(Issue(message))

    def note(self, message: str) -> None:
        """Report without making the run partial."""
        self.notes.append(Issue(message))

    def end(self, run_id: str, zone: str | None) -> RunEnd:
        """Return the run's end; ``zone`` is the time zone that times of its series were read in, if any."""
        for attribute, count in self.lost_files.items():
            self.errors.append(
                Issue(
                    f"{count} files of {attribute} were not downloaded by the exporter. Export the run again.",
                    attribute,
                    str(AttributeType.FILE_SERIES),
                )
            )
        for kind, count in self.unusable.items():
            self.error(
                f"{count} rows of type {kind} are of no known type or points without a step; they were left out."
            )
        for at, ((part, reason), count) in enumerate(self.refused.items()):
            if at == _NAMED:
                self.error(f"{sum(self.refused.values()):,} rows in all could not be held; they were left out.")
                break
            self.error(f"Part {part}: {reason}, in {count:,} rows, which were left out.")
        self.notes.extend(self.odd_times.issues())
        for at, (attribute, value) in enumerate(sorted(self.rounded.items())):
            if at == _NAMED:
                self.note(f"{len(self.rounded) - _NAMED} more whole numbers beyond 2^53 may have been rounded.")
                break
            self.notes.append(
                Issue(
                    f"{attribute} = {value} is beyond 2^53; the exporter may have rounded it.",
                    attribute,
                    str(AttributeType.INT),
                )
            )
        for (attribute, kind), count in self.empty_points.items():
            self.notes.append(Issue(f"{count} points of {attribute} have a time and no value.", attribute, kind))
        for attribute in sorted(self.indexed):
            self.notes.append(
                Issue(
                    f"Steps of {attribute} are indexes 0, 1, 2 ..., because the exporter kept no steps of file series.",
                    attribute,
                    str(AttributeType.FILE_SERIES),
                )
            )
        if self.doubtful_times:
            self.note(
                f"{self.doubtful_times} times lie in an hour that {zone} has twice or not at all; "
                "the first, or the time after the gap, was taken."
            )
        repairs = {name: count for name, count in self.repairs.items() if count}
        return RunEnd(run_id, None, tuple(self.errors), tuple(self.notes), repairs)
