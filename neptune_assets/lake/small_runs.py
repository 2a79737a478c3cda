"""Small runs are sorted, hashed and measured together: numpy and Arrow cost a small run more per call than per row.

What comes out for each of them is what it would have come to by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.lake.digest import HashedColumns, RunDigest
from neptune_assets.lake.external_sort import stable_order
from neptune_assets.lake.readings import Reading
from neptune_assets.lake.rows import Attributes, compact, distinct_codes, no_rows
from neptune_assets.lake.sorting import last_of_each, series_among, sort_keys
from neptune_assets.lake.statistics import RunStatistics
from neptune_assets.lake.waiting import Waiting
from neptune_assets.sources.protocol import RunEnd

_RUNS: Final = 64
_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class SortedRun:
    """One small run, ready to be written."""

    attributes: Attributes
    rows: pa.RecordBatch
    """Compact rows in order, without duplicates."""
    duplicates: int
    """Rows left out as duplicates."""
    conflicts: dict[int, int]
    """How many of them had another value than the row that was kept, by attribute id."""
    digest: str
    statistics: RunStatistics


class SmallRuns:
    """Small runs that were read and wait for each other."""

    def __init__(self) -> None:
        self._waiting = Waiting[tuple[Reading, RunEnd | None]](_RUNS, _BYTES)

    def add(self, reading: Reading, end: RunEnd | None) -> None:
        """Take a run of few rows that was read to its end."""
        self._waiting.add((reading, end), reading.nbytes)

    @property
    def due(self) -> bool:
        """True if enough wait, or one for long enough."""
        return self._waiting.due

    def take(self) -> Iterator[tuple[Reading, RunEnd | None, SortedRun | None]]:
        """Give all that wait, in order; a run without a SortedRun has to be sorted by itself."""
        waiting = self._waiting.take()
        if not waiting:
            return
        try:
            runs: Sequence[SortedRun | None] = sort_together([reading.batches for reading, _ in waiting])
        except (ValueError, pa.ArrowException):
            # One of them cannot be understood: by itself it fails alone.
            runs = [None] * len(waiting)
        for (reading, end), run in zip(waiting, runs, strict=True):
            yield reading, end, run


def sort_together(runs: Sequence[Sequence[pa.RecordBatch]]) -> list[SortedRun]:
    """Sort several runs, each given as its rows in the lake's schema, and find out what is to be known of them.

    Rows with files are not meant to come here: what they hash to is known only once the files are stored. Raises
    ValueError or pyarrow.ArrowException for rows that cannot be understood.
    """
    batches = [batch for run in runs for batch in run if batch.num_rows]
    lengths = [sum(batch.num_rows for batch in run) for run in runs]
    if not batches:
        return [_empty() for _ in runs]
    rows = pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
    names, of_run, ids = _attributes(rows, np.repeat(np.arange(len(runs)), lengths), len(runs))
    edges = np.searchsorted(of_run, np.arange(len(runs) + 1))
    rows = compact(rows, ids)
    order = stable_order(sort_keys(rows, _ranks(names, of_run)))
    if order is not None:
        rows = rows.take(pa.array(order))
    kept, conflicts = last_of_each(rows, series_among(names))
    conflicts_of: list[dict[int, int]] = [{} for _ in runs]
    for number, count in conflicts.items():
        run = int(of_run[number])
        conflicts_of[run][number - int(edges[run])] = count
    ids = kept["attribute"].to_numpy()
    starts = np.searchsorted(of_run[ids], np.arange(len(runs) + 1)).tolist()
    statistics = RunStatistics(names)
    statistics.update(kept)
    hashed = HashedColumns(kept)
    local = ids - edges[of_run[ids]].astype(np.int32)
    kept = kept.set_column(0, "attribute", pa.array(local))
    found = []
    for run, measured in enumerate(statistics.split(edges.tolist())):
        start, end = starts[run], starts[run + 1]
        digest = RunDigest(names)
        if start < end:
            digest.take(hashed, start, end)
        found.append(
            SortedRun(
                attributes=Attributes(names[edges[run] : edges[run + 1]]),
                rows=kept.slice(start, end - start),
                duplicates=lengths[run] - (end - start),
                conflicts=conflicts_of[run],
                digest=digest.hexdigest(),
                statistics=measured,
            )
        )
    return found


def _attributes(
    rows: pa.RecordBatch, runs: npt.NDArray[np.int64], count: int
) -> tuple[list[tuple[str, str]], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return the attributes of all runs, those of a run together, the run of each, and the attribute of each row."""
    paths, kinds, codes = distinct_codes(rows["attribute_path"], rows["attribute_type"])
    width = max(1, len(paths) * len(kinds))
    distinct, ids = np.unique(runs * width + codes, return_inverse=True)
    names = [(paths[code // len(kinds)], kinds[code % len(kinds)]) for code in (distinct % width).tolist()]
    return names, distinct // width, ids.astype(np.int32)


def _ranks(names: Sequence[tuple[str, str]], of_run: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Return the place of each attribute: by run, then by path and type in code point order."""
    runs = of_run.tolist()
    order = sorted(range(len(names)), key=lambda number: (runs[number], names[number]))
    ranks = np.empty(len(order), np.int32)
    ranks[order] = np.arange(len(order), dtype=np.int32)
    return ranks


def _empty() -> SortedRun:
    return SortedRun(Attributes(), no_rows(), 0, {}, RunDigest([]).hexdigest(), RunStatistics([]))
