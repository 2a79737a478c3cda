"""What W&B cannot hold as it is, and what a load does with it. The plan's words for what the receipt will count."""

from __future__ import annotations

from neptune_assets.schema import PARAMETER_TYPES, AttributeType
from neptune_assets.targets.protocol import Unfit
from neptune_assets.targets.survey import Kind, ValueCounts

_EXACT = "neptune_assets/series.parquet"


def unfit(values: ValueCounts) -> list[Unfit]:
    """Return what W&B cannot hold of a run whose values were counted."""
    found = [
        Unfit(kind, Kind.NO_STEP.value, rows, f"not in the history; kept in {_EXACT}")
        for kind, rows in values.each(Kind.NO_STEP)
    ]
    found += [
        Unfit(kind, Kind.NO_TIME.value, rows, f"takes the time of its step; {_EXACT} says that there was none")
        for kind, rows in values.each(Kind.NO_TIME)
    ]
    found += [
        Unfit(kind, Kind.MANY_BINS.value, rows, f"re-binned for the page; exact in {_EXACT}")
        for kind, rows in values.each(Kind.MANY_BINS)
    ]
    found += [
        Unfit(kind, Kind.BEYOND_DOUBLE.value, rows, "exact in the config, rounded by browsers")
        for kind, rows in values.each(Kind.BEYOND_DOUBLE)
        if kind == AttributeType.INT
    ]
    found += [
        Unfit(kind, Kind.NULL.value, rows, "dropped: it has no value")
        for kind, rows in values.each(Kind.NULL)
        if AttributeType(kind) in PARAMETER_TYPES
    ]
    found += [
        Unfit(kind, Kind.NO_FILE.value, rows, "dropped: its file is not in the lake")
        for kind, rows in values.each(Kind.NO_FILE)
    ]
    return found
