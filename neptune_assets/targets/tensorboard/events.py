"""TensorBoard's event files: records framed by CRCs, each an ``Event`` message.

A record is the length of its message (8 bytes), a masked CRC-32C of these, the message, and a masked CRC-32C of it:
``tensorboard/summary/writer/record_writer.py``; messages are those of ``tensorboard/compat/proto/event.proto``,
``summary.proto`` and ``tensor.proto`` (tensorboard 2.21.0). Points are written and read as rows of bytes of one length.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, Final

import google_crc32c
import numpy as np
import numpy.typing as npt

from neptune_assets.errors import TargetError
from neptune_assets.protobuf_columns import (
    FIXED32,
    FIXED64,
    LENGTH_DELIMITED,
    VARINT,
    Bytes,
    Ints,
    field_bytes,
    field_tag,
    fields,
    read_column,
    read_varint,
    read_varint_column,
    varint,
    varint_rows,
    varint_width,
)

Floats = npt.NDArray[np.float64]
_CRCS = npt.NDArray[np.uint32]

_WALL_TIME: Final = field_tag(1, FIXED64)
_STEP: Final = field_tag(2, VARINT)
_VALUE: Final = field_tag(2, FIXED32)
_HEAD, _FOOT = 12, 4
_WINDOW: Final = 4 << 20
"""Bytes of a file that are read at once; a longer record is read whole."""
_MASK: Final = 0xA282EAD8
_DOUBLE, _STRING = 2, 7
"""Types of tensors."""
_TENSOR, _BLOBS = 2, 3
"""Classes of data, which say how TensorBoard's readers keep a tensor."""
_MASK64: Final = (1 << 64) - 1


# -- messages


def tensor(shape: tuple[int, ...], *, doubles: bytes = b"", strings: tuple[bytes, ...] | None = None) -> bytes:
    """Return a ``TensorProto`` of doubles in row order, or of byte strings."""
    dims = b"".join(field_bytes(2, field_tag(1, VARINT) + varint(size)) for size in shape)
    head = field_tag(1, VARINT) + varint(_DOUBLE if strings is None else _STRING) + field_bytes(2, dims)
    return head + (field_bytes(4, doubles) if strings is None else b"".join(field_bytes(8, item) for item in strings))


def value(plugin: str, made: bytes, content: bytes = b"") -> bytes:
    """Return a ``Summary.Value`` of a plugin, without its tag; ``made`` is a tensor."""
    kind = _BLOBS if plugin == "images" else _TENSOR
    data = field_bytes(1, plugin.encode()) + field_bytes(2, content)
    return field_bytes(9, field_bytes(1, data) + field_tag(4, VARINT) + varint(kind)) + field_bytes(8, made)


def histogram(edges: list[float], counts: list[float]) -> bytes:
    """Return a histogram as TensorBoard keeps it: left, right and count of each bin."""
    bins = np.column_stack((edges[:-1], edges[1:], counts)).astype("<f8")
    return value("histograms", tensor(bins.shape, doubles=bins.tobytes()))


def text(content: str) -> bytes:
    """Return a text; TensorBoard shows it as Markdown."""
    return value("text", tensor((1,), strings=(content.encode("utf-8"),)))


def image(content: bytes, width: int, height: int) -> bytes:
    """Return an encoded picture."""
    return value("images", tensor((3,), strings=(b"%d" % width, b"%d" % height, content)))


def hparams(session: bytes) -> bytes:
    """Return what the plug-in of parameters keeps of a session: a field of ``HParamsPluginData``."""
    null = field_tag(1, VARINT) + varint(1) + field_bytes(2, field_bytes(2, b""))
    return value("hparams", null, session)


def parameter(held: bool | float | str) -> bytes:
    """Return a ``google.protobuf.Value``."""
    if isinstance(held, bool):
        return field_tag(4, VARINT) + varint(held)
    if isinstance(held, str):
        return field_bytes(3, held.encode("utf-8"))
    return field_tag(2, FIXED64) + struct.pack("<d", held)


# -- writing


class EventWriter:
    """Writes one event file from its beginning."""

    def __init__(self, path: Path, wall: float) -> None:
        self._file: BinaryIO = path.open("xb")
        self._record(_WALL_TIME + struct.pack("<d", wall) + field_bytes(3, b"brain.Event:2"))

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, tag: str, step: int, wall: float, content: bytes) -> None:
        """Write one value of a tag, as :func:`value` makes it."""
        summary = field_bytes(5, field_bytes(1, field_bytes(1, tag.encode("utf-8")) + content))
        self._record(_WALL_TIME + struct.pack("<d", wall) + _STEP + varint(step & _MASK64) + summary)

    def scalars(self, tag: str, steps: Ints, walls: Floats, values: npt.NDArray[np.float32]) -> None:
        """Write points of one tag."""
        # All steps of a block take the bytes of the longest, so that rows have one length.
        width = varint_width(steps)
        template = _scalar_prefix(tag) + bytes(4) + _WALL_TIME + bytes(8) + _STEP + bytes(width)
        ends = (len(template) - width - 10, len(template) - width - 1, len(template))
        variable = np.empty((len(steps), 12 + width), np.uint8)
        variable[:, :4] = values.astype("<f4").view(np.uint8).reshape(-1, 4)
        variable[:, 4:12] = walls.astype("<f8").view(np.uint8).reshape(-1, 8)
        variable[:, 12:] = varint_rows(steps, width)
        rows = np.empty((len(steps), _HEAD + len(template) + _FOOT), np.uint8)
        rows[:, : _HEAD + len(template)] = np.frombuffer(_head(len(template)) + template, np.uint8)
        places = _places(ends, width)
        rows[:, _HEAD + places] = variable
        crcs = _masked(np.uint32(google_crc32c.value(template)) ^ _changes(variable, len(template), places))
        rows[:, -_FOOT:] = crcs.astype("<u4").view(np.uint8).reshape(-1, 4)
        self._file.write(rows.data)

    def _record(self, message: bytes) -> None:
        self._file.write(_head(len(message)) + message + _crc(message))


def _scalar_prefix(tag: str) -> bytes:
    """Return a message of a point up to its value, which is followed by its time and its step."""
    held = field_bytes(1, tag.encode("utf-8")) + _VALUE
    inner = field_tag(1, LENGTH_DELIMITED) + varint(len(held) + 4) + held
    return field_tag(5, LENGTH_DELIMITED) + varint(len(inner) + 4) + inner


def _places(ends: tuple[int, int, int], width: int) -> Ints:
    """Return where value, time and step are in the message of a point."""
    return np.concatenate([np.arange(end - size, end) for end, size in zip(ends, (4, 8, width), strict=True)])


def _head(size: int) -> bytes:
    length = struct.pack("<Q", size)
    return length + _crc(length)


def _crc(content: bytes) -> bytes:
    return struct.pack("<I", int(_masked(np.array([google_crc32c.value(content)], np.uint32))[0]))


def _masked(crcs: _CRCS) -> _CRCS:
    result: _CRCS = ((crcs >> np.uint32(15)) | (crcs << np.uint32(17))) + np.uint32(_MASK)
    return result


def _changes(variable: Bytes, size: int, places: Ints) -> _CRCS:
    """Return how bytes at these places change the CRC of a message of ``size`` bytes that has zeros there.

    A CRC is linear: what each byte changes depends on its value and its distance from the end alone.
    """
    total = np.zeros(len(variable), np.uint32)
    for column, place in enumerate(places.tolist()):
        total ^= _table(size - place - 1).take(variable[:, column])
    return total


@cache
def _table(after: int) -> _CRCS:
    zeros = google_crc32c.value(bytes(after + 1))
    return np.array([google_crc32c.value(bytes([byte]) + bytes(after)) ^ zeros for byte in range(256)], np.uint32)


# -- reading


@dataclass(frozen=True, slots=True)
class Points:
    """Points of one tag, in the order of the file."""

    tag: str
    steps: Ints
    walls: Floats
    values: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a tag that is not a point; ``content`` as :func:`value` makes it."""

    tag: str
    step: int
    wall: float
    content: bytes


def read_events(path: Path) -> Iterator[Points | Value]:
    """Yield what an event file holds, in memory for a window of it.

    Raises TargetError where a length or a message does not have its CRC, or the file ends within a record.
    """
    with path.open("rb") as file:
        rest = b""
        while block := file.read(_WINDOW):
            content = rest + block
            try:
                used = yield from _records(content)
            except (ValueError, struct.error) as error:
                raise _damaged(path, str(error)) from error
            rest = content[used:]
        if rest:
            raise _damaged(path, "it ends within a record")


def _damaged(path: Path, what: str) -> TargetError:
    return TargetError(f"The event file {path} is damaged: {what}.", hint="Load its run again with full_refresh.")


def _records(content: bytes) -> Generator[Points | Value, None, int]:
    """Yield what whole records hold; return where the first that is not whole begins."""
    place, several = 0, 16
    data = np.frombuffer(content, np.uint8)
    while place + _HEAD + _FOOT <= len(content):
        (size,) = struct.unpack_from("<Q", content, place)
        if content[place : place + _HEAD] != _head(size):
            raise ValueError(f"the length at byte {place} of a window does not have its CRC")
        whole = _HEAD + size + _FOOT
        if place + whole > len(content):
            break
        many = min(several, (len(content) - place) // whole)
        rows = data[place : place + many * whole].reshape(many, whole)
        points = _points(rows, content[place + _HEAD : place + _HEAD + size])
        if points is not None:
            yield points
            place += whole * len(points.steps)
            several = several * 2 if len(points.steps) == many else 16
            continue
        message = content[place + _HEAD : place + _HEAD + size]
        if _crc(message) != content[place + whole - _FOOT : place + whole]:
            raise ValueError("a message does not have its CRC")
        found = _value(message)
        if found is not None:
            yield found
        place += whole
    return place


def _points(rows: Bytes, message: bytes) -> Points | None:
    """Return the points with which these rows begin, all of one tag; None if the first is not one of ours."""
    size = len(message)
    try:
        (summary,) = (item for item in fields(message, 0, size) if item[0] == 5)
        ((_, _, begin, end),) = fields(message, *summary[2:])
        parts = list(fields(message, begin, end))
    except ValueError:
        return None
    if [(field, kind) for field, kind, _, _ in parts] != [(1, LENGTH_DELIMITED), (2, FIXED32)]:
        return None
    width = size - end - 10
    if width < 1:
        return None
    places = _places((end, end + 9, size), width)
    first, wall, step = slice(0, _HEAD + end - 4), _HEAD + end, _HEAD + end + 9
    same = (rows[:, first] == rows[0, first]).all(axis=1)
    same &= (rows[:, wall] == _WALL_TIME[0]) & (rows[:, step] == _STEP[0])
    if not same[0]:
        return None
    rows = rows if same.all() else rows[: int(np.argmin(same))]
    zeroed = np.frombuffer(message, np.uint8).copy()
    zeroed[places] = 0
    template = zeroed.tobytes()
    crcs = np.uint32(google_crc32c.value(template)) ^ _changes(rows[:, _HEAD + places], size, places)
    if (_masked(crcs) != read_column(rows, _HEAD + size, "<u4")).any():
        raise ValueError("a point does not have its CRC")
    tag = message[parts[0][2] : parts[0][3]].decode("utf-8")
    steps = read_varint_column(rows, _HEAD + size - width, width).view(np.int64)
    walls, values = (read_column(rows, _HEAD + at, kind).copy() for at, kind in ((end + 1, "<f8"), (end - 4, "<f4")))
    return Points(tag, steps, walls, values)


def _value(message: bytes) -> Value | None:
    wall, step, tag, content = 0.0, 0, None, b""
    for field, _, begin, end in fields(message, 0, len(message)):
        if field == 1:
            (wall,) = struct.unpack_from("<d", message, begin)
        elif field == 2:
            step = struct.unpack("<q", struct.pack("<Q", read_varint(message, begin, end)[0]))[0]
        elif field == 5:
            ((_, _, at, stop),) = fields(message, begin, end)
            (_, _, first, last), *_ = fields(message, at, stop)
            tag, content = message[first:last].decode("utf-8"), message[last:stop]
    return None if tag is None else Value(tag, step, wall, content)
