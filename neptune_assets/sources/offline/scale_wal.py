"""Reads SQLite's ``-wal`` file frame by frame, to tell what of it is whole and to save that.

SQLite stops in silence at the first frame that does not verify, and takes a ``-wal`` with a damaged header for an empty
one. A job that was killed has most of its data there, so whether the file is whole must be looked at. Source: SQLite's
file format, section 4 (https://www.sqlite.org/fileformat2.html#walformat); for ``-shm``,
https://www.sqlite.org/walformat.html#the_wal_index_file_format.

A checksum goes on from that of the frame before. One that verifies from the checksum *stored* in the frame before is
whole even behind a damaged one, so damage takes out single frames and not all that follow.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from neptune_assets.sources.files import open_regular

_HEADER: Final = 32
_FRAME_HEADER: Final = 24
_MAGIC: Final = {0x377F0682: "<", 0x377F0683: ">"}
"""The byte order of the words that checksums are made of; everything else is big-endian."""
_VERSION: Final = 3_007_000
_BLOCK: Final = 4 * 1024 * 1024
_GENERATIONS: Final = 2**20
"""The first salt grows by one whenever the file starts anew: frames this much older were left by earlier rounds."""

Words = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Wal:
    """What a ``-wal`` holds. Arrays have an element for each frame up to the last of the current round."""

    path: Path
    page_size: int
    salts: tuple[int, int]
    header_whole: bool
    whole: npt.NDArray[np.bool_]
    """Frames whose checksum is right."""
    pages: Words
    sizes: Words
    """Pages of the database after the transaction that a frame ends; 0 for other frames."""
    strange: int
    """Frames behind the last that belong neither to this round nor to an earlier one."""
    rest: int
    """Bytes behind the last frame."""

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return _FRAME_HEADER + self.page_size

    @property
    def last_commit(self) -> int:
        """Index of the last whole frame that ends a transaction; -1 if there is none."""
        ends = np.flatnonzero(self.whole & (self.sizes > 0))
        return int(ends[-1]) if len(ends) else -1

    @property
    def last_sound_commit(self) -> int:
        """Index of the last frame that ends a transaction with nothing damaged before it; -1 if there is none."""
        damaged = np.flatnonzero(~self.whole)
        bound = int(damaged[0]) if len(damaged) else len(self.whole)
        ends = np.flatnonzero(self.sizes[:bound] > 0)
        return int(ends[-1]) if len(ends) else -1

    @property
    def damaged(self) -> bool:
        """True if SQLite would not read all whole frames."""
        return not self.header_whole or not bool(self.whole.all())

    def findings(self, *, live: bool) -> list[str]:
        """Say what could not be read; a transaction that is not finished is what a ``live`` process is writing."""
        found = []
        if not self.header_whole:
            found.append(f"the header of {self.path} is damaged")
        damaged = int((~self.whole).sum()) + self.strange
        if damaged:
            found.append(
                f"{damaged:,} of {len(self.whole) + self.strange:,} frames of {self.path} "
                f"({damaged * self.frame_bytes:,} bytes) are damaged"
            )
        behind = int(self.whole[self.last_commit + 1 :].sum())
        if behind and not live:
            found.append(
                f"the last {behind:,} frames of {self.path} ({behind * self.frame_bytes:,} bytes) are of a transaction "
                "that was never finished or was cut off"
            )
        if self.rest and not live:
            found.append(f"the last {self.rest:,} bytes of {self.path} are not a whole frame: it was cut off")
        return found

    def fold_into(self, database: Path, last: int) -> None:
        """Write the newest whole frame of each page, up to frame ``last``, which ends a transaction, into a database.

        Damaged frames are left out: the database may then be inconsistent.
        """
        if last < 0:
            return
        pages = int(self.sizes[last])
        latest = {
            int(self.pages[index]): int(index)
            for index in np.flatnonzero(self.whole[: last + 1])
            if 0 < self.pages[index] <= pages
        }
        with self.path.open("rb") as wal, database.open("r+b") as file:
            for page, index in sorted(latest.items()):
                wal.seek(_HEADER + index * self.frame_bytes + _FRAME_HEADER)
                file.seek((page - 1) * self.page_size)
                file.write(wal.read(self.page_size))
            file.truncate(pages * self.page_size)


def read_wal(path: Path, database: Path) -> Wal | None:
    """Look at every frame of a ``-wal``; None if the file is empty. ``database`` says the page size if need be."""
    with path.open("rb") as file:
        header = file.read(_HEADER)
        if not header:
            return None
        if len(header) < _HEADER:
            return _nothing(path, len(header))
        magic, version, page_size, _, salt1, salt2, *stored = struct.unpack(">8I", header)
        order = _MAGIC.get(magic)
        if order is not None and version == _VERSION and _is_page_size(page_size):
            computed = _checksums(np.frombuffer(header[:24], f"{order}u4").astype(np.uint32)[None, :], [(0, 0)])
            if (int(computed[0, 0]), int(computed[0, 1])) == tuple(stored):
                return _frames(path, file, page_size, order, (salt1, salt2), [tuple(stored)], header_whole=True)
        # One field is damaged: frames say the salts, the database the page size, and which word order fits is tried.
        page_size = _page_size(database) or (page_size if _is_page_size(page_size) else 4096)
        salts = _commonest_salts(file, page_size)
        if salts is None:
            return _nothing(path, path.stat().st_size)
        attempts = []
        for order in _MAGIC.values():
            computed = _checksums(np.frombuffer(header[:24], f"{order}u4").astype(np.uint32)[None, :], [(0, 0)])
            seeds = [tuple(stored), (int(computed[0, 0]), int(computed[0, 1]))]
            attempts.append(_frames(path, file, page_size, order, salts, seeds, header_whole=False))
        return max(attempts, key=lambda wal: int(wal.whole.sum()))


def lost_frames(shared: Path, wal: Wal | None) -> int:
    """Frames that ``-shm`` counts and that are neither in ``-wal`` nor folded into the database; 0 if none are known.

    Any reader remakes ``-shm`` from the ``-wal`` it finds, so it may say less than was written, but never more.
    """
    try:
        with open_regular(shared) as file:
            index = file.read(104)
    except OSError:
        return 0
    if len(index) < 104 or index[:48] != index[48:96] or not index[12]:
        return 0
    version, frames = struct.unpack_from("=I", index)[0], struct.unpack_from("=I", index, 16)[0]
    if version != _VERSION:
        return 0
    if wal is None:
        return max(0, int(frames) - int(struct.unpack_from("=I", index, 96)[0]))
    # Salts are kept as they are in the file, everything else in the machine's order.
    if struct.unpack_from(">2I", index, 32) != wal.salts:
        return 0
    return max(0, int(frames) - len(wal.whole))


def in_wal_mode(database: Path) -> bool:
    """True if a database says that the latest data may be in a ``-wal`` beside it."""
    with database.open("rb") as file:
        return file.read(20)[18:] == b"\x02\x02"


def _nothing(path: Path, size: int) -> Wal:
    empty = np.zeros(0, np.uint32)
    return Wal(path, 4096, (0, 0), False, np.zeros(0, np.bool_), empty, empty, 0, size)


def _is_page_size(size: int) -> bool:
    return 512 <= size <= 65_536 and size & (size - 1) == 0


def _page_size(database: Path) -> int | None:
    with database.open("rb") as file:
        head = file.read(18)
    if len(head) < 18:
        return None
    size = struct.unpack_from(">H", head, 16)[0]
    size = 65_536 if size == 1 else int(size)
    return size if _is_page_size(size) else None


def _blocks(file: BinaryIO, page_size: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Frames as rows of bytes; an incomplete frame at the end is left out."""
    length = _FRAME_HEADER + page_size
    file.seek(_HEADER)
    while block := file.read(max(1, _BLOCK // length) * length):
        whole = len(block) // length
        if whole:
            yield np.frombuffer(block[: whole * length], np.uint8).reshape(whole, length)


def _commonest_salts(file: BinaryIO, page_size: int) -> tuple[int, int] | None:
    counts: Counter[tuple[int, int]] = Counter()
    for frames in _blocks(file, page_size):
        salts = np.ascontiguousarray(frames[:, 8:16]).view(">u4")
        counts.update((int(first), int(second)) for first, second in salts)
    return counts.most_common(1)[0][0] if counts else None


def _frames(
    path: Path,
    file: BinaryIO,
    page_size: int,
    order: str,
    salts: tuple[int, int],
    seeds: list[Any],
    *,
    header_whole: bool,
) -> Wal:
    """Verify every frame from the checksum stored before it, or else from the one that frame should have had."""
    whole: list[npt.NDArray[np.bool_]] = []
    heads: list[Words] = []
    for frames in _blocks(file, page_size):
        head = np.ascontiguousarray(frames[:, :24]).view(">u4").astype(np.uint32)
        words = np.ascontiguousarray(np.concatenate((frames[:, :8], frames[:, 24:]), axis=1)).view(f"{order}u4")
        words = words.astype(np.uint32)
        before = [seeds[0], *((int(first), int(second)) for first, second in head[:-1, 4:6])]
        computed = _checksums(words, before)
        right = (computed == head[:, 4:6]).all(axis=1)
        for index in np.flatnonzero(~right).tolist():
            others = seeds[1:] if index == 0 else [tuple(map(int, computed[index - 1]))]
            for seed in others:
                again = _checksums(words[index : index + 1], [seed])
                right[index] |= bool((again[0] == head[index, 4:6]).all())
        seeds = [(int(head[-1, 4]), int(head[-1, 5])), tuple(map(int, computed[-1]))]
        whole.append(right)
        heads.append(head)
    size = path.stat().st_size
    rest = (size - _HEADER) % (_FRAME_HEADER + page_size)
    if not heads:
        empty = np.zeros(0, np.uint32)
        return Wal(path, page_size, salts, header_whole, np.zeros(0, np.bool_), empty, empty, 0, rest)
    head, right = np.concatenate(heads), np.concatenate(whole)
    current = (head[:, 2] == salts[0]) & (head[:, 3] == salts[1])
    count = int(np.flatnonzero(current)[-1]) + 1 if current.any() else 0
    behind = head[count:]
    age = np.uint32(salts[0]) - behind[:, 2]
    older = (behind[:, 0] > 0) & (behind[:, 3] != salts[1]) & (age > 0) & (age < _GENERATIONS)
    return Wal(
        path,
        page_size,
        salts,
        header_whole,
        (right & current)[:count],
        head[:count, 0],
        head[:count, 1],
        int((~older).sum()),
        rest,
    )


def _checksums(words: Words, seeds: list[Any]) -> Words:
    """SQLite's checksum of each row of words, going on from a seed each: two words a row.

    The checksum is linear modulo 2^32, so a row's is a weighted sum of its words plus a matrix times its seed.
    """
    weights, matrix = _weights(words.shape[1])
    start = np.asarray(seeds, np.uint32)
    result: Words = words @ weights + start @ matrix
    return result


@lru_cache(maxsize=16)
def _weights(count: int) -> tuple[Words, Words]:
    """Weights of ``count`` words in both sums, and what becomes of a seed behind them."""
    mask = 0xFFFFFFFF
    weights = np.zeros((count, 2), np.uint32)
    # Of what is added to the first sum, and to the second, before the remaining pairs; from the last pair backwards.
    first, second = (1, 0), (0, 1)
    for pair in range(count // 2 - 1, -1, -1):
        # A pair (x, y) makes (s1, s2) into (s1 + s2 + x, s1 + 2 * s2 + x + y).
        weights[2 * pair] = [(first[place] + second[place]) & mask for place in (0, 1)]
        weights[2 * pair + 1] = second
        first, second = (
            ((first[0] + second[0]) & mask, (first[1] + second[1]) & mask),
            ((first[0] + 2 * second[0]) & mask, (first[1] + 2 * second[1]) & mask),
        )
    return weights, np.array([first, second], np.uint32)
