"""Rows of many small runs made at once: what it costs to make a batch does not depend on how few rows it has.

Runs of a block are known by number, their place in it. Its rows are made together, whatever their runs, put in order of
runs, and cut apart again, which copies nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.sources.protocol import RunChunk, RunEnd, RunRows

LARGE: Final = 4_096
"""A run of more rows than this is read by itself, as it comes."""
FULL: Final = 16_384
"""Rows of a block, or what takes as much room."""
_ROOM: Final = 100
"""So many letters take about as much room as a row."""


def weight_of(value: object) -> int:
    """Return how many rows take as much room as one with this value; long ones count for several."""
    if isinstance(value, str):
        return 1 + len(value) // _ROOM
    if isinstance(value, list):
        return 1 + sum(len(item) for item in value) // _ROOM
    if isinstance(value, tuple):
        # A histogram: (type, edges, values).
        return 1 + (len(value[1]) + len(value[2])) * 8 // _ROOM
    return 1


def runs_of(ends: Sequence[RunEnd], tables: Iterable[tuple[pa.Table, npt.NDArray[np.int64]]]) -> Iterator[RunChunk]:
    """Give the rows and the end of every run, in order, from tables of rows and the numbers of their runs."""
    filled = [(table, numbers) for table, numbers in tables if len(numbers)]
    if not filled:
        yield from ends
        return
    of_run = np.concatenate([numbers for _, numbers in filled])
    order = np.argsort(of_run, kind="stable")
    # Taken from one piece: from several, Arrow would look up the piece of every row.
    rows = pa.concat_tables([table for table, _ in filled]).combine_chunks()
    (batch,) = rows.take(pa.array(order)).combine_chunks().to_batches()
    bounds = np.searchsorted(of_run[order], np.arange(len(ends) + 1)).tolist()
    for place, end in enumerate(ends):
        if bounds[place] < bounds[place + 1]:
            yield RunRows(end.run_id, batch.slice(bounds[place], bounds[place + 1] - bounds[place]))
        yield end
