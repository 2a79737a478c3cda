"""Sort the rows of one run and resolve duplicates, with bounded memory.

Rows come in any order and leave sorted by (attribute_path, attribute_type, step, timestamp), one for each attribute
and step (series) or attribute (everything else): the last by timestamp, and of equal timestamps the one that arrived
last. A run that outgrows memory is spilled in sorted stretches to local scratch files, which are merged.
The merge is ours because it moves Arrow arrays as they are: NUL characters, NaN, -0.0, nulls and decimals stay exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.lake.rows import KEYS, Attributes, concat, pack, pieces, raw, validity
from neptune_assets.schema import SERIES_TYPES
from neptune_assets.scratch import ScratchDirectory

OUTPUT_ROWS: Final = 65_536
_BLOCK_ROWS: Final = 16_384
_FAN_IN: Final = 48
_SERIES: Final = frozenset(str(kind) for kind in SERIES_TYPES)

Order = npt.NDArray[np.int64]


class RunSorter:
    """Takes the rows of one run with :meth:`add`, gives them back once with :meth:`sorted_rows`. A context manager."""

    def __init__(self, rows_in_memory: int, memory_mb: int, scratch: str | None = None) -> None:
        self.attributes = Attributes()
        self.duplicates = 0
        """Rows left out as duplicates, known once all sorted rows were taken."""
        self.conflicts: Counter[int] = Counter()
        """How many of them had another value than the row that was kept, by attribute id."""
        self._max_rows = rows_in_memory
        self._max_bytes = memory_mb * 1_048_576 // 2
        self._scratch = scratch
        self._directory: ScratchDirectory | None = None
        self._held: list[pa.RecordBatch] = []
        self._held_rows = 0
        self._held_bytes = 0
        self._stretches: list[Path] = []

    def __enter__(self) -> RunSorter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def spilled(self) -> bool:
        """True if rows went to scratch files."""
        return bool(self._stretches)

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows in the lake's schema."""
        for piece in pieces(batch, self._max_rows, self._max_bytes):
            rows = pack(piece, self.attributes)
            size = rows.nbytes
            if self._held and (
                self._held_rows + rows.num_rows > self._max_rows or self._held_bytes + size > self._max_bytes
            ):
                self._spill()
            self._held.append(rows)
            self._held_rows += rows.num_rows
            self._held_bytes += size

    def sorted_rows(self) -> Iterator[pa.RecordBatch]:
        """Yield compact rows in order, without duplicates, and forget them."""
        ranks = self.attributes.ranks()
        if not self._stretches:
            batches = pieces(self._take_held(ranks), OUTPUT_ROWS, self._max_bytes // 4) if self._held else iter(())
        else:
            if self._held:
                self._spill()
            batches = self._merged(ranks)
        yield from self._distinct(batches)

    def close(self) -> None:
        """Remove the scratch files."""
        self._held.clear()
        if self._directory is not None:
            self._directory.close()
            self._directory = None

    def _take_held(self, ranks: npt.NDArray[np.int32]) -> pa.RecordBatch:
        rows = concat(self._held)
        self._held, self._held_rows, self._held_bytes = [], 0, 0
        order = sort_order(rows, ranks)
        return rows if order is None else rows.take(pa.array(order))

    def _spill(self) -> None:
        # Ranks of the attributes known so far agree with the final ones: both follow (path, type).
        rows = self._take_held(self.attributes.ranks())
        self._stretches.append(self._write(pieces(rows, _BLOCK_ROWS, self._block_bytes)))
        del rows
        pa.default_memory_pool().release_unused()

    @property
    def _block_bytes(self) -> int:
        return max(65_536, self._max_bytes // (2 * _FAN_IN))

    def _write(self, batches: Iterator[pa.RecordBatch]) -> Path:
        if self._directory is None:
            self._directory = ScratchDirectory("sort", self._scratch)
        directory = self._directory.path
        path = directory / f"{len(list(directory.iterdir())):06d}-{len(self._stretches)}.arrow"
        writer: Any = None
        try:
            with pa.OSFile(str(path), "wb") as sink:
                for batch in batches:
                    if writer is None:
                        writer = pa.ipc.new_file(sink, batch.schema)
                    writer.write_batch(batch)
                if writer is not None:
                    writer.close()
        except OSError as error:
            # Arrow does not say which file it could not write.
            raise OSError(error.errno, f"sorting a large run on disk: {error}", str(path)) from error
        return path

    def _merged(self, ranks: npt.NDArray[np.int32]) -> Iterator[pa.RecordBatch]:
        # Adjacent stretches are merged, so that of equal keys the earlier stretch still holds what arrived earlier.
        while len(self._stretches) > _FAN_IN:
            merged = []
            for start in range(0, len(self._stretches), _FAN_IN):
                group = self._stretches[start : start + _FAN_IN]
                columns = _all_columns(group)
                batches = (_with_columns(rows, columns) for rows in merge(group, ranks))
                small = (piece for rows in batches for piece in pieces(rows, _BLOCK_ROWS, self._block_bytes))
                merged.append(self._write(small))
                for path in group:
                    path.unlink()
            self._stretches = merged
        for rows in merge(self._stretches, ranks):
            yield from pieces(rows, OUTPUT_ROWS, self._max_bytes // 4)

    def _distinct(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        series = series_among(self.attributes.names)
        held: pa.RecordBatch | None = None
        for batch in batches:
            kept, conflicts = last_of_each(batch, series)
            self.duplicates += batch.num_rows - kept.num_rows
            self.conflicts.update(conflicts)
            # A batch waits for the next one, which may begin with a later row for the step it ends with.
            if held is not None:
                if _same(held, kept, series):
                    both = concat([held.slice(held.num_rows - 1), kept.slice(0, 1)])
                    self.conflicts.update(_conflicts(both, np.array([0]), np.array([1])))
                    held = held.slice(0, held.num_rows - 1)
                    self.duplicates += 1
                if held.num_rows:
                    yield held
            held = kept
        if held is not None:
            yield held


def sort_order(rows: pa.RecordBatch, ranks: npt.NDArray[np.int32]) -> Order | None:
    """Return the stable order of compact rows by (attribute rank, step, time), or None if they are sorted."""
    rank = ranks[rows["attribute"].to_numpy()]
    step, time = rows["step"].to_numpy(), rows["time"].to_numpy()
    if _is_sorted(rank, step, time):
        return None
    # Most runs only need grouping by attribute: steps come in order. 16-bit keys sort in linear time.
    order = np.argsort(rank.astype(np.uint16) if len(ranks) < 65_536 else rank, kind="stable")
    if not _is_sorted(rank[order], step[order], time[order]):
        order = np.lexsort((time, step, rank))
    return order.astype(np.int64, copy=False)


def merge(stretches: list[Path], ranks: npt.NDArray[np.int32]) -> Iterator[pa.RecordBatch]:
    """Merge sorted stretches block by block: at any time one block of each is in memory."""
    sources = [_Stretch(path, ranks) for path in stretches]
    try:
        live = [(number, source) for number, source in enumerate(sources) if source.load()]
        while live:
            # Of equal keys, rows of an earlier stretch arrived earlier and must leave earlier.
            bound, last = min((source.last_key(), number) for number, source in live)
            parts = [source.take_up_to(bound, inclusive=number <= last) for number, source in live]
            rows = concat([part for part in parts if part is not None])
            order = sort_order(rows, ranks)
            yield rows if order is None else rows.take(pa.array(order))
            live = [(number, source) for number, source in live if source.load()]
    finally:
        for source in sources:
            source.close()


class _Stretch:
    """A sorted scratch file, read block by block."""

    def __init__(self, path: Path, ranks: npt.NDArray[np.int32]) -> None:
        self._file = pa.OSFile(str(path), "rb")
        self._reader = pa.ipc.open_file(self._file)
        self._ranks = ranks
        self._next = 0
        self._rows: pa.RecordBatch | None = None
        self._keys: list[npt.NDArray[Any]] = []
        self._start = 0

    def load(self) -> bool:
        """Make sure that there are rows; False at the end."""
        while self._rows is None or self._start == self._rows.num_rows:
            if self._next >= self._reader.num_record_batches:
                return False
            rows = self._reader.get_batch(self._next)
            self._keys = [self._ranks[rows["attribute"].to_numpy()], rows["step"].to_numpy(), rows["time"].to_numpy()]
            self._rows, self._start = rows, 0
            self._next += 1
        return True

    def last_key(self) -> tuple[int, int, int]:
        """Return (rank, step, time) of the block's last row."""
        rank, step, time = (int(keys[-1]) for keys in self._keys)
        return rank, step, time

    def take_up_to(self, bound: tuple[int, int, int], *, inclusive: bool) -> pa.RecordBatch | None:
        """Give away the rows whose key is below ``bound``, or at most ``bound``."""
        assert self._rows is not None  # noqa: S101 - load() returned True
        start, end = self._start, self._rows.num_rows
        for place, (keys, value) in enumerate(zip(self._keys, bound, strict=True)):
            # Rows before ``low`` are below the bound; those up to ``end`` share its key so far.
            low = start + int(np.searchsorted(keys[start:end], value, side="left"))
            high = start + int(np.searchsorted(keys[start:end], value, side="right"))
            start, end = low, high
            if place == len(bound) - 1 and inclusive:
                start = high
        taken = self._rows.slice(self._start, start - self._start)
        self._start = start
        return taken if taken.num_rows else None

    def close(self) -> None:
        """Let go of the file."""
        self._rows, self._keys = None, []
        self._file.close()


def _is_sorted(rank: npt.NDArray[np.int32], step: npt.NDArray[np.int64], time: npt.NDArray[np.int64]) -> bool:
    rises, same = rank[1:] > rank[:-1], rank[1:] == rank[:-1]
    later, equal = step[1:] > step[:-1], step[1:] == step[:-1]
    return bool(np.all(rises | (same & (later | (equal & (time[1:] >= time[:-1]))))))


def series_among(names: Sequence[tuple[str, str]]) -> npt.NDArray[np.bool_]:
    """Return which attributes are series: they have a row for each step."""
    return np.asarray([kind in _SERIES for _, kind in names], np.bool_)


def last_of_each(rows: pa.RecordBatch, series: npt.NDArray[np.bool_]) -> tuple[pa.RecordBatch, dict[int, int]]:
    """Keep the last row of each attribute and step (series), of each attribute (others); rows are sorted.

    Also returns how many of the others had another value than the one that is kept, by attribute id.
    """
    attribute, step = rows["attribute"].to_numpy(), rows["step"].to_numpy()
    same = attribute[1:] == attribute[:-1]
    if not same.any():
        return rows, {}
    same &= (step[1:] == step[:-1]) | ~series[attribute[1:]]
    if not same.any():
        return rows, {}
    keep = np.ones(len(attribute), np.bool_)
    keep[:-1] = ~same
    kept, dropped = np.flatnonzero(keep), np.flatnonzero(~keep)
    conflicts = _conflicts(rows, dropped, kept[np.searchsorted(kept, dropped)])
    return rows.filter(pa.array(keep)), conflicts


def _conflicts(rows: pa.RecordBatch, dropped: npt.NDArray[np.int64], kept: npt.NDArray[np.int64]) -> dict[int, int]:
    """Count the dropped rows whose value is not that of the row kept instead, by attribute id. Times do not count."""
    different = np.zeros(len(dropped), np.bool_)
    for name in rows.schema.names:
        if name not in KEYS:
            column = rows[name]
            different |= _different(column.take(pa.array(dropped)), column.take(pa.array(kept)))
    attributes, counts = np.unique(rows["attribute"].to_numpy()[dropped[different]], return_counts=True)
    return dict(zip(attributes.tolist(), counts.tolist(), strict=True))


def _different(values: pa.Array, others: pa.Array) -> npt.NDArray[np.bool_]:
    """Compare values bit by bit; all NaN are equal, and so are two nulls."""
    if pa.types.is_floating(values.type):
        bits, other_bits = (raw(item, np.float64) for item in (values, others))
        unequal = (bits.view(np.int64) != other_bits.view(np.int64)) & ~(np.isnan(bits) & np.isnan(other_bits))
    elif pa.types.is_nested(values.type):
        pairs = zip(values.to_pylist(), others.to_pylist(), strict=True)
        return np.fromiter((repr(one) != repr(other) for one, other in pairs), np.bool_, len(values))
    else:
        unequal = pc.fill_null(pc.not_equal(values, others), False).to_numpy(zero_copy_only=False)
    present, other_present = validity(values), validity(others)
    result: npt.NDArray[np.bool_] = np.where(present & other_present, unequal, present != other_present)
    return result


def _same(before: pa.RecordBatch, after: pa.RecordBatch, series: npt.NDArray[np.bool_]) -> bool:
    """True if the last row of one batch and the first of the next are for the same attribute (and step)."""
    attribute = before["attribute"][-1].as_py()
    if attribute != after["attribute"][0].as_py():
        return False
    return not series[attribute] or bool(before["step"][-1].as_py() == after["step"][0].as_py())


def _all_columns(paths: list[Path]) -> pa.Schema:
    schemas = []
    for path in paths:
        with pa.OSFile(str(path), "rb") as file:
            schemas.append(pa.ipc.open_file(file).schema)
    return pa.unify_schemas(schemas)


def _with_columns(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    if rows.schema.equals(schema):
        return rows
    have = set(rows.schema.names)
    return pa.RecordBatch.from_arrays(
        [rows[field.name] if field.name in have else pa.nulls(rows.num_rows, field.type) for field in schema],
        schema=schema,
    )
