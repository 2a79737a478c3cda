"""Text of a query to values: numbers with units, booleans, times absolute or relative to now."""

from __future__ import annotations

import calendar
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Final

from neptune_assets.server.nql.errors import QueryError

_UNITS: Final = {"b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40, "pb": 1 << 50}
_SIZE: Final = re.compile(r"([+-]?[0-9.]+)\s*([kmgtp]?b)", re.IGNORECASE)
_RELATIVE: Final = re.compile(r"([+-])([0-9]{1,9})\s*([smhdwMy])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Number = int | float | Decimal


def number(text: str) -> Number:
    """Return a number: an int or Decimal, exact, or a float for infinities and NaN. Sizes become bytes (1 KB = 1024).

    Raises QueryError for anything else.
    """
    plain = text.strip()
    size = _SIZE.fullmatch(plain)
    try:
        value = Decimal(size[1] if size else plain)
    except InvalidOperation as error:
        raise QueryError(f"{text!r} is not a number.", hint="Compare a number with digits such as 0.5.") from error
    if not value.is_finite():
        return float(value) if not value.is_snan() else float("nan")
    if size:
        value *= _UNITS[size[2].lower()]
    # An exponent of millions would make an int of millions of digits.
    if abs(value.adjusted()) > 400:
        return float(value)
    return int(value) if value == value.to_integral_value() else value


def boolean(text: str) -> bool:
    """Return true or false in any letter case. Raises QueryError for anything else."""
    found = {"true": True, "false": False}.get(text.strip().lower())
    if found is None:
        raise QueryError(f"{text!r} is neither true nor false.", hint="Compare a boolean with true or false.")
    return found


def moment(text: str, now: datetime) -> int:
    """Return milliseconds since 1970 of an ISO 8601 time (UTC where it has no offset) or of one like -2h, -5d, -1M.

    Raises QueryError for anything else.
    """
    plain = text.strip()
    relative = _RELATIVE.fullmatch(plain)
    try:
        if relative:
            time = _shifted(now, int(relative[1] + relative[2]), relative[3])
        else:
            time = datetime.fromisoformat(plain)
            if time.tzinfo is None:
                time = time.replace(tzinfo=UTC)
        return (time - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError) as error:
        raise QueryError(
            f"{text!r} is not a time.", hint="Write it as 2025-01-31T12:00:00Z, or relative to now as -2h, -5d, -1M."
        ) from error


def _shifted(now: datetime, amount: int, unit: str) -> datetime:
    if unit in _SECONDS:
        return now + timedelta(seconds=amount * _SECONDS[unit])
    months = now.year * 12 + now.month - 1 + amount * (12 if unit == "y" else 1)
    year, month = divmod(months, 12)
    return now.replace(year=year, month=month + 1, day=min(now.day, calendar.monthrange(year, month + 1)[1]))
