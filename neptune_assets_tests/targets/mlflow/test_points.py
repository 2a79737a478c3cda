from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neptune_assets.targets.mlflow.points import Latest, Points, Sums
from neptune_assets.targets.profile import scale, smallest_multiplier

MICRO = st.integers(-(10**18) + 1, 10**18 - 1)


@given(st.lists(MICRO, min_size=1, max_size=20), st.sampled_from([1, 3, 10, 100, 10**6, 10**9, 7 * 10**12]))
def test_scaling_is_exact_or_refused(micro: list[int], multiplier: int) -> None:
    steps, whole = scale(np.asarray(micro, np.int64), multiplier)
    for value, step, fits in zip(micro, steps.tolist(), whole.tolist(), strict=True):
        exact = Fraction(value, 10**6) * multiplier
        assert fits == (exact.denominator == 1 and abs(exact) < 2**63)
        if fits:
            assert step == exact


@pytest.mark.parametrize(
    ("steps", "multiplier"),
    [([0, 1_000_000], 1), ([500_000], 10), ([290_000, 570_000, 580_000], 100), ([1], 10**6), ([-250_000], 100)],
)
def test_smallest_power_of_ten(steps: list[int], multiplier: int) -> None:
    assert smallest_multiplier(np.asarray(steps, np.int64)) == multiplier


def test_hundredths_keep_their_place() -> None:
    # int(float("0.29") * 100) is 28: the old way put two steps onto one.
    steps, whole = scale(np.asarray([i * 10_000 for i in range(100)], np.int64), 100)
    assert whole.all()
    assert steps.tolist() == list(range(100))


def points(rows: list[tuple[int, int, int, float, bool]]) -> Points:
    codes, steps, times, values, nan = zip(*rows, strict=True)
    return Points(
        ["a", "b"],
        np.asarray(codes, np.intp),
        np.asarray(steps, np.int64),
        np.asarray(times, np.int64),
        np.asarray(values, np.float64),
        np.asarray(nan, np.bool_),
    )


ROWS = [(0, 1, 5, 1.0, False), (1, 7, 5, 2.0, False), (0, 3, 5, 0.0, True), (0, 2, 5, 9.0, False)]


def test_sums_do_not_depend_on_order_or_portions() -> None:
    whole, portions = Sums(), Sums()
    whole.add(points(ROWS))
    for row in reversed(ROWS):
        portions.add(points([row]))
    assert whole.result() == portions.result()
    assert whole.result()["a"].points == 3
    assert (whole.result()["a"].first, whole.result()["a"].last) == (1, 3)


@pytest.mark.parametrize("column", range(1, 5))
def test_sums_see_every_change(column: int) -> None:
    before, after = Sums(), Sums()
    before.add(points(ROWS))
    changed = list(ROWS[0])
    changed[column] = True if column == 4 else changed[column] + 1
    after.add(points([(changed[0], changed[1], changed[2], changed[3], changed[4]), *ROWS[1:]]))
    assert before.result()["a"] != after.result()["a"]
    assert before.result()["b"] == after.result()["b"]


def test_latest_is_by_step_then_time_then_value() -> None:
    latest = Latest()
    latest.add(points([(0, 2, 9, 5.0, False), (0, 3, 1, 1.0, False)]))
    latest.add(points([(0, 3, 1, 4.0, False), (1, 0, 0, 0.0, True)]))
    assert sorted(latest.rows()) == [("a", 3, 1, 4.0, False), ("b", 0, 0, 0.0, True)]
