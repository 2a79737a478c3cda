"""What neptune-query's public functions take and give, in this source's own words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from neptune_assets.schema import AttributeType
from neptune_assets.sources.neptune3.answers import NAMES_OF_TYPES
from neptune_assets.sources.neptune3.frames import epoch_milliseconds
from neptune_assets.sources.neptune3.model import FileReference, FloatPart, ListedRun, ObjectPart, Request


def which_run(run: ListedRun) -> Any:
    """How to name one run: by its id; a run in the trash is only found by a filter that says so."""
    from neptune_query.filters import Attribute as NamedAttribute
    from neptune_query.filters import Filter

    if not run.trashed:
        return [run.run_id]
    trashed = Filter.eq(NamedAttribute("sys/trashed", type="bool"), True)
    return Filter.eq(NamedAttribute("sys/custom_run_id", type="string"), run.run_id) & trashed


def length(part: FloatPart | ObjectPart) -> int:
    """Number of points of a part."""
    return len(part.steps) if isinstance(part, FloatPart) else len(part.points)


def leave_out(part: FloatPart | ObjectPart, after: float) -> None:
    """Leave out points from a step on."""
    if isinstance(part, ObjectPart):
        part.points = [point for point in part.points if point[0] < after]
        return
    new = part.steps < after
    part.steps, part.times, part.values = part.steps[new], part.times[new], part.values[new]
    if part.preview is not None and part.completion is not None:
        part.preview, part.completion = part.preview[new], part.completion[new]


def types_asked_for(types: Sequence[str] | None) -> list[Any]:
    """Types for a filter on attributes: those given, or all."""
    return list(types) if types is not None else [str(kind) for kind in NAMES_OF_TYPES]


def are_floats(requests: Sequence[Request]) -> bool:
    """True if the requests are for float series."""
    return requests[0].type is AttributeType.FLOAT_SERIES


def listed_row(row: dict[str, Any]) -> ListedRun:
    """Read one row of a table of runs, by attribute."""
    present = {name: value for name, value in row.items() if value is not None and value == value}
    moments = {
        name: None if name not in present else present[name].to_pydatetime()
        for name in ("sys/creation_time", "sys/modification_time")
    }
    return ListedRun(
        run_id=str(row["run"]),
        sys_id=str(present.get("sys/id", "")),
        created_at=moments["sys/creation_time"],
        modified_at=moments["sys/modification_time"],
        archived=bool(present.get("sys/archived", False)),
        trashed=bool(present.get("sys/trashed", False)),
        parent=present.get("sys/forking/parent") or None,
        attributes=int(present.get("sys/diagnostics/attributes/total_count", 0)),
        points=int(present.get("sys/diagnostics/attributes/total_series_datapoints", 0)),
    )


def plain_value(kind: AttributeType, value: Any) -> Any:
    """Turn a single attribute's value, as pandas gives it, into what rows are made of."""
    match kind:
        case AttributeType.INT:
            return int(value)
        case AttributeType.FLOAT:
            return float(value)
        case AttributeType.BOOL:
            return bool(value)
        case AttributeType.DATETIME:
            return epoch_milliseconds(value)
        case AttributeType.STRING_SET:
            return list(value)
        case AttributeType.FILE:
            return FileReference(value.path, value.size_bytes, value.mime_type)
    return value


def plain_point(value: Any) -> Any:
    """Turn a point of a series into a string, (type, edges, values) or a FileReference."""
    if isinstance(value, str):
        return value
    if hasattr(value, "edges"):
        return (value.type, value.edges, value.values)
    return FileReference(value.path, value.size_bytes, value.mime_type)


def plain_text(error: Exception) -> str:
    """Return an error's text in one line, without colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return re.sub(r"\s+", " ", text).strip()[:500]
