from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from neptune_assets.lake.statistics import Moments

piece = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)


def moments_of(pieces: list[list[float]]) -> Moments:
    moments = Moments()
    for values in pieces:
        moments.add(np.array(values), float(np.mean(values)))
    return moments


@given(st.lists(piece, min_size=1, max_size=6), st.sampled_from([0.0, 1e9, -3e12]))
def test_pieces_together_have_the_variance_of_all_values(pieces: list[list[float]], offset: float) -> None:
    moved = [[value + offset for value in values] for values in pieces]
    every = [value for values in moved for value in values]
    assume(not 0 < max(every) - min(every) < 1e-100)
    exact = [Fraction(value) for value in every]
    mean = sum(exact) / len(exact)
    variance = float(sum((value - mean) ** 2 for value in exact) / len(exact))
    found = moments_of(moved).variance(min(every), max(every))
    # The mean of each piece is rounded to the last bit of numbers as large as the offset.
    assert found == pytest.approx(variance, rel=1e-9, abs=1e-280 + (abs(offset) * 1e-15) ** 2)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.5], 0.0),
        ([1.7e308] * 3, 0.0),
        ([-1.7e308, 1.7e308], None),
        ([1e-170, 2e-170], None),
        ([1e100, -1e100], 1e200),
    ],
)
def test_the_ends_of_what_can_be_told(values: list[float], expected: float | None) -> None:
    assert moments_of([[value] for value in values]).variance(min(values), max(values)) == (
        expected if expected is None else pytest.approx(expected)
    )


def test_no_values_have_no_variance() -> None:
    assert Moments().variance(0.0, 0.0) is None
