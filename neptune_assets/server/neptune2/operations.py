"""What a client asks to be done to attributes: the list of ``executeOperations``, checked and typed.

Each item is ``{"path": ..., "<name>": {...}}``. A name that is not known or a value of the wrong kind is the client's
mistake and answers 400; what the store refuses (types, steps) becomes an ``errorDescription`` instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from neptune_assets.schema import MAX_STEP, MICROSTEPS, AttributeType
from neptune_assets.server.neptune2.errors import BadRequestError


@dataclass(frozen=True, slots=True)
class Assign:
    """Give a single-value attribute its value: a Python value, datetimes as whole milliseconds."""

    path: str
    type: AttributeType
    value: Any


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a series. `step` is in millionths, None where the server is to number it; `time` in milliseconds."""

    step: int | None
    time: int
    value: Any


@dataclass(frozen=True, slots=True)
class Log:
    """Append values to a series (floats, strings, or images as mappings of data, name and description)."""

    path: str
    type: AttributeType
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Clear:
    """Empty an attribute of this type, but keep it."""

    path: str
    type: AttributeType


@dataclass(frozen=True, slots=True)
class Configure:
    """Say how a float series is to be drawn: bounds and unit, each may be None."""

    path: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChangeSet:
    """Add strings to a set of strings, or take them away."""

    path: str
    values: Sequence[str]
    add: bool


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove an attribute; one that is not there is no mistake."""

    path: str


@dataclass(frozen=True, slots=True)
class DeleteFiles:
    """Take files (or directories with all that is in them) out of a file set."""

    path: str
    files: Sequence[str]


Operation = Assign | Log | Clear | Configure | ChangeSet | Delete | DeleteFiles

_ASSIGN: Final[Mapping[str, tuple[AttributeType, str]]] = {
    "assignFloat": (AttributeType.FLOAT, "value"),
    "assignInt": (AttributeType.INT, "value"),
    "assignBool": (AttributeType.BOOL, "value"),
    "assignString": (AttributeType.STRING, "value"),
    "assignDatetime": (AttributeType.DATETIME, "valueMilliseconds"),
    "assignArtifact": (AttributeType.ARTIFACT, "hash"),
}
_LOG: Final[Mapping[str, AttributeType]] = {
    "logFloats": AttributeType.FLOAT_SERIES,
    "logStrings": AttributeType.STRING_SERIES,
    "logImages": AttributeType.FILE_SERIES,
}
_CLEAR: Final[Mapping[str, AttributeType]] = {
    "clearFloatSeries": AttributeType.FLOAT_SERIES,
    "clearStringSeries": AttributeType.STRING_SERIES,
    "clearImageSeries": AttributeType.FILE_SERIES,
    "clearStringSet": AttributeType.STRING_SET,
    "clearArtifact": AttributeType.ARTIFACT,
}
_MAX_TIME: Final = 253_402_300_799_999
"""The last millisecond of the year 9999."""


def parse_operations(body: Any) -> list[Operation]:
    """Return the operations of a request body. Raises BadRequestError that names the first item that is wrong."""
    if not isinstance(body, list):
        raise BadRequestError("A list of operations is expected.")
    return [_operation(index, item) for index, item in enumerate(body)]


def _operation(index: int, item: Any) -> Operation:
    if not isinstance(item, dict) or not isinstance(item.get("path"), str) or not item["path"]:
        raise BadRequestError(f"Operation {index} has no path.")
    path: str = item["path"]
    names = [name for name in item if name != "path"]
    if len(names) != 1 or not isinstance(item[names[0]], dict):
        raise BadRequestError(f"Operation {index} ({path!r}) must hold exactly one operation.")
    name, body = names[0], item[names[0]]
    where = f"Operation {index} ({name} of {path!r})"
    if name in _ASSIGN:
        kind, field = _ASSIGN[name]
        return Assign(path, kind, _value(where, kind, body.get(field)))
    if name in _LOG:
        return Log(path, _LOG[name], [_point(where, _LOG[name], entry) for entry in _list(where, body, "entries")])
    if name in _CLEAR:
        return Clear(path, _CLEAR[name])
    if name == "configFloatSeries":
        return Configure(path, {key: body.get(key) for key in ("min", "max", "unit")})
    if name in ("insertStrings", "removeStrings"):
        return ChangeSet(path, _strings(where, body, "values"), add=name == "insertStrings")
    if name == "deleteAttribute":
        return Delete(path)
    if name == "deleteFiles":
        return DeleteFiles(path, _strings(where, body, "filePaths"))
    raise BadRequestError(f"{where} is not an operation that this server knows.")


def _value(where: str, kind: AttributeType, value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is AttributeType.FLOAT and number:
        return _float(where, value)
    if kind is AttributeType.INT and number and float(value).is_integer() and -(2**63) <= value < 2**63:
        return int(value)
    if kind is AttributeType.DATETIME and number and math.isfinite(value) and abs(value) <= _MAX_TIME:
        return int(value)
    if (kind is AttributeType.BOOL and isinstance(value, bool)) or (
        kind in (AttributeType.STRING, AttributeType.ARTIFACT) and isinstance(value, str)
    ):
        return value
    raise BadRequestError(f"{where} has no value of type {kind.value}.")


def _float(where: str, value: Any) -> float:
    try:
        return float(value)
    except (OverflowError, ValueError, TypeError):
        raise BadRequestError(f"{where} holds a value that is no number.") from None


def _point(where: str, kind: AttributeType, entry: Any) -> Point:
    if not isinstance(entry, dict):
        raise BadRequestError(f"{where} holds a point that is no object.")
    value, step, time = entry.get("value"), entry.get("step"), entry.get("timestampMilliseconds")
    if kind is AttributeType.FLOAT_SERIES:
        value = _value(where, AttributeType.FLOAT, value)
    elif not isinstance(value, str if kind is AttributeType.STRING_SERIES else dict):
        raise BadRequestError(f"{where} holds a point without a value of its type.")
    if isinstance(time, bool) or not isinstance(time, (int, float)) or not abs(time) <= _MAX_TIME:
        raise BadRequestError(f"{where} holds a point without a time.")
    return Point(None if step is None else _step(where, step), int(time), value)


def _step(where: str, step: Any) -> int:
    if isinstance(step, bool) or not isinstance(step, (int, float)) or not abs(step) < MAX_STEP:
        raise BadRequestError(f"{where} holds a step that is no number below 10^12.")
    return int(step) * MICROSTEPS if float(step).is_integer() else round(step * MICROSTEPS)


def _list(where: str, body: Mapping[str, Any], field: str) -> list[Any]:
    values = body.get(field)
    if not isinstance(values, list):
        raise BadRequestError(f"{where} has no list of {field}.")
    return values


def _strings(where: str, body: Mapping[str, Any], field: str) -> list[str]:
    values = _list(where, body, field)
    if not all(isinstance(value, str) for value in values):
        raise BadRequestError(f"{where} holds something in {field} that is no text.")
    return values
