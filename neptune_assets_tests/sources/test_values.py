"""The one rule for steps, on which digests rest."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, Decimal

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some

from neptune_assets.schema import MAX_STEP, MICROSTEPS
from neptune_assets.sources.values import micro_step, micro_steps

STEPS = some.floats(-MAX_STEP, MAX_STEP, exclude_min=True, exclude_max=True, allow_nan=False)
HALVES = some.tuples(some.integers(-(2**34), 2**34), some.integers(0, MICROSTEPS - 1)).map(
    lambda pair: pair[0] + (pair[1] + 0.5) / MICROSTEPS
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.lists(STEPS | HALVES | some.integers(-9, 9).map(float)))
@example([1.0000015, -1.0000015, 8796093.0000005, 123456789012.123456, 9000000000.5, 999999999999.0, -1e-20])
def test_steps_are_rounded_as_their_decimal_text_says(steps: list[float]) -> None:
    expected = [int((Decimal(repr(step)) * MICROSTEPS).to_integral_value(ROUND_HALF_EVEN)) for step in steps]
    assert micro_steps(np.array(steps, np.float64)).tolist() == expected
    assert [micro_step(step) for step in steps] == expected


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.lists(some.tuples(some.integers(0, 2**33 - 1), some.integers(0, MICROSTEPS - 1))))
def test_steps_of_3_x_servers_come_back_as_the_clients_sent_them(sent: list[tuple[int, int]]) -> None:
    """Clients send whole numbers and micros, servers doubles, which tell every micro-step from the next below 2^33."""
    expected = [whole * MICROSTEPS + micro for whole, micro in sent]
    steps = np.array([micros / MICROSTEPS for micros in expected], np.float64)
    assert micro_steps(steps).tolist() == expected
    # The rule of version 0.1 for these servers: lakes that it wrote keep their digests.
    whole = np.floor(steps)
    assert (whole * 10**6 + np.rint((steps - whole) * 10**6)).astype(np.int64).tolist() == expected


@pytest.mark.parametrize("step", [1e12, -1e12, math.nan, math.inf, -math.inf])
def test_what_is_not_a_step_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match="range"):
        micro_steps(np.array([0, step]))
