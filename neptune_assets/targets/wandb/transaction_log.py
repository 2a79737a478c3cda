"""The ``.wandb`` file: a header, then W&B's records in LevelDB's log format.

A file is 32 KiB blocks; a record that does not fit into what is left of a block goes on in the next one. Every piece
carries a CRC-32 over its kind and its bytes, so that a torn or damaged file never reads as a shorter, healthy one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

from neptune_assets.errors import TargetError

HEADER: Final = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
BLOCK: Final = 32_768
_PIECE: Final = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_SEEDS: Final = {kind: zlib.crc32(bytes([kind])) for kind in (_FULL, _FIRST, _MIDDLE, _LAST)}


class LogWriter:
    """Writes records to a new ``.wandb`` file; all of it is written once :meth:`close` has returned."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("xb", buffering=1 << 20)
        self._file.write(HEADER)
        self._offset = len(HEADER)
        self._left = BLOCK - self._offset
        self.records = 0

    def append(self, record: bytes) -> None:
        """Write one serialised record."""
        left, size, write = self._left, len(record), self._file.write
        self.records += 1
        if left >= size + 7:
            write(_PIECE.pack(zlib.crc32(record, _SEEDS[_FULL]), size, _FULL))
            write(record)
            self._left = left - size - 7 or BLOCK
            self._offset += size + 7
            return
        position, view, first = 0, memoryview(record), True
        while True:
            if self._left < 7:
                write(bytes(self._left))
                self._offset += self._left
                self._left = BLOCK
            take = min(size - position, self._left - 7)
            last = position + take == size
            kind = (_FULL if last else _FIRST) if first else (_LAST if last else _MIDDLE)
            piece = view[position : position + take]
            write(_PIECE.pack(zlib.crc32(piece, _SEEDS[kind]), take, kind))
            write(piece)
            self._left = self._left - take - 7 or BLOCK
            self._offset += take + 7
            position, first = position + take, False
            if last:
                return

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._offset

    def close(self) -> None:
        """Write what is buffered and close."""
        if not self._file.closed:
            self._file.close()

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_log(path: Path) -> Iterator[bytes]:
    """Yield the serialised records of a ``.wandb`` file. Raises TargetError if it is not as it was written."""
    hint = "Load the run again; it is staged anew."
    with path.open("rb") as file:
        if file.read(len(HEADER)) != HEADER:
            raise TargetError(f"{path.name} is no W&B run file.", hint=hint)
        parts: list[bytes] = []
        block = file.read(BLOCK - len(HEADER))
        while block:
            position, size = 0, len(block)
            while size - position >= 7:
                crc, length, kind = _PIECE.unpack_from(block, position)
                position += 7
                piece = block[position : position + length]
                position += length
                seed = _SEEDS.get(kind)
                if seed is None or len(piece) != length or zlib.crc32(piece, seed) != crc:
                    raise TargetError(f"{path.name} is damaged or cut short.", hint=hint)
                if bool(parts) == (kind in (_FULL, _FIRST)):
                    raise TargetError(f"{path.name} misses a piece of a record.", hint=hint)
                if kind == _FULL:
                    yield piece
                    continue
                parts.append(piece)
                if kind == _LAST:
                    yield b"".join(parts)
                    parts = []
            if any(block[position:]):
                raise TargetError(f"{path.name} is damaged or cut short.", hint=hint)
            block = file.read(BLOCK)
        if parts:
            raise TargetError(f"{path.name} ends within a record.", hint=hint)
