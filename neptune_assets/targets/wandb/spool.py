"""Sorting more than memory should hold: sorted runs of rows on disk, merged as they are read.

A few rows are sorted where they are. More are sorted a stretch at a time; each stretch goes to a temporary file of its
own in small pieces, and reading takes some pieces of every file at a time. So memory is bounded by the length of a
stretch and by how many files are merged at once (:data:`FAN_IN`), whatever the number of rows: where there are more,
files are merged into longer ones first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from neptune_assets.scratch import ScratchDirectory

STRETCH_ROWS: Final = 1 << 18
"""Rows sorted at once by callers whose rows are short: some 40 MB while they are."""
FAN_IN: Final = 64
"""Files of one level; with as many as this they become one of the next level."""
PIECE_ROWS: Final = 2_048
PIECE_BYTES: Final = 1 << 18
"""Most of one piece of a file, unless one row is longer: a piece of each file is in memory while files are merged."""
MERGED_BYTES: Final = 2 << 20
"""What is read of all files together before rows are put in order, so that few rows at a time are the exception."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a spool holds in memory at most, and where it puts the rest (the system's place if ``scratch`` is None)."""

    rows: int
    bytes: int
    scratch: str | None = None


class SortedSpool:
    """Takes batches in any order and gives them back sorted by a column of int64, with bounded memory.

    Rows of equal keys stay in the order in which they came.
    """

    def __init__(self, schema: pa.Schema, key: str, bounds: Bounds) -> None:
        self._schema, self._key, self._bounds = schema, key, bounds
        self._held: list[Any] = []
        self._bytes = self._rows_held = 0
        self._directory: ScratchDirectory | None = None
        self._levels: list[list[Path]] = []
        self._files = 0
        self.rows = 0

    @property
    def spilled(self) -> bool:
        """True once rows went to disk."""
        return self._directory is not None

    def add(self, batch: pa.RecordBatch) -> None:
        """Take a batch of the schema."""
        self._held.append(batch)
        self.rows += batch.num_rows
        self._rows_held += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows_held >= self._bounds.rows or self._bytes >= self._bounds.bytes:
            self._spill()

    def sorted(self, batch_rows: int = 65_536) -> Iterator[pa.RecordBatch]:
        """Yield everything in order, in batches of at most this many rows; call once."""
        if self._directory is None:
            rows = self._stretch()
            for begin in range(0, rows.num_rows, batch_rows):
                yield rows.slice(begin, batch_rows)
            return
        self._spill()
        # Later levels hold earlier rows: equal keys come out in the order in which they went in.
        paths = [path for level in reversed(self._levels) for path in level]
        for rows in merged(paths, self._schema, self._key):
            for begin in range(0, rows.num_rows, batch_rows):
                yield rows.slice(begin, batch_rows)

    def close(self) -> None:
        """Remove the temporary files."""
        self._held = []
        if self._directory is not None:
            self._directory.close()

    def _stretch(self) -> Any:
        """Return what is held as one sorted batch, and hold nothing."""
        table = pa.Table.from_batches(self._held, self._schema)
        self._held, self._bytes, self._rows_held = [], 0, 0
        return _in_order(table, self._key)

    def _spill(self) -> None:
        if not self._held:
            return
        if self._directory is None:
            self._directory = ScratchDirectory("wandb-sort", self._bounds.scratch)
        self._write(iter([self._stretch()]), 0)

    def _write(self, batches: Iterator[pa.RecordBatch], level: int) -> None:
        """Write one sorted file of a level, and merge the level if it is full."""
        assert self._directory is not None  # noqa: S101 (only called once there is one)
        self._files += 1
        path = self._directory.path / f"{self._files}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, self._schema) as writer:
            for batch in batches:
                for piece in pieces(batch):
                    writer.write_batch(piece)
        if len(self._levels) == level:
            self._levels.append([])
        self._levels[level].append(path)
        if len(self._levels[level]) == FAN_IN:
            full, self._levels[level] = self._levels[level], []
            self._write(merged(full, self._schema, self._key), level + 1)
            for old in full:
                old.unlink()


def pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch into slices small enough for :data:`PIECE_ROWS` and, roughly, :data:`PIECE_BYTES`."""
    if not batch.num_rows:
        return
    rows = max(1, min(PIECE_ROWS, PIECE_BYTES * batch.num_rows // max(1, batch.nbytes)))
    for begin in range(0, batch.num_rows, rows):
        yield batch.slice(begin, rows)


def merged(paths: list[Path], schema: pa.Schema, key: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows of sorted files in the order of their keys, those of earlier files first where keys are equal.

    Rows below the lowest of the keys that files were read up to are complete: what is still on disk comes after them.
    So the file that is furthest behind is read on until enough rows are there. Rows of one key come together.
    """
    files = [_SortedFile(path, key) for path in paths]
    try:
        while behind := min((file for file in files if file.more), key=_read_up_to, default=None):
            taken = [] if sum(file.bytes for file in files) < MERGED_BYTES else _below(files, behind.last)
            if taken:
                yield _in_order(pa.Table.from_batches(taken, schema), key)
            else:
                behind.read()
        if taken := _below(files, None):
            yield _in_order(pa.Table.from_batches(taken, schema), key)
    finally:
        for file in files:
            file.close()


class _SortedFile:
    """One sorted file, read piece by piece."""

    def __init__(self, path: Path, key: str) -> None:
        self._source = pa.OSFile(str(path), "rb")
        self._reader = pa.ipc.open_file(self._source)
        self._key = key
        self._next = 0
        self._pieces: list[Any] = []
        self.bytes = 0
        """What was read and not handed out yet."""
        self.last = 0
        """Key of the last row that was read."""
        self.read()

    @property
    def more(self) -> bool:
        """True if there are rows on disk that were not read yet."""
        return bool(self._next < self._reader.num_record_batches)

    def read(self) -> None:
        """Read one more piece; there must be one."""
        piece = self._reader.get_batch(self._next)
        self._next += 1
        self._pieces.append(piece)
        self.bytes += piece.nbytes
        self.last = int(piece.column(self._key)[-1].as_py())

    def take(self, until: int | None) -> Iterator[Any]:
        """Hand out rows below a key; with None all."""
        pieces, self._pieces, self.bytes = self._pieces, [], 0
        for piece in pieces:
            count = piece.num_rows
            cut = count if until is None else int(np.searchsorted(piece.column(self._key).to_numpy(), until))
            if cut:
                yield piece.slice(0, cut)
            if cut < count:
                self._pieces.append(piece.slice(cut))
                self.bytes += self._pieces[-1].nbytes

    def close(self) -> None:
        """Close the file."""
        self._source.close()


def _read_up_to(file: _SortedFile) -> int:
    return file.last


def _below(files: list[_SortedFile], key: int | None) -> list[Any]:
    """Take the rows below a key out of all files, in the order of the files; with None all."""
    return [rows for file in files for rows in file.take(key)]


def _in_order(table: Any, key: str) -> Any:
    """Return a table as one batch sorted by a column, equal keys in their order."""
    table = table.combine_chunks()
    if table.num_rows == 0:
        return pa.RecordBatch.from_pylist([], schema=table.schema)
    (rows,) = table.to_batches()
    keys = rows.column(key).to_numpy()
    if (keys[1:] >= keys[:-1]).all():
        return rows
    return rows.take(pa.array(np.argsort(keys, kind="stable")))
