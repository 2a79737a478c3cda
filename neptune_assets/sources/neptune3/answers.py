"""What the server's answers mean: runs, attributes, points; and in which message each comes.

The messages are Neptune's own protobuf classes, from its package neptune-api. What cannot be read raises RefusedError.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

from neptune_assets.schema import SERIES_TYPES, AttributeType
from neptune_assets.sources.neptune3.model import Attribute, FileReference, ListedRun, RefusedError, RunAttributes
from neptune_assets.sources.neptune3.wire_points import Points, float_series
from neptune_assets.sources.times import moment_of

NAMES_OF_TYPES: Final = {
    AttributeType.FLOAT: "float",
    AttributeType.INT: "int",
    AttributeType.STRING: "string",
    AttributeType.BOOL: "bool",
    AttributeType.DATETIME: "datetime",
    AttributeType.STRING_SET: "stringSet",
    AttributeType.FLOAT_SERIES: "floatSeries",
    AttributeType.STRING_SERIES: "stringSeries",
    AttributeType.HISTOGRAM_SERIES: "histogramSeries",
    AttributeType.FILE: "fileRef",
    AttributeType.FILE_SERIES: "fileRefSeries",
}
TYPES: Final = {name: kind for kind, name in NAMES_OF_TYPES.items()}
_PROPERTIES: Final = {
    AttributeType.STRING_SERIES: "string_series_properties",
    AttributeType.HISTOGRAM_SERIES: "histogram_series_properties",
    AttributeType.FILE_SERIES: "file_ref_series_properties",
}
_SINGLE_PROPERTIES: Final = {
    "string": "string_properties",
    "int": "int_properties",
    "float": "float_properties",
    "bool": "bool_properties",
    "datetime": "datetime_properties",
    "stringSet": "string_set_properties",
    "fileRef": "file_ref_properties",
}
_NOT_DATA: Final = frozenset({"experimentState"})

LISTED: Final = (
    "sys/custom_run_id",
    "sys/id",
    "sys/creation_time",
    "sys/modification_time",
    "sys/archived",
    "sys/trashed",
    "sys/forking/parent",
    "sys/diagnostics/attributes/total_count",
    "sys/diagnostics/attributes/total_series_datapoints",
)


def listed_run(entry: Any) -> ListedRun:
    """Read one entry of a list of runs, which holds the attributes of :data:`LISTED` that the run has.

    An entry that does not say which run it is becomes a run with an empty ``sys_id``.
    """
    values = {attribute.name: _value(attribute) for attribute in entry.attributes}
    sys_id = str(values.get("sys/id") or "")
    modified = values.get("sys/modification_time")
    modified_at = _moment(modified)
    return ListedRun(
        run_id=str(values.get("sys/custom_run_id") or sys_id),
        sys_id=sys_id,
        created_at=_moment(values.get("sys/creation_time")),
        modified_at=modified_at,
        modified="" if modified is None or modified_at is not None else str(modified),
        archived=values.get("sys/archived") is True,
        trashed=values.get("sys/trashed") is True,
        parent=values.get("sys/forking/parent") or None,
        attributes=_count(values.get("sys/diagnostics/attributes/total_count")),
        points=_count(values.get("sys/diagnostics/attributes/total_series_datapoints")),
    )


def add_attributes(run: RunAttributes, attributes: Iterable[Any]) -> None:
    """Read attributes of a run; types this version does not know are kept by name."""
    for attribute in attributes:
        kind = TYPES.get(attribute.type)
        if kind is None:
            if attribute.type not in _NOT_DATA:
                run.unknown[attribute.name] = attribute.type
            continue
        if kind is AttributeType.FLOAT_SERIES:
            ends = attribute.float_series_properties
            last = ends.last_step if ends.HasField("last_step") else None
            run.attributes.append(Attribute(attribute.name, kind, None, last, ends.has_preview))
        elif kind in SERIES_TYPES:
            series = getattr(attribute, _PROPERTIES[kind])
            last = series.last_step if series.HasField("last_step") else None
            run.attributes.append(Attribute(attribute.name, kind, None, last))
        else:
            run.attributes.append(Attribute(attribute.name, kind, _value(attribute)))


def _value(attribute: Any) -> Any:
    """The value of a single attribute; None for series, and for a value that was not sent."""
    properties = _SINGLE_PROPERTIES.get(attribute.type)
    if properties is None or not attribute.HasField(properties):
        return None
    match attribute.type:
        case "string":
            return attribute.string_properties.value
        case "int":
            return attribute.int_properties.value
        case "float":
            return attribute.float_properties.value
        case "bool":
            return attribute.bool_properties.value
        case "datetime":
            return attribute.datetime_properties.value
        case "stringSet":
            return list(attribute.string_set_properties.value)
        case "fileRef":
            file = attribute.file_ref_properties
            return FileReference(file.path, file.sizeBytes, file.mimeType)
    return None


def object_value(value: Any) -> Any:
    """Read a point of a series: a string, a FileReference, or a histogram as (type, edges, values); None for others."""
    if value.HasField("stringValue"):
        return value.stringValue
    if value.HasField("fileRef"):
        return FileReference(value.fileRef.path, value.fileRef.sizeBytes, value.fileRef.mimeType)
    if not value.HasField("histogram"):
        return None
    histogram = value.histogram
    return (histogram.type, list(histogram.edges), list(histogram.values))


def _moment(milliseconds: Any) -> datetime | None:
    return moment_of(milliseconds) if isinstance(milliseconds, int) else None


def _count(value: Any) -> int:
    return max(0, value) if isinstance(value, int) else 0


def float_points(content: bytes) -> list[tuple[str, Points]]:
    """Read an answer with points of float series: request ids and points."""
    try:
        return float_series(content)
    except ValueError as error:
        raise RefusedError(f"The answer cannot be read: {error}.") from error


def json_of(content: bytes) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"The answer is not valid JSON: {error}.") from error
    if not isinstance(found, dict):
        raise RefusedError(f"The answer is not a JSON object but {found!r:.80}.")
    return found


@contextmanager
def understood() -> Iterator[None]:
    """Turn what goes wrong with JSON of another shape than was expected into a RefusedError."""
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise RefusedError(f"The answer cannot be understood: {type(error).__name__} {error!s:.200}.") from error


def text_of(value: Any) -> str:
    """A string that can be sent and kept; raises TypeError or ValueError for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is not a string")
    value.encode()
    return value


def parsed(message: Any, content: bytes) -> Any:
    """Read a protobuf message of a class."""
    from google.protobuf.message import DecodeError

    try:
        return message.FromString(content)
    except DecodeError as error:
        raise RefusedError(f"The answer cannot be read: {error}.") from error


def message(name: str) -> Any:
    """Return the class of a message by its name."""
    from neptune_api.proto.neptune_pb.api.v1.model import (
        attributes_pb2,
        leaderboard_entries_pb2,
        series_values_pb2,
    )

    for module in (leaderboard_entries_pb2, attributes_pb2, series_values_pb2):
        if hasattr(module, name):
            return getattr(module, name)
    raise KeyError(name)
