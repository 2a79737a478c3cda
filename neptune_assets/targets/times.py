"""Times of the lake as whole milliseconds since 1970 in UTC, whatever they are, and as text.

A lake can hold times that Python's ``datetime`` cannot (the year 58,000 where seconds were logged as milliseconds), so
no value goes through it: columns are read as integers, and text is made from these.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pyarrow as pa

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_MS: Final = 86_400_000
_YEAR_1_DAYS: Final = 719_162
"""From 0001-01-01 to 1970-01-01 in the Gregorian calendar, which repeats itself every 400 years."""
_CYCLE_YEARS, _CYCLE_DAYS = 400, 146_097


def whole_milliseconds(column: Any) -> Any:
    """Return a column as it is, and one of times as int64 milliseconds; nulls stay."""
    kind = column.type
    return column.cast(pa.timestamp("ms", kind.tz)).cast(pa.int64()) if pa.types.is_timestamp(kind) else column


def parsed(text: str) -> int | None:
    """Return the milliseconds of an ISO 8601 text with a zone; None if it is not one that can be read."""
    try:
        return (datetime.fromisoformat(text) - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, TypeError, OverflowError):
        return None


def iso(milliseconds: int) -> str:
    """Return a time as ISO 8601 in UTC with milliseconds; years beyond four digits, or before 1, with a sign."""
    days, rest = divmod(milliseconds, _DAY_MS)
    cycles, days = divmod(days + _YEAR_1_DAYS, _CYCLE_DAYS)
    day = datetime(1, 1, 1, tzinfo=UTC) + timedelta(days=days, milliseconds=rest)
    year = day.year + cycles * _CYCLE_YEARS
    shown = f"{year:04d}" if 1 <= year <= 9999 else f"{'-' if year < 0 else '+'}{abs(year):05d}"
    return f"{shown}-{day:%m-%dT%H:%M:%S}.{day.microsecond // 1000:03d}Z"
