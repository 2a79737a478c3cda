"""Frames are made by neptune-query's own functions from points as it reads them from the wire."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from neptune_query.internal.identifiers import (
    AttributeDefinition,
    CustomRunId,
    ProjectIdentifier,
    RunAttributeDefinition,
    RunIdentifier,
    SysId,
)
from neptune_query.internal.output_format import create_metrics_dataframe, create_series_dataframe
from neptune_query.internal.retrieval.series import SeriesValue

from neptune_assets.sources.neptune3.frames import epoch_milliseconds, float_columns, object_points

PROJECT = ProjectIdentifier("w/p")


def metrics_frame(points: dict[str, list[tuple[int, float, float, bool, float]]], previews: bool = False) -> Any:
    run = RunIdentifier(PROJECT, custom_run_id=CustomRunId("r"))
    data = {
        RunAttributeDefinition(run, AttributeDefinition(path, "float_series")): rows for path, rows in points.items()
    }
    return create_metrics_dataframe(
        data,
        {CustomRunId("r"): "r"},
        type_suffix_in_column_names=False,
        include_point_previews=previews,
        index_column_name="run",
        timestamp_column_name="absolute_time",
    )


def series_frame(points: dict[str, list[SeriesValue]]) -> Any:
    run = RunIdentifier(PROJECT, sys_id=SysId("T-1"))
    data = {
        RunAttributeDefinition(run, AttributeDefinition(path, "string_series")): rows for path, rows in points.items()
    }
    return create_series_dataframe(data, PROJECT, {SysId("T-1"): "r"}, "run", "absolute_time")


def test_holes_of_the_wide_frame_are_no_points_and_nan_is_one() -> None:
    points = {
        "a": [(1, 0.5, math.nan, False, 1.0), (2, 1.0, -0.0, False, 1.0)],
        "step": [(3, 7.654321, math.inf, False, 1.0)],
        "all nan": [(4, 0.5, math.nan, False, 1.0)],
    }
    found = {path: (steps, times, values) for path, steps, times, values, _, _ in float_columns(metrics_frame(points))}
    assert set(found) == set(points)
    for path, rows in points.items():
        steps, times, values = found[path]
        assert steps.tolist() == [row[1] for row in reversed(rows)]
        assert times.tolist() == [row[0] for row in reversed(rows)]
        assert repr(values.tolist()) == repr([row[2] for row in reversed(rows)])


def test_previews_are_told_apart() -> None:
    frame = metrics_frame(
        {"a": [(1, 1.0, 1.0, False, 1.0), (2, 2.0, 2.0, True, 0.25)], "b": [(1, 3.0, 1.0, False, 1.0)]}, True
    )
    found = {path: (preview, completion) for path, _, _, _, preview, completion in float_columns(frame)}
    assert found["a"][0].tolist() == [True, False]
    assert found["a"][1].tolist() == [0.25, 1.0]
    assert found["b"][0].tolist() == [False]


def test_an_empty_frame_has_no_columns() -> None:
    assert list(float_columns(metrics_frame({"a": []}))) == []


@pytest.mark.parametrize("seed", range(3))
def test_disjoint_grids_come_back_point_by_point(seed: int) -> None:
    random = np.random.default_rng(seed)
    points = {
        f"m{number}": [
            (int(time), float(step), float(value), False, 1.0)
            for step, time, value in zip(
                np.sort(random.choice(10_000, 50, replace=False)) / 8,
                random.integers(0, 2**41, 50),
                random.normal(size=50),
                strict=True,
            )
        ]
        for number in range(20)
    }
    for path, steps, times, values, _, _ in float_columns(metrics_frame(points)):
        assert list(zip(times, steps, values, strict=True)) == [row[:3] for row in reversed(points[path])]


def test_strings_are_told_from_holes() -> None:
    frame = series_frame(
        {"s": [SeriesValue(1.0, "", 5), SeriesValue(2.0, "nan", 6)], "t": [SeriesValue(1.5, "nul \0 and\nline", 7)]}
    )
    assert dict(object_points(frame)) == {
        "s": [(2.0, 6, "nan"), (1.0, 5, "")],
        "t": [(1.5, 7, "nul \0 and\nline")],
    }


def test_times_are_exact() -> None:
    for milliseconds in (0, -1, 946_684_799_999, 253_402_300_799_999):
        moment = datetime.fromtimestamp(milliseconds // 1000, UTC).replace(microsecond=milliseconds % 1000 * 1000)
        assert epoch_milliseconds(moment) == milliseconds
