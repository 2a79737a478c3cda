"""Opens SQLite files that neptune-scale wrote, without changing one byte beside or inside them.

SQLite itself writes when it opens a database in WAL mode: it makes ``-wal`` and ``-shm`` files and folds the first into
the database on closing. A killed process leaves all its data in ``-wal``. So a database without ``-wal`` is opened as
immutable, and one with ``-wal`` is copied, both files, to a private directory and opened there. ``-shm`` is never
copied: SQLite rebuilds it from ``-wal``.

A copy taken from under a live process is consistent if the database did not change while it was copied (only folding
the ``-wal`` in changes it) and the ``-wal`` did not start anew meanwhile (its header shows that); what is appended to
``-wal`` in between is simply not read yet.

SQLite stops in silence at the first frame that does not verify, and takes a ``-wal`` with a damaged header for an empty
one. So the ``-wal`` is read frame by frame, and one that is damaged is folded into the copy here: every whole frame is
taken if the database is consistent with them, otherwise those before the first damaged one. A checksum goes on from
that of the frame before; one that verifies from the checksum *stored* there is whole even behind a damaged frame.
Source: SQLite's file format, section 4 (https://www.sqlite.org/fileformat2.html#walformat); for ``-shm``,
https://www.sqlite.org/walformat.html#the_wal_index_file_format.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from neptune_assets.errors import SourceError
from neptune_assets.sources.files import open_regular
from neptune_assets.tempdirs import TempDirectory

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


_TRIES: Final = 8
_WAL_HEADER: Final = 32
_TICK_NS: Final = 30_000_000
"""File times advance in ticks; a database written to this recently is not copied before the tick is over."""
_LONGEST_VALUE: Final = 64 * 1024 * 1024
"""Bytes of the longest value read. The client limits an operation to about 2 MiB."""

BROKEN: Final = (sqlite3.Error, UnicodeDecodeError)
"""What a damaged database raises: Python cannot decode messages of SQLite that hold bytes of the file."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Sizes and times (ns) of the database and of its ``-wal`` and ``-journal``; zeros where there is none."""

    main: tuple[int, int]
    wal: tuple[int, int]
    journal: tuple[int, int]

    @property
    def lone(self) -> bool:
        """True if all data is in the database itself."""
        return self.wal[0] == 0 and self.journal[0] == 0

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return self.main[0] + self.wal[0] + self.journal[0]

    @property
    def modified_ns(self) -> int:
        """The latest time of any of the files."""
        return max(self.main[1], self.wal[1], self.journal[1])


def file_facts(path: Path) -> FileFacts:
    """Look at the files of a database. Raises OSError if the database itself is not there."""
    status = path.stat()
    return FileFacts(
        (status.st_size, status.st_mtime_ns), _facts(_beside(path, "-wal")), _facts(_beside(path, "-journal"))
    )


@contextmanager
def open_in_place(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the database alone, whatever ``-wal`` holds, without locks and without writing anything.

    Right for all data only while :attr:`FileFacts.lone` is true before and after. Raises sqlite3.Error.
    """
    connection = _connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1")
    try:
        yield connection
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a database holds, and what its files show to be missing: ``lost`` for sure, ``doubtful`` perhaps."""

    connection: sqlite3.Connection
    lost: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()


@contextmanager
def open_snapshot(path: Path) -> Iterator[Snapshot]:
    """Open everything a database holds: in place if that is all in one file, otherwise from a private copy.

    Raises SourceError if a live process keeps changing it, OSError and sqlite3.Error as they come.
    """
    if file_facts(path).lone:
        with open_in_place(path) as connection:
            yield Snapshot(connection, *_without_wal(path))
        return
    with TempDirectory("recording") as scratch:
        copy = scratch / "copy.sqlite3"
        _copy(path, copy)
        lost = _fold_damaged(path, copy)
        connection = _connect(f"{copy.as_uri()}?mode=rw")
        try:
            yield Snapshot(connection, lost)
        finally:
            connection.close()


def whole_pages(connection: sqlite3.Connection) -> str | None:
    """What SQLite finds wrong with the pages of a database; None if nothing is."""
    found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")]
    return None if found == ["ok"] else "; ".join(" ".join(line.split()) for line in found)


@lru_cache(maxsize=4_096)
def same_bytes(path: Path, other: Path, facts: FileFacts, other_facts: FileFacts) -> bool:
    """True if two databases and their ``-wal`` hold the same bytes; compared once for as long as both stay the same.

    Equal sizes prove nothing: a copy may be damaged.
    """
    return all(_hash(_beside(path, suffix)) == _hash(_beside(other, suffix)) for suffix in ("", "-wal", "-journal"))


def _hash(path: Path) -> bytes:
    try:
        digest = hashlib.blake2b(digest_size=32)
        with open_regular(path) as file:
            while block := file.read(1024 * 1024):
                digest.update(block)
        return digest.digest()
    except FileNotFoundError:
        return b""
    except OSError:
        return str(path).encode(errors="surrogateescape")  # nothing is a copy of what cannot be read


def may_lack_wal(path: Path) -> bool:
    """True if the latest data may have been in a ``-wal`` that is not there, or cannot be read."""
    facts = file_facts(path)
    return facts.wal[0] > 0 or _beside(path, "-shm").exists() or bool(_without_wal(path)[1])


def _without_wal(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a database without data in a ``-wal`` lacks for sure, and what it may lack."""
    lost = lost_frames(_beside(path, "-shm"), None)
    wal = _beside(path, "-wal")
    if lost:
        return (f"{wal} is missing or empty, and {lost:,} pages that {path.name}-shm counts were in it",), ()
    if not wal.exists() and in_wal_mode(path):
        return (), (
            f"{wal} is not there. That is right if the client closed {path.name}; after a kill, the latest operations "
            "are in it: look for it where this folder was copied from.",
        )
    return (), ()


def _fold_damaged(path: Path, copy: Path) -> tuple[str, ...]:
    """Save what is whole of a copy's damaged ``-wal``; returns what could not be read."""
    copied = _beside(copy, "-wal")
    wal = read_wal(copied, copy) if copied.exists() else None
    if wal is None:
        return ()
    live = writer(path) is not None
    found = [text.replace(str(copied), str(_beside(path, "-wal"))) for text in wal.findings(live=live)]
    cut = 0 if live else lost_frames(_beside(path, "-shm"), wal)
    if cut:
        found.append(f"{_beside(path, '-wal')} lacks {cut:,} frames that {path.name}-shm counts: it was cut off")
    if wal.damaged:
        folded = copy.with_name("folded.sqlite3")
        shutil.copyfile(copy, folded)
        wal.fold_into(folded, wal.last_commit)
        if not _consistent(folded):
            shutil.copyfile(copy, folded)
            wal.fold_into(folded, wal.last_sound_commit)
        copied.unlink()
        folded.replace(copy)
    return tuple(found)


def _consistent(database: Path) -> bool:
    try:
        with open_in_place(database) as connection:
            return whole_pages(connection) is None
    except BROKEN:
        return False


def writer(path: Path) -> int | None:
    """Process id of a live process that has the database open, or None if there is none or it cannot be told.

    Asks the kernel about locks without taking any. Only Linux is asked; elsewhere the answer is None.
    """
    if sys.platform != "linux":
        return None
    import fcntl

    # SQLite's shared locks on the database: 510 bytes that begin 2 bytes after 1 GiB.
    question = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0x40000000, 512, 0)
    try:
        with path.open("rb") as file:
            answer = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, question))
    except OSError:
        # Some file systems know no locks: then nothing can be told.
        return None
    return None if answer[0] == fcntl.F_UNLCK else int(answer[4])


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=1.0)
    # Text that is not UTF-8 is damage; it is read as it is and never raises.
    connection.text_factory = lambda data: data.decode("utf-8", "backslashreplace")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


def _copy(path: Path, copy: Path) -> None:
    for attempt in range(_TRIES):
        before = file_facts(path)
        recent = time.time_ns() - before.main[1]
        if 0 <= recent < _TICK_NS:
            time.sleep(_TICK_NS / 1e9)
            before = file_facts(path)
        head = _head(_beside(path, "-wal"))
        shutil.copyfile(path, copy)
        after = file_facts(path)
        consistent = before.main == after.main and before.journal == after.journal
        for suffix in ("-wal", "-journal"):
            _beside(copy, suffix).unlink(missing_ok=True)
            try:
                shutil.copyfile(_beside(path, suffix), _beside(copy, suffix))
            except FileNotFoundError:
                # There is none, or a process that closed has just folded it in: then the header differs.
                continue
        consistent &= head == _head(_beside(path, "-wal")) == _head(_beside(copy, "-wal"))
        if consistent and not (writer(path) is not None and _is_torn(copy)):
            return
        time.sleep(0.05 * (attempt + 1))
    pid = writer(path)
    by = f"process {pid}" if pid else "a live process"
    raise SourceError(
        f"{path} keeps changing under {by}: no consistent copy in {_TRIES} tries.",
        hint="Try again later, or end that process first.",
    )


def _is_torn(copy: Path) -> bool:
    """True if frames of a copy do not verify: under a live process that is one it was writing again meanwhile."""
    copied = _beside(copy, "-wal")
    wal = read_wal(copied, copy) if copied.exists() else None
    return wal is not None and wal.damaged


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _facts(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (status.st_size, status.st_mtime_ns) if status.st_size else (0, 0)


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(_WAL_HEADER)
    except FileNotFoundError:
        return b""
