"""Which Neptune a run comes from, 2.x or 3.x, and whether its series times are local time of the exporting host."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from neptune_assets.sources.export.heading import Heading

_MINUTE: Final = 60_000
_QUARTER: Final = 15 * _MINUTE
_FARTHEST: Final = 14 * 60 * _MINUTE
_EARLY: Final = 2 * _MINUTE
"""How much earlier than its run's creation a first point may seem, because two machines' clocks differ."""
_LATE: Final = 5 * _MINUTE
"""How much later than a quarter of an hour a first point may be and still tell the offset."""


class Generation(StrEnum):
    """Generations of Neptune, which the exporter treats differently."""

    V2 = "2.x"
    V3 = "3.x"


def detect_generation(heading: Heading) -> Generation | None:
    """Tell the generation by what only one of them has; None if nothing does.

    In 2.x the run id is ``sys/id``; in 3.x it is ``sys/custom_run_id``, which 2.x may have too.
    """
    if heading.run_id is None:
        return None
    is_id = heading.text("sys/id") == heading.run_id
    is_custom = heading.text("sys/custom_run_id") == heading.run_id
    if is_id == is_custom:
        return None
    return Generation.V2 if is_id else Generation.V3


def infer_offset(heading: Heading) -> int | None:
    """Return how many milliseconds the stored series times are ahead of UTC, by the first point and the creation time.

    None if nothing can be told: no points, no creation time, or a first point too long after a possible offset.
    Zero means that the times are right. A run whose first point really came whole hours late looks the same as one
    that was exported in another time zone, which is why shifting is never the default.
    """
    created = heading.milliseconds("sys/creation_time")
    if created is None or heading.first_point is None:
        return None
    difference = heading.first_point - created
    offset = ((difference + _EARLY) // _QUARTER) * _QUARTER
    if abs(offset) > _FARTHEST or difference - offset > _LATE:
        return None
    return offset


def as_hours(offset: int) -> str:
    """Return an offset in milliseconds as people write it: ``+02:00``."""
    minutes = abs(offset) // _MINUTE
    return f"{'-' if offset < 0 else '+'}{minutes // 60:02d}:{minutes % 60:02d}"
