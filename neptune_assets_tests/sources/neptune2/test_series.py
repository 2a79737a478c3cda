from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from neptune_assets.schema import SCHEMA, AttributeType
from neptune_assets.sources.neptune2.series import BATCH_ROWS, PointBuffer, parse_page, steps_of


@given(some.lists(some.floats(-1e12, 1e12, exclude_min=True, exclude_max=True, allow_nan=False) | some.integers(0, 9)))
def test_steps_are_rounded_as_their_decimal_text_says(steps: list[float]) -> None:
    expected = [int((Decimal(repr(step)) * 10**6).to_integral_value(ROUND_HALF_EVEN)) for step in steps]
    assert steps_of(steps).tolist() == expected


@pytest.mark.parametrize("step", [1e12, -1e12, float("inf"), float("nan")])
def test_steps_out_of_range_are_refused(step: float) -> None:
    with pytest.raises(ValueError, match="range"):
        steps_of([0, step])


def test_values_are_exact() -> None:
    values = [0.1, 5e-324, 1.7976931348623157e308, -0.0, 3, 2**53 + 1, "NaN", "Infinity"]
    answer = {
        "totalItemCount": len(values),
        "values": [{"step": 0, "timestampMillis": 0, "value": value} for value in values],
    }
    page = parse_page(answer, AttributeType.FLOAT_SERIES)
    assert isinstance(page.values, np.ndarray)
    assert [np.float64(float(value)).tobytes() for value in values] == [value.tobytes() for value in page.values]


@pytest.mark.parametrize("bad", [{"value": None}, {"value": True}, {"value": [1]}, {"timestampMillis": 10**17}])
def test_a_point_that_is_none_is_refused(bad: dict[str, object]) -> None:
    answer = {"totalItemCount": 1, "values": [{"step": 0, "timestampMillis": 0, "value": 1.0, **bad}]}
    with pytest.raises((TypeError, ValueError)):
        parse_page(answer, AttributeType.FLOAT_SERIES)


def test_batches_are_of_a_handy_size_and_keep_paths_apart() -> None:
    buffer = PointBuffer("ws/p", "P-1", AttributeType.FLOAT_SERIES)
    batches = []
    for number in range(40):
        values = [{"step": step, "timestampMillis": step, "value": float(number)} for step in range(1_000)]
        batches += buffer.add(f"m/{number}", parse_page({"totalItemCount": 1_000, "values": values}, buffer.kind))
    batches += buffer.flush()
    assert all(batch.schema.equals(SCHEMA) for batch in batches)
    assert [batch.num_rows for batch in batches[:-1]] == [17_000, 17_000]
    assert max(batch.num_rows for batch in batches) < BATCH_ROWS + 1_000
    rows = [row for batch in batches for row in zip(batch["attribute_path"], batch["float_value"], strict=True)]
    assert len(rows) == 40_000
    assert all(path.as_py() == f"m/{int(value.as_py())}" for path, value in rows)
