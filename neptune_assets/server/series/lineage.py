"""Which runs the points of a series come from: the run's own, and those of its ancestors up to the fork."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from neptune_assets.server.catalog.catalog import lineage
from neptune_assets.server.catalog.runs import Run


class Lineage(Enum):
    """How far back a series goes."""

    OWN = "own"
    """The run's own points, those before its fork step, too."""
    EXPERIMENT = "experiment"
    """Back to where the experiment began."""
    FULL = "full"
    """Back to the root."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Points of one run from ``low`` to ``high``, both included, in micro-steps; None is no bound.

    Where a child has a point of its own at its fork step, it takes the place of the parent's.
    """

    run: Run
    low: int | None
    high: int | None

    def below(self, first: int | None) -> int | None:
        """Return ``high``, or the step before it if ``first``, the first step of the children's points, is there."""
        return self.high - 1 if self.high is not None and self.high == first else self.high


def segments(run: Run, kind: Lineage, parent_of: Callable[[Run], Run | None]) -> list[Segment]:
    """Return where the points of a run's series lie, the youngest first; they do not overlap but at fork steps."""
    if kind is Lineage.OWN or run.parent is None:
        return [Segment(run, None, None)]
    line = []
    for member in lineage(run, parent_of):
        if kind is Lineage.EXPERIMENT and (member.experiment != run.experiment or member.experiment is None):
            break
        line.append(member)
        if member.fork_step is None:
            break
    found: list[Segment] = []
    high: int | None = None
    for index, member in enumerate(line or [run]):
        ends = index + 1 >= len(line)
        low = None if ends else member.fork_step
        found.append(Segment(member, low, high))
        if low is not None:
            high = low if high is None else min(high, low)
    return found
