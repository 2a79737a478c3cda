"""Attributes as 2.x clients read them: name, type, and an object of properties that depends on the type.

What clients of this generation cannot take is left out (histograms), what they expect to see as one is put together
(git information), and what the service made itself is made here (the state of a run).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from neptune_assets.schema import MICROSTEPS, AttributeType
from neptune_assets.server.neptune2.containers import PROJECT, RUNS
from neptune_assets.server.neptune2.file_values import download_name, extension_of
from neptune_assets.server.neptune2.git import GIT, git_properties, is_git

if TYPE_CHECKING:
    from neptune_assets.server.catalog.search import Value
    from neptune_assets.server.catalog.tables import Run

WIRE_TYPES: Final[Mapping[AttributeType, str]] = {
    AttributeType.FLOAT: "float",
    AttributeType.INT: "int",
    AttributeType.BOOL: "bool",
    AttributeType.STRING: "string",
    AttributeType.DATETIME: "datetime",
    AttributeType.STRING_SET: "stringSet",
    AttributeType.FLOAT_SERIES: "floatSeries",
    AttributeType.STRING_SERIES: "stringSeries",
    AttributeType.FILE_SERIES: "imageSeries",
    AttributeType.FILE: "file",
    AttributeType.FILE_SET: "fileSet",
    AttributeType.ARTIFACT: "artifact",
}
STATE: Final = "sys/state"
PING: Final = "sys/ping_time"
ALIVE_SECONDS: Final = 45
"""A run is running while its last sign of life is younger than this: clients give one every ten seconds."""

_PROJECT_SYS: Final = frozenset(
    f"sys/{name}"
    for name in (
        "creation_time",
        "group_tags",
        "id",
        "modification_time",
        "monitoring_time",
        "name",
        "ping_time",
        "running_time",
        "size",
        "tags",
        "visibility",
        "description",
    )
)
_EPOCH: Final = datetime(1970, 1, 1)

Attribute = dict[str, Any]


def visible(run: Run, path: str) -> bool:
    """True if a 2.x client is shown this attribute: what only 3.x knows of is not."""
    if not path.startswith("sys/"):
        return True
    if run.scope == PROJECT:
        return path in _PROJECT_SYS
    if path == "sys/custom_run_id":
        return run.scope == RUNS and run.run_id != run.sys_id
    return path != "sys/archived" and not path.startswith("sys/diagnostics/")


def attribute(name: str, kind: str, properties: Mapping[str, Any]) -> Attribute:
    """Return one attribute in the protocol's form."""
    named = {"attributeName": name, "attributeType": kind, **properties}
    return {"name": name, "type": kind, f"{kind}Properties": named}


def attributes_of(run: Run, values: Iterable[Value]) -> list[Attribute]:
    """Return the attributes of one run. Its sign of life must be among the values for its state to be right."""
    found: list[Attribute] = []
    git: dict[str, Any] = {}
    ping: int | None = None
    for value in values:
        if value.path == PING:
            ping = value.moment
        if value.path == STATE or not visible(run, value.path):
            continue
        if is_git(value.path):
            git[value.path] = _plain(value)
            continue
        made = attribute_of(value)
        if made is not None:
            found.append(made)
    if git:
        found.append(attribute(GIT, "gitRef", git_properties(git)))
    found.append(attribute(STATE, "experimentState", {"value": state_of(ping)}))
    return found


def attribute_of(value: Value) -> Attribute | None:
    """Return one attribute; None if the protocol has no form for it."""
    kind = WIRE_TYPES.get(value.type)
    return None if kind is None else attribute(value.path, kind, properties(value))


def properties(value: Value) -> dict[str, Any]:
    """Return the properties of a value by its type."""
    kind = value.type
    if kind is AttributeType.FLOAT_SERIES:
        return {
            "last": value.number,
            "lastStep": _step(value.last_step),
            "min": value.least,
            "max": value.greatest,
            "average": value.mean,
            "variance": value.variance,
        }
    if kind is AttributeType.STRING_SERIES:
        return {"last": value.text, "lastStep": _step(value.last_step)}
    if kind is AttributeType.FILE_SERIES:
        return {"lastStep": _step(value.last_step)}
    if kind is AttributeType.STRING_SET:
        return {"values": value.members or []}
    if kind in (AttributeType.FILE, AttributeType.FILE_SET, AttributeType.ARTIFACT):
        detail = detail_of(value)
        if kind is AttributeType.ARTIFACT:
            return {"hash": detail.get("hash", "")}
        if kind is AttributeType.FILE_SET:
            return {"size": detail.get("size", 0)}
        extension = extension_of(detail)
        return {"name": download_name(value.path, extension), "ext": extension, "size": detail.get("size", 0)}
    return {"value": iso(value.moment) if kind is AttributeType.DATETIME else _plain(value)}


def detail_of(value: Value) -> dict[str, Any]:
    """Return what the catalog keeps of a file, file set or artifact."""
    found = json.loads(value.detail) if value.detail else {}
    return found if isinstance(found, dict) else {}


def state_of(ping: int | None) -> str:
    """Return the state of a run whose last sign of life was at `ping` (milliseconds)."""
    return "running" if ping is not None and ping > alive_since() else "idle"


def alive_since() -> int:
    """Return the time in milliseconds after which running runs gave a sign of life."""
    return time.time_ns() // 1_000_000 - ALIVE_SECONDS * 1000


def iso(moment: int | None) -> str | None:
    """Return a time as the client parses it, ``2024-01-31T12:00:00.000Z``; None for those that no calendar holds."""
    if moment is None:
        return None
    try:
        return (_EPOCH + timedelta(milliseconds=moment)).isoformat(timespec="milliseconds") + "Z"
    except OverflowError:
        return None


def moment_of(text: str) -> int | None:
    """Return the milliseconds of a time in ISO 8601; None for anything else."""
    try:
        time_of = datetime.fromisoformat(text)
    except ValueError:
        return None
    return round((time_of if time_of.tzinfo else time_of.replace(tzinfo=UTC)).timestamp() * 1000)


def _plain(value: Value) -> Any:
    return {
        AttributeType.FLOAT: value.number,
        AttributeType.INT: value.whole,
        AttributeType.BOOL: value.flag,
        AttributeType.STRING: value.text,
        AttributeType.DATETIME: value.moment,
        AttributeType.STRING_SET: value.members,
    }.get(value.type)


def _step(step: int | None) -> float | None:
    return None if step is None else step / MICROSTEPS
