"""Protobuf's wire format for columns of messages: numbers and fields written and read many at a time, by numpy.

For messages of which there are millions; everything else goes through generated classes. The format is that of
https://protobuf.dev/programming-guides/encoding: a field is a tag (field number and wire type) and its content, whole
numbers are *varints* of seven bits a byte, the lowest first, with the top bit set in all bytes but the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Wire types."""

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

_MASK64: Final = (1 << 64) - 1


# -- one at a time


def varint(number: int) -> bytes:
    """Return a number from 0 on as a varint."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field_tag(field: int, wire_type: int) -> bytes:
    """Return what precedes the content of a field."""
    return varint(field << 3 | wire_type)


def field_bytes(field: int, payload: bytes) -> bytes:
    """Return a length-delimited field."""
    return field_tag(field, LENGTH_DELIMITED) + varint(len(payload)) + payload


def read_varint(content: bytes, place: int, stop: int) -> tuple[int, int]:
    """Return the varint at ``place``, and where it ends. Raises ValueError if it does not end before ``stop``."""
    value = shift = 0
    while place < stop and shift < 70:
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK64, place
        shift += 7
    raise ValueError("a number of the message has no end")


def fields(content: bytes, place: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, where its content begins, where it ends) of the message between two bytes.

    Raises ValueError if these bytes are not a valid message.
    """
    while place < stop:
        head, place = read_varint(content, place, stop)
        wire_type = head & 7
        if wire_type == LENGTH_DELIMITED:
            length, place = read_varint(content, place, stop)
            end = place + length
        elif wire_type == VARINT:
            _, end = read_varint(content, place, stop)
        elif wire_type in {FIXED64, FIXED32}:
            end = place + (8 if wire_type == FIXED64 else 4)
        else:
            raise ValueError(f"the message has a field of wire type {wire_type}, which protobuf does not have")
        if end > stop:
            raise ValueError("a field of the message goes beyond its end")
        yield head >> 3, wire_type, place, end
        place = end


# -- many at a time


def varints(numbers: Ints) -> Any:
    """Return numbers from 0 on (int64, one dimension) as an Arrow array of binaries, each of its own length."""
    sizes = np.ones(len(numbers), dtype=np.int64)
    for place in range(1, 9):
        sizes += numbers >= 1 << 7 * place
    width = np.arange(int(sizes.max(initial=1)))
    digits = numbers[:, None] >> 7 * width & 0x7F | np.where(width < sizes[:, None] - 1, 0x80, 0)
    flat = digits.astype(np.uint8)[width < sizes[:, None]]
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    return pa.Array.from_buffers(pa.large_binary(), len(numbers), [None, pa.py_buffer(offsets), pa.py_buffer(flat)])


def number_field(field: int, numbers: Ints) -> list[Any]:
    """Return a varint field of many messages, as parts for :func:`joined`."""
    return [_constant(field_tag(field, VARINT)), varints(numbers)]


def message_field(field: int, parts: Sequence[Any]) -> list[Any]:
    """Return a length-delimited field of many messages around these parts, as parts for :func:`joined`."""
    sizes = [len(part.as_py()) if isinstance(part, pa.Scalar) else pc.binary_length(part).to_numpy() for part in parts]
    length: Ints = np.sum(np.broadcast_arrays(*sizes), axis=0).astype(np.int64)
    return [_constant(field_tag(field, LENGTH_DELIMITED)), varints(length), *parts]


def joined(parts: Sequence[Any]) -> Any:
    """Return one binary for each message: the arrays and constants put together row by row."""
    return pc.binary_join_element_wise(*parts, _constant(b""))


def _constant(content: bytes) -> Any:
    return pa.scalar(content, pa.large_binary())


def varint_width(numbers: Ints) -> int:
    """Return the bytes of the longest varint of these numbers; negative ones take ten."""
    longest = int(numbers.astype(np.uint64).max()).bit_length() if len(numbers) else 0
    return max(1, -(-longest // 7))


def varint_rows(numbers: Ints, width: int) -> Bytes:
    """Return varints that all have ``width`` bytes, the high ones 0 where a number needs fewer: (numbers, width)."""
    shifts = np.arange(width, dtype=np.uint64) * np.uint64(7)
    out = ((numbers.astype(np.uint64)[:, None] >> shifts) & np.uint64(0x7F)).astype(np.uint8)
    out[:, :-1] |= 0x80
    return out


def read_varints(data: Bytes, at: Ints) -> tuple[Ints, Ints]:
    """Read the varint at each of some places of a buffer; return the numbers, and the places after them.

    Numbers of more than 56 bits, which no length is, come back as -1.
    """
    first = data[at].astype(np.int64)
    value, after = first & 0x7F, at + 1
    going = np.flatnonzero(first & 0x80)
    shift = 7
    while going.size:
        if shift > 49:
            value[going] = -1
            break
        byte = data[after[going]].astype(np.int64)
        value[going] |= (byte & 0x7F) << shift
        after[going] += 1
        going = going[byte >= 0x80]
        shift += 7
    return value, after


def read_column(rows: Bytes, first: int, dtype: str) -> npt.NDArray[Any]:
    """Return the number of a fixed-width type that is at byte ``first`` of every row, aligned or not; copies nothing.

    ``rows`` has the shape (messages, bytes of one message).
    """
    return np.ndarray(len(rows), dtype, rows, first, (rows.strides[0],))


def read_varint_column(rows: Bytes, first: int, count: int) -> npt.NDArray[np.uint64]:
    """Return the varint of ``count`` bytes that is at byte ``first`` of every row."""
    if count <= 8 and first + 8 <= rows.shape[1]:
        return _folded(read_column(rows, first, "<u8"), count)
    total = np.zeros(len(rows), np.uint64)
    for index in range(count):
        total |= (rows[:, first + index] & 0x7F).astype(np.uint64) << np.uint64(7 * index)
    return total


def _folded(words: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.uint64]:
    """Varints of so many bytes read as eight: groups of 7, 14, 28 bits are moved together, two at a time."""
    found = words & np.uint64((1 << 8 * count) - 1 & 0x7F7F7F7F7F7F7F7F)
    for bits in (7, 14, 28):
        # Of every pair of groups, the upper one is (8 * bits / 7 - bits) bits too high.
        width = 8 * bits // 7
        low = sum(((1 << bits) - 1) << 2 * width * pair for pair in range(32 // width))
        high = low << width
        found = (found & np.uint64(low)) | ((found & np.uint64(high)) >> np.uint64(width - bits))
    return found
