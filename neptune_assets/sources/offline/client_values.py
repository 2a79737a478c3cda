"""Values in the log of neptune-client, checked and converted; TypeError or ValueError for what is none of the kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final

from neptune_assets.schema import AttributeType
from neptune_assets.sources.values import scaled, text, truth


def path_of(operation: dict[str, Any]) -> str | None:
    """The attribute's path, its segments joined with slashes; None if the operation has none."""
    segments = operation.get("path")
    if not isinstance(segments, list):
        return None
    try:
        return _joined(tuple(segments))
    except TypeError:
        return None


@lru_cache(maxsize=10_000)
def _joined(segments: tuple[str, ...]) -> str | None:
    return "/".join(filter(None, segments)) or None


def milliseconds(seconds: float) -> int:
    """Epoch seconds as whole milliseconds, rounded half to even in decimal; raises ValueError if not finite."""
    return scaled(seconds, 1_000)


def real(value: Any) -> float:
    """A number as a float; raises TypeError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.80} is no number")
    return float(value)


def whole(value: Any) -> int:
    """A whole number; raises TypeError for anything else, true and false included."""
    if type(value) is not int:
        raise TypeError(f"{value!r:.80} is no whole number")
    return value


def moment(value: Any) -> int:
    """Epoch milliseconds as a whole number; TypeError or ValueError if they are none."""
    return scaled(value, 1)


def texts(values: Iterable[Any]) -> list[str]:
    """A list of strings; raises TypeError for anything else."""
    if isinstance(values, str):
        raise TypeError(f"{values!r:.80} is no list")
    return [text(value) for value in values]


def tracked_entry(item: Any) -> tuple[str, str | None]:
    """Location and destination of a tracked file; TypeError or ValueError if it is no such pair."""
    location, destination = item
    return text(location), None if destination is None else text(destination)


def described(item: Any) -> bool:
    """True if a logged image has a name or a description."""
    value = item.get("value") if isinstance(item, dict) else None
    return isinstance(value, dict) and bool(value.get("name") or value.get("description"))


ASSIGN: Final[dict[str, tuple[AttributeType, Callable[[Any], Any]]]] = {
    "AssignFloat": (AttributeType.FLOAT, real),
    "AssignInt": (AttributeType.INT, whole),
    "AssignBool": (AttributeType.BOOL, truth),
    "AssignString": (AttributeType.STRING, text),
    "AssignDatetime": (AttributeType.DATETIME, moment),
}
"""Operations that assign one value: the type of attribute, and what makes the value or raises."""
