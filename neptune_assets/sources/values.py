"""Values of JSON that Neptune's clients and servers wrote, checked and scaled exactly, for every source."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final

from neptune_assets.schema import MICROSTEPS

_EXACT: Final = 2.0**43
"""Below this the product of a double and 1,000 or 1,000,000 is off by less than a thousandth."""


def truth(value: Any) -> bool:
    """True or false; raises TypeError for anything else."""
    if not isinstance(value, bool):
        raise TypeError(f"{value!r:.80} is neither true nor false")
    return value


def text(value: Any) -> str:
    """A string; raises TypeError for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no string")
    return value


def micro_steps(step: float) -> int:
    """A step as whole micro-steps, rounded half to even in decimal; TypeError or ValueError if not finite."""
    return scaled(step, MICROSTEPS)


def scaled(number: float, factor: int) -> int:
    """``number * factor`` rounded half to even, as the decimal text of the number says, not its double."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{number!r:.80} is no number")
    if isinstance(number, int):
        return number * factor
    if number.is_integer():
        return int(number) * factor
    product = number * factor
    if -_EXACT < product < _EXACT:
        near = round(product)
        if abs(product - near) < 0.499:
            return near
    exact = Decimal(repr(number))
    if not exact.is_finite():
        raise ValueError(f"{number!r} is not finite")
    return int((exact * factor).to_integral_value(ROUND_HALF_EVEN))
