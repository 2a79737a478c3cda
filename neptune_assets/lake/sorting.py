"""Sort the rows of one run and resolve duplicates, with bounded memory.

Rows arrive in any order and leave sorted by (attribute_path, attribute_type, step, timestamp), one for each attribute
and step (series) or attribute (everything else): the last by timestamp, and of equal timestamps the one that arrived
last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.lake.external_sort import ExternalSorter, Keys
from neptune_assets.lake.rows import KEYS, Attributes, concat, pack, pieces, raw, validity
from neptune_assets.schema import SERIES_TYPES

_SERIES: Final = frozenset(str(kind) for kind in SERIES_TYPES)


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
        self._ranks = self.attributes.ranks()
        self._sorter = ExternalSorter(self._keys, max_rows=self._max_rows, max_bytes=self._max_bytes, scratch=scratch)

    def __enter__(self) -> RunSorter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def spilled(self) -> bool:
        """True if rows went to scratch files."""
        return self._sorter.stretches > 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows in the lake's schema."""
        for piece in pieces(batch, self._max_rows, self._max_bytes):
            self._sorter.add(pack(piece, self.attributes))

    def sorted_rows(self) -> Iterator[pa.RecordBatch]:
        """Yield compact rows in order, without duplicates, and forget them."""
        yield from self._distinct(self._sorter.sorted())

    def close(self) -> None:
        """Remove the scratch files."""
        self._sorter.close()

    def _keys(self, rows: pa.RecordBatch) -> Keys:
        # Ranks of the attributes known so far agree with the final ones: both follow (path, type).
        if len(self._ranks) != len(self.attributes):
            self._ranks = self.attributes.ranks()
        return sort_keys(rows, self._ranks)

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


def sort_keys(rows: pa.RecordBatch, ranks: npt.NDArray[np.int32]) -> Keys:
    """Return what compact rows are sorted by: the rank of their attribute, their step, their time."""
    rank = ranks[rows["attribute"].to_numpy()]
    # 16-bit keys are sorted in linear time.
    return rank.astype(np.uint16) if len(ranks) < 65_536 else rank, rows["step"].to_numpy(), rows["time"].to_numpy()


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
