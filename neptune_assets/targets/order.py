"""In which order runs are loaded: parents before their forks, RUN-2 before RUN-10."""

from __future__ import annotations

import re
from collections.abc import Mapping

from neptune_assets.lake.records import RunRecord


def natural(run_id: str) -> tuple[tuple[int, str], ...]:
    """Return what ids are ordered by so that numbers in them count as numbers."""
    parts = re.split(r"([0-9]+)", run_id)
    return (*((int(part), "") if part.isdecimal() else (-1, part) for part in parts), (-2, run_id))


def parents_first(records: Mapping[str, RunRecord]) -> list[str]:
    """Order run ids so that a fork's parent comes before it; otherwise by run id, numbers in it as numbers.

    Parents that are not among the records do not matter; in a circle of parents the smallest run id comes first.
    """
    order: dict[str, None] = {}
    for run_id in sorted(records, key=natural):
        chain: dict[str, None] = {}
        current: str | None = run_id
        while current is not None and current in records and current not in order and current not in chain:
            chain[current] = None
            current = records[current].parent
        order.update(dict.fromkeys(reversed(chain)))
    return list(order)


def why_partial(record: RunRecord) -> str:
    """Return why a run is withheld, in the words of the lake's manifest."""
    reasons = [issue.message for issue in record.errors[:3]]
    return "partial in the lake" + (f": {'; '.join(reasons)}" if reasons else "")
