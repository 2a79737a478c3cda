"""Values of JSON that Neptune's clients and servers wrote, checked and scaled exactly, for every source."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from neptune_assets.schema import MAX_STEP, MICROSTEPS

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_ESCAPED: Final = re.compile("[\\\\\ud800-\udfff]")
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
        raise TypeError(f"{value!r:.80} is not a string")
    return value


def printable(text: str) -> str:
    """Text that UTF-8 can hold: lone surrogates become escapes, bytes that were not UTF-8 among them ``\\xNN``.

    Other text is returned as it is. In text that is changed, backslashes are doubled, so that it can be changed back.
    """
    return _escaped(text) if not text.isascii() and _SURROGATE.search(text) else text


def printable_names(names: Iterable[str]) -> dict[str, str]:
    """Names as :func:`printable` has them; if one is changed, backslashes of all are doubled, so that no two meet."""
    listed = list(names)
    if all(printable(name) == name for name in listed):
        return {name: name for name in listed}
    return {name: _escaped(name) for name in listed}


def _escaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: _escape(match[0]), text)


def _escape(character: str) -> str:
    if character == "\\":
        return "\\\\"
    code = ord(character)
    # os.fsdecode makes these of the bytes 0x80 to 0xff.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def micro_steps(steps: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Steps as whole micro-steps, each as :func:`micro_step` has it. Raises ValueError for what no step can be."""
    sizes = np.abs(steps)
    if not (sizes < MAX_STEP).all():
        raise ValueError("a step is out of range")
    whole = np.floor(steps)
    micros: npt.NDArray[np.int64] = whole.astype(np.int64) * MICROSTEPS
    if np.array_equal(whole, steps):
        return micros
    # Whole steps and fractions apart: the product of a large step and 10^6 would not be exact.
    fractions = (steps - whole) * MICROSTEPS
    near = np.rint(fractions)
    micros += near.astype(np.int64)
    # The decimal text of a double is less than its spacing away from it: only near a half can it round otherwise.
    for place in np.flatnonzero(np.abs(fractions - near) >= 0.499 - np.spacing(sizes) * MICROSTEPS).tolist():
        micros[place] = micro_step(float(steps[place]))
    return micros


def micro_step(step: float) -> int:
    """A step as whole micro-steps, rounded half to even in decimal; TypeError or ValueError if not finite."""
    return scaled(step, MICROSTEPS)


def scaled(number: float, factor: int) -> int:
    """``number * factor`` rounded half to even, as the decimal text of the number says, not its double."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{number!r:.80} is not a number")
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
