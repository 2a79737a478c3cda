"""Single values of the wire: checked, and turned into what the store keeps."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Final

from neptune_api.proto.neptune_pb.ingest.v1.ingest_pb2 import IngestCode

from neptune_assets.schema import AttributeType
from neptune_assets.server.store.runs import file_value, histogram_value, to_json

MAX_STRING: Final = 1 << 20
"""Bytes of UTF-8 of a string, or of all members of a set."""
MAX_BINS: Final = 512
_MAX_FILE_PATH: Final = 1024
_MAX_MIME_TYPE: Final = 256
_FIRST_SECOND: Final = -62_135_596_800
_LAST_SECOND: Final = 253_402_300_799

_ATOMS: Final = {
    "float64": AttributeType.FLOAT,
    "int64": AttributeType.INT,
    "string": AttributeType.STRING,
    "bool": AttributeType.BOOL,
    "timestamp": AttributeType.DATETIME,
    "string_set": AttributeType.STRING_SET,
    "file_ref": AttributeType.FILE,
}


class RefusedError(Exception):
    """A value that cannot be kept; ``code`` is the IngestCode to answer with."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def milliseconds(stamp: Any) -> int:
    """Epoch milliseconds of a protobuf Timestamp, rounded down. Raises RefusedError for what no calendar holds.

    The client goes through a float, which turns .123 s into 122_999_906 ns: whole microseconds undo that first.
    """
    if not _FIRST_SECOND <= stamp.seconds <= _LAST_SECOND:
        raise RefusedError(IngestCode.DATETIME_VALUE_OUT_OF_RANGE)
    return int(stamp.seconds * 1000 + (stamp.nanos + 500) // 1_000 // 1_000)


def assigned(value: Any) -> tuple[AttributeType, Any]:
    """Type and value of what is assigned. Raises RefusedError."""
    name = value.WhichOneof("value")
    kind = _ATOMS.get(name)
    if kind is None:
        raise RefusedError(IngestCode.FIELD_TYPE_UNSUPPORTED)
    if kind is AttributeType.STRING:
        return kind, _string(value.string)
    if kind is AttributeType.DATETIME:
        return kind, milliseconds(value.timestamp)
    if kind is AttributeType.STRING_SET:
        members = list(value.string_set.values)
        if sum(len(member.encode()) for member in members) > MAX_STRING:
            raise RefusedError(IngestCode.STRING_SET_EXCEEDS_SIZE_LIMIT)
        return kind, members
    if kind is AttributeType.FILE:
        return kind, _file(value.file_ref)
    return kind, getattr(value, name)


def object_value(name: str | None, value: Any) -> str:
    """What a series of strings, histograms or files keeps of one point. Raises RefusedError."""
    if name == "string":
        return _string(value.string)
    if name == "file_ref":
        return to_json(_file(value.file_ref))
    if name == "histogram":
        return to_json(_histogram(value.histogram))
    raise RefusedError(IngestCode.FIELD_TYPE_UNSUPPORTED)


def _string(text: str) -> str:
    if len(text) * 4 > MAX_STRING and len(text.encode()) > MAX_STRING:
        raise RefusedError(IngestCode.STRING_VALUE_EXCEEDS_SIZE_LIMIT)
    return text


def _file(ref: Any) -> dict[str, Any]:
    if len(ref.path) > _MAX_FILE_PATH or len(ref.mime_type) > _MAX_MIME_TYPE:
        raise RefusedError(IngestCode.FILE_REF_EXCEEDS_SIZE_LIMIT)
    return file_value(ref.path, ref.size_bytes, ref.mime_type)


def _histogram(histogram: Any) -> Any:
    kind = histogram.WhichOneof("values")
    if kind is None:
        raise RefusedError(IngestCode.HISTOGRAM_VALUES_LENGTH_DOESNT_MATCH_BINS)
    edges, values = list(histogram.bin_edges), list(getattr(histogram, kind).values)
    if any(math.isnan(edge) for edge in edges):
        raise RefusedError(IngestCode.HISTOGRAM_BIN_EDGES_CONTAINS_NAN)
    if len(values) > MAX_BINS:
        raise RefusedError(IngestCode.HISTOGRAM_TOO_MANY_BINS)
    if any(second <= first for first, second in pairwise(edges)):
        raise RefusedError(IngestCode.HISTOGRAM_BIN_EDGES_NOT_INCREASING)
    if len(edges) != len(values) + 1:
        raise RefusedError(IngestCode.HISTOGRAM_VALUES_LENGTH_DOESNT_MATCH_BINS)
    return histogram_value("COUNTING" if kind == "counts" else "DENSITY", edges, values)
