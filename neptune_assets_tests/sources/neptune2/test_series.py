from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from neptune_assets.schema import SCHEMA, AttributeType
from neptune_assets.sources.neptune2.series import PointRows, Points, parse_page
from neptune_assets.sources.rows import NO_TIME

FLOATS = AttributeType.FLOAT_SERIES


def test_values_are_exact() -> None:
    values = [0.1, 5e-324, 1.7976931348623157e308, -0.0, 3, 2**53 + 1, "NaN", "Infinity"]
    answer = {
        "totalItemCount": len(values),
        "values": [{"step": 0, "timestampMillis": 0, "value": value} for value in values],
    }
    page = parse_page(answer, AttributeType.FLOAT_SERIES)
    assert isinstance(page.values, np.ndarray)
    assert [np.float64(float(value)).tobytes() for value in values] == [value.tobytes() for value in page.values]


@pytest.mark.parametrize(
    "bad", [{"value": None}, {"value": True}, {"value": [1]}, {"step": None}, {"step": "1"}, {"step": 1e300}]
)
def test_a_point_that_is_none_is_left_out_and_the_others_are_kept(bad: dict[str, object]) -> None:
    fine = [{"step": step, "timestampMillis": 0, "value": 1.0} for step in range(3)]
    answer = {"totalItemCount": 3, "values": [fine[0], {**fine[1], **bad}, fine[2]]}
    page = parse_page(answer, AttributeType.FLOAT_SERIES)
    assert page.steps.tolist() == [0, 2_000_000]
    assert page.sent == 3
    assert page.refused


@pytest.mark.parametrize("time", [None, "1", 1.5, True, 2**63, -(2**63), [], {}])
def test_a_point_whose_time_is_none_is_kept_without(time: object) -> None:
    page = parse_page({"totalItemCount": 1, "values": [{"step": 0, "timestampMillis": time, "value": 1.0}]}, FLOATS)
    assert page.times.tolist() == [NO_TIME]
    assert page.untimed == 1


def test_rows_are_of_a_handy_number_and_keep_paths_and_runs_apart() -> None:
    runs = ["P-1", "P-2", "P-3"]
    tables = []
    rows = PointRows(AttributeType.FLOAT_SERIES)
    for number in range(40):
        values = [{"step": step, "timestampMillis": step, "value": float(number)} for step in range(1_000)]
        page = parse_page({"totalItemCount": 1_000, "values": values}, AttributeType.FLOAT_SERIES)
        rows.add(number % 3, Points(f"m/{number}", AttributeType.FLOAT_SERIES, page))
        if rows.full:
            tables.append(rows.batch("ws/p", runs))
            rows = PointRows(AttributeType.FLOAT_SERIES)
    tables.append(rows.batch("ws/p", runs))
    assert all(table.schema.equals(SCHEMA) for table, _ in tables)
    assert [table.num_rows for table, _ in tables] == [17_000, 17_000, 6_000]
    found = pa.Table.from_batches([table for table, _ in tables]).select(["run_id", "attribute_path", "float_value"])
    assert sorted(set(zip(*found.to_pydict().values(), strict=True))) == sorted(
        (runs[number % 3], f"m/{number}", float(number)) for number in range(40)
    )
    for table, numbers in tables:
        assert table["run_id"].to_pylist() == [runs[number] for number in numbers]


def test_long_texts_weigh_more() -> None:
    values = [{"step": step, "timestampMillis": step, "value": "x" * 100_000} for step in range(2)]
    page = parse_page({"totalItemCount": 2, "values": values}, AttributeType.STRING_SERIES)
    assert page.weight == 2_002
