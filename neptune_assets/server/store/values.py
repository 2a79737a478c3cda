"""How values lie in the tables: floats as their bits, sets and files as JSON, and back, exactly."""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from neptune_assets.schema import AttributeType

SqlValue = int | str | None

_JSON_TYPES: Final = frozenset(
    {
        AttributeType.STRING_SET,
        AttributeType.FILE,
        AttributeType.FILE_SET,
        AttributeType.ARTIFACT,
        AttributeType.HISTOGRAM_SERIES,
        AttributeType.FILE_SERIES,
    }
)


def float_bits(value: float) -> int:
    """The 64 bits of a float as a signed integer."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def bits_float(bits: int) -> float:
    """The float of these 64 bits."""
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])


def floats_bits(values: Iterable[float]) -> list[int]:
    """The bits of many floats."""
    return array("q", array("d", values).tobytes()).tolist()


def bits_floats(bits: Iterable[int]) -> list[float]:
    """The floats of many bits."""
    return array("d", array("q", bits).tobytes()).tolist()


def to_json(value: Any) -> str:
    """JSON as it is stored: NaN and infinities as Python writes them, text as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def encode(kind: AttributeType, value: Any) -> SqlValue:
    """Turn a single value into what ``attributes.value`` holds.

    Floats, ints, bools, str as they are in Python; datetimes as epoch ms; string sets as any iterable of str; files
    as a mapping (see :func:`file_value`).
    """
    if kind is AttributeType.FLOAT:
        return float_bits(value)
    if kind is AttributeType.STRING_SET:
        return to_json(sorted(set(value)))
    if kind in _JSON_TYPES:
        return to_json(value)
    if kind is AttributeType.STRING:
        return str(value)
    return int(value)


def decode(kind: AttributeType, value: SqlValue) -> Any:
    """Turn ``attributes.value`` (or the value of an object of a series) back into what :func:`encode` was given."""
    if value is None:
        return None
    if kind is AttributeType.FLOAT:
        return bits_float(int(value))
    if kind is AttributeType.BOOL:
        return bool(value)
    if kind in _JSON_TYPES:
        return json.loads(str(value))
    return value


def file_value(path: str, size: int, mime_type: str) -> dict[str, Any]:
    """What is stored of a file: the key of its bytes, its size, and what it is."""
    return {"path": path, "size": size, "mime_type": mime_type}


def histogram_value(kind: str, edges: Sequence[float], values: Sequence[float]) -> Mapping[str, Any]:
    """What is stored of a histogram; ``kind`` is COUNTING or DENSITY."""
    return {"type": kind, "edges": list(edges), "values": list(values)}
