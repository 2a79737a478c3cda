"""One run while it is read: what is known of it, what is still to be answered, and points that wait for their turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from neptune_assets.schema import AttributeType
from neptune_assets.sources.blocks import weight_of
from neptune_assets.sources.neptune2.listing import Listed
from neptune_assets.sources.neptune2.series import NO_TIME, Points
from neptune_assets.sources.offline.state import RunState
from neptune_assets.sources.protocol import RunEnd
from neptune_assets.sources.times import OddTimes


class OpenRun:
    """One run; only the thread that reads touches it."""

    def __init__(self, project_id: str, listed: Listed, number: int, keep: Callable[[str, str], bool]) -> None:
        """``number`` is the run's place among those that are read; ``keep`` is the filter on attributes."""
        self.listed = listed
        self.number = number
        self.state = RunState(project_id, listed.run_id, keep)
        self.unanswered = 0
        """Questions about the run that are still asked."""
        self.weight = 0
        """Room that points take which have come and were not taken, in rows."""
        self._points: list[Points] = []
        self._promised: Counter[str] = Counter()
        self._empty: list[str] = []
        self._odd_times = OddTimes()

    @property
    def size(self) -> int:
        """Rows of values, long ones counted for several; points are not counted."""
        return sum(weight_of(value) for values in self.state.snapshot().values() for value in values.values())

    def unreadable(self, why: str) -> None:
        """Say that nothing can be known of the run."""
        project = self.state.project_id
        self.state.error(f"Run {self.listed.run_id!r} of {project!r} cannot be read. {why}")
        self.state.whole = False

    def arrive(self, points: Points) -> None:
        """Keep points until they are taken; times that no row can hold are taken away and told at the end."""
        page = points.page
        told = page.times != NO_TIME
        beyond = self._odd_times.beyond(points.path, page.times[told])
        if beyond is not None:
            page.times[np.flatnonzero(told)[beyond]] = NO_TIME
        self._points.append(points)
        self.weight += points.page.weight

    def take_points(self) -> list[Points]:
        """Take the points that have come since the last time."""
        points, self._points, self.weight = self._points, [], 0
        return points

    def promise(self, kind: AttributeType) -> None:
        """Count an attribute that the server says the run has."""
        self._promised[str(kind)] += 1

    def lack_points(self, path: str) -> None:
        """Remember a series without points, which is told and not missed."""
        self._empty.append(path)

    def values(self) -> Iterator[tuple[str, AttributeType, Any]]:
        """Give path, type and value of what is no series, and count them as promised; call once, at the end."""
        for path, values in self.state.snapshot().items():
            kept = [kind for kind in values if self.state.rows.wants(kind, path)]
            if len(kept) > 1:
                types = ", ".join(map(str, kept))
                self.state.note(f"{path!r} holds values of several types: {types}. All of them are kept.", path)
            for kind in kept:
                self.promise(kind)
                yield path, kind, sorted(values[kind]) if kind is AttributeType.STRING_SET else values[kind]

    def refuse(self, path: str, kind: AttributeType, problem: Exception) -> None:
        """Report a value that no row can hold."""
        self.state.error(f"The value of {path!r} cannot be kept: {problem}. It is left out.", path, kind)

    def end(self) -> RunEnd:
        """End the run, once everything was answered and its values were given."""
        if self._empty:
            self.state.note(f"{len(self._empty):,} series hold no points, such as {min(self._empty)!r}.")
        end = self.state.end()
        return replace(
            end,
            promised=dict(self._promised) if self.state.whole else None,
            notes=(*end.notes, *self._odd_times.issues()),
        )
