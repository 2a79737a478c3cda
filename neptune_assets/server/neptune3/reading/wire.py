"""Attributes of the catalog as messages of the protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping
from mimetypes import guess_type
from types import MappingProxyType
from typing import Any, Final

from neptune_api.proto.neptune_pb.api.v1.model.leaderboard_entries_pb2 import ProtoAttributeDTO

from neptune_assets.schema import MICROSTEPS, AttributeType
from neptune_assets.server.catalog.search import Value

WIRE_TYPES: Final[Mapping[AttributeType, str]] = MappingProxyType(
    {
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
)
"""The protocol's words for types; file sets and artifacts, which are of 2.x, it has none for."""

TYPES: Final[Mapping[str, AttributeType]] = MappingProxyType({word: kind for kind, word in WIRE_TYPES.items()})


def attribute(value: Value) -> ProtoAttributeDTO:
    """Return the message of one attribute; its type must be one of :data:`WIRE_TYPES`."""
    kind, word = value.type, WIRE_TYPES[value.type]
    message = ProtoAttributeDTO(name=value.path, type=word)
    named = {"attribute_name": value.path, "attribute_type": word}
    if kind is AttributeType.FLOAT:
        _set(message.float_properties, named, value=value.number)
    elif kind is AttributeType.INT:
        _set(message.int_properties, named, value=value.whole)
    elif kind is AttributeType.STRING:
        _set(message.string_properties, named, value=value.text)
    elif kind is AttributeType.BOOL:
        _set(message.bool_properties, named, value=value.flag)
    elif kind is AttributeType.DATETIME:
        _set(message.datetime_properties, named, value=value.moment)
    elif kind is AttributeType.STRING_SET:
        _set(message.string_set_properties, named)
        message.string_set_properties.value.extend(value.members or ())
    elif kind is AttributeType.FLOAT_SERIES:
        _float_series(message, value, named)
    elif kind is AttributeType.STRING_SERIES:
        _set(message.string_series_properties, named, last_step=_step(value), last=value.text)
    elif kind is AttributeType.HISTOGRAM_SERIES:
        _set(message.histogram_series_properties, named, last_step=_step(value))
        if value.detail is not None:
            set_histogram(message.histogram_series_properties.last, json.loads(value.detail))
    elif kind is AttributeType.FILE:
        _set(message.file_ref_properties, named)
        set_file(message.file_ref_properties, json.loads(value.detail or "{}"))
    else:
        _set(message.file_ref_series_properties, named, last_step=_step(value))
        if value.detail is not None:
            set_file(message.file_ref_series_properties.last, json.loads(value.detail))
    return message


def set_file(message: Any, stored: Mapping[str, Any]) -> None:
    """Fill in a reference to a file from what the store or the lake keeps of it."""
    path = stored.get("path") or ""
    message.path = path
    message.sizeBytes = int(stored.get("size") or 0)
    # The lake does not keep what a file is; its name tells.
    message.mimeType = stored.get("mime_type") or guess_type(path)[0] or "application/octet-stream"


def set_histogram(message: Any, stored: Mapping[str, Any]) -> None:
    """Fill in a histogram."""
    message.type = stored.get("type") or "COUNTING"
    message.edges.extend(_number(edge) for edge in stored.get("edges") or ())
    message.values.extend(_number(count) for count in stored.get("values") or ())


def _float_series(message: ProtoAttributeDTO, value: Value, named: Mapping[str, str]) -> None:
    _set(
        message.float_series_properties,
        named,
        last_step=_step(value),
        last=value.number,
        min=value.least,
        max=value.greatest,
        average=value.mean,
        variance=value.variance,
        has_preview=value.previewed,
    )


def _set(message: Any, named: Mapping[str, str], **cells: Any) -> None:
    message.attribute_name = named["attribute_name"]
    message.attribute_type = named["attribute_type"]
    for name, cell in cells.items():
        if cell is not None:
            setattr(message, name, cell)


def _step(value: Value) -> float | None:
    return None if value.last_step is None else value.last_step / MICROSTEPS


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
