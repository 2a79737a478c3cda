"""Fields of protobuf messages, without their classes: where each begins and ends. ValueError for what is no message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_MASK64: Final = (1 << 64) - 1


def fields(content: bytes, place: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire kind, where its content begins, where it ends) of the message between two bytes."""
    while place < stop:
        tag, place = varint(content, place, stop)
        kind = tag & 7
        if kind == 2:
            length, place = varint(content, place, stop)
            end = place + length
            if end > stop:
                raise ValueError("a message of the answer goes beyond its end")
        else:
            end = skip(content, place, stop, kind)
        yield tag >> 3, kind, place, end
        place = end


def skip(content: bytes, place: int, stop: int, kind: int) -> int:
    """Return where a field of a wire kind ends, whose content begins at ``place``."""
    if kind == 0:
        return varint(content, place, stop)[1]
    if kind == 2:
        length, place = varint(content, place, stop)
        end = place + length
    elif kind in {1, 5}:
        end = place + (8 if kind == 1 else 4)
    else:
        raise ValueError(f"the answer holds a field of kind {kind}, which protobuf does not know")
    if end > stop:
        raise ValueError("a field of the answer goes beyond its end")
    return end


def varint(content: bytes, place: int, stop: int) -> tuple[int, int]:
    """Return the number at ``place``, and where it ends."""
    value = shift = 0
    while place < stop and shift < 70:
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK64, place
        shift += 7
    raise ValueError("a number of the answer has no end")
