"""From the local times without a zone that neptune-client's public functions give back to moments."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime


def moments_of(times: Iterable[datetime]) -> tuple[list[int], int]:
    """Epoch milliseconds of local times in the order of a series, and how many of them could be two moments.

    In the hour that comes twice in autumn the earlier moment is taken, unless that would run back behind the point
    before, for times of a series never decrease.
    """
    found: list[int] = []
    unsure = 0
    for local in times:
        first, second = (_milliseconds(local.replace(fold=fold)) for fold in (0, 1))
        if second > first:
            unsure += 1
            if found and first < found[-1]:
                first = second
        found.append(first)
    return found, unsure


def _milliseconds(local: datetime) -> int:
    # Seconds and the rest by themselves: together they would be rounded.
    return int(local.replace(microsecond=0).timestamp()) * 1000 + round(local.microsecond / 1000)
