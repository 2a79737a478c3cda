"""Values in the server's answers, checked and converted; TypeError or ValueError for what is none of the kind."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np

from neptune_assets.sources.values import text

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_FAR: Final = re.compile(r"([+-]?\d{4,6}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d{1,3})?)?)\d*Z?", re.ASCII)
"""Times as Java writes them; years beyond 9999 have a sign."""


def milliseconds(value: Any) -> int:
    """A time as the server writes it, ISO 8601, as whole epoch milliseconds; without an offset it is UTC."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a valid time")
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        far = _FAR.fullmatch(value)
        if far is None:
            raise
        return int(np.datetime64(far[1], "ms").astype(np.int64))
    # The offset is taken away from the number: the time itself may be the first or last that there is.
    return (found.replace(tzinfo=UTC) - EPOCH) // _MILLISECOND - (found.utcoffset() or timedelta()) // _MILLISECOND


def sent(name: str) -> str:
    """A name by which the server can be asked for something; raises ValueError for what no request can hold."""
    if not name:
        raise ValueError("a name is empty")
    name.encode()
    return name


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
