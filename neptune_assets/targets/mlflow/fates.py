"""What MLflow cannot hold as it is, and what a load does with it. The plan's words for what the receipt will count."""

from __future__ import annotations

from collections import Counter
from typing import Final

from neptune_assets.schema import AttributeType
from neptune_assets.targets.mlflow.mapping import MlflowPlan
from neptune_assets.targets.protocol import Unfit
from neptune_assets.targets.survey import Kind, ValueCounts

_SIDECAR: Final = "not a metric; exact in artifact neptune/points_apart.parquet"
_POINTS: Final = (
    (Kind.INFINITE, _SIDECAR),
    (Kind.UNEVEN_STEP, _SIDECAR),
    (Kind.BEFORE_1970, _SIDECAR),
    (Kind.NEGATIVE_ZERO, "a metric of 0.0; exact in artifact neptune/points_apart.parquet"),
    (Kind.NO_TIME, "a metric with the run's start time"),
)


def unfit(values: ValueCounts, plan: MlflowPlan) -> list[Unfit]:
    """Return what MLflow cannot hold of a run whose values were counted."""
    points = AttributeType.FLOAT_SERIES
    found = [Unfit(points, kind.value, values.of(points, kind), fate) for kind, fate in _POINTS]
    long = Counter(kind for _, kind in plan.long_params)
    found += [
        Unfit(kind, "too long for a param, or with NUL", rows, "whole in an artifact under params/")
        for kind, rows in sorted(long.items())
    ]
    found += [
        Unfit(kind, Kind.NULL.value, rows, "dropped: the source had no value")
        for kind, rows in sorted(plan.nulls.items())
    ]
    found += [
        Unfit(kind, Kind.NO_FILE.value, rows, "dropped: the file is missing")
        for kind, rows in values.each(Kind.NO_FILE)
    ]
    return [item for item in found if item.rows]
