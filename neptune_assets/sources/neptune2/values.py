"""Values in the server's answers, checked and converted; TypeError or ValueError for what is none of the kind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from neptune_assets.sources.values import text

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


def moment(value: Any) -> datetime:
    """A time as the server writes it, ISO 8601; without an offset it is UTC."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no time")
    found = datetime.fromisoformat(value)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def milliseconds(value: Any) -> int:
    """A time as the server writes it, as whole epoch milliseconds."""
    return (moment(value) - EPOCH) // _MILLISECOND


def real(value: Any) -> float:
    """A number; not-a-number and infinities may be written as text, as Java does."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"{value!r:.80} is no number")
    return float(value)


def whole(value: Any) -> int:
    """A whole number; raises TypeError for anything else, true and false included."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise TypeError(f"{value!r:.80} is no whole number")


def texts(value: Any) -> list[str]:
    """A list of strings; raises TypeError for anything else."""
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.80} is no list")
    return [text(item) for item in value]
