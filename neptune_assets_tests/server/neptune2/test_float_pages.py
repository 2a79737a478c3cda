from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest

from neptune_assets.server.neptune2.readings import float_page
from neptune_assets.server.series import FloatPoints

TIMES = 1_700_000_000_000


def page_of(values: list[float], steps: list[int], total: int = 99) -> tuple[int, list[dict[str, float]]]:
    count = len(values)
    points = FloatPoints(
        np.array(steps, np.int64), np.arange(TIMES, TIMES + count, dtype=np.int64), np.array(values, np.float64)
    )
    answer = json.loads(float_page(total, points).body)
    return answer["totalItemCount"], answer["values"]


def bits(value: float | str) -> bytes:
    return struct.pack(">d", float(value))


@pytest.mark.parametrize(
    "values",
    [
        [],
        [0.1],
        [0.0, 1.0, -1.0, 1e15, 1e16, 1e22, 123_456_789_012.0, 2.0**53 + 2],
        [5e-324, 1.7976931348623157e308, -1e-300, 1e-7, 0.1 + 0.2, 1 / 3],
        [1.0, -0.0],
        [math.inf, -math.inf, 2.5],
    ],
)
def test_every_value_comes_back_bit_by_bit(values: list[float]) -> None:
    total, found = page_of(values, [place * 250_000 for place in range(len(values))])
    assert total == 99
    assert [bits(point["value"]) for point in found] == [bits(value) for value in values]
    assert [point["step"] for point in found] == [place / 4 for place in range(len(values))]
    assert [point["timestampMillis"] for point in found] == [TIMES + place for place in range(len(values))]


def test_not_a_number_comes_as_text() -> None:
    _, found = page_of([1.0, math.nan], [0, 1_000_000])
    assert [point["value"] for point in found] == [1.0, "NaN"]


def test_random_values_and_steps() -> None:
    random = np.random.default_rng(7)
    values = random.integers(0, 2**64, 2_000, dtype=np.uint64).view(np.float64)
    values = values[np.isfinite(values)].tolist()
    steps = sorted(random.integers(-(10**17), 10**17, len(values)).tolist())
    _, found = page_of(values, steps)
    assert [bits(point["value"]) for point in found] == [bits(value) for value in values]
    assert [bits(point["step"]) for point in found] == [bits(step / 1_000_000) for step in steps]
