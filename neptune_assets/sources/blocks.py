"""Rows of many small runs made at once: what it costs to make a batch does not depend on how few rows it has.

Runs of a block are known by number, their place in it. Its rows are made together, whatever their runs, put in order of
runs, and cut apart again, which copies nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from neptune_assets.schema import VALUE_COLUMN, AttributeType
from neptune_assets.sources.protocol import RunChunk, RunEnd, RunRows
from neptune_assets.sources.rows import Ints, check_value, rows_of, value_array


class ValueRows:
    """Collects rows, of whatever types, of runs that are known by number."""

    def __init__(self) -> None:
        self._runs: list[int] = []
        self._paths: list[str] = []
        self._types: list[str] = []
        self._places: dict[str, list[int]] = {}
        self._cells: dict[str, list[Any]] = {}

    def add(self, run: int, path: str, kind: AttributeType, value: Any) -> None:
        """Add a row. Raises ValueError for what no row can hold, and adds nothing then."""
        column = VALUE_COLUMN[kind]
        check_value("string_value", path)
        if column == "float_value":
            value = float(value)
        else:
            check_value(column, value)
        if column not in self._cells:
            self._places[column], self._cells[column] = [], []
        self._places[column].append(len(self._runs))
        self._cells[column].append(value)
        self._runs.append(run)
        self._paths.append(path)
        self._types.append(str(kind))

    def batch(self, project_id: str, run_ids: Sequence[str]) -> tuple[pa.RecordBatch, Ints]:
        """Return the rows, and the number of each one's run."""
        count = len(self._runs)
        runs = np.array(self._runs, np.int64)
        columns: dict[str, pa.Array] = {
            "project_id": pa.repeat(pa.scalar(project_id, pa.string()), count),
            "run_id": pa.array(run_ids, pa.string()).take(pa.array(runs)),
            "attribute_path": pa.array(self._paths, pa.string()),
            "attribute_type": pa.array(self._types, pa.string()),
        }
        for column, cells in self._cells.items():
            # Positions of the rows that have a value here; null elsewhere.
            places = np.full(count, -1, np.int64)
            places[self._places[column]] = np.arange(len(cells))
            columns[column] = value_array(column, cells).take(pa.array(places, mask=places < 0))
        return rows_of(columns, count), runs


LARGE: Final = 4_096
"""A run of more rows than this is read by itself, as it arrives."""
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


class RunBlock:
    """Small runs, in order; each kind of source adds what it has of them. ``full`` says when it should be emptied."""

    def __init__(self, project_id: str) -> None:
        self._project_id = project_id
        self._reset()

    def _reset(self) -> None:
        self._ends: list[RunEnd] = []
        self._values = ValueRows()
        self._weight = 0

    @property
    def full(self) -> bool:
        """True if it should be emptied."""
        return self._weight >= FULL

    def runs(self) -> Iterator[RunChunk]:
        """Give the rows and the end of every run, in order, and be empty again."""
        ends = self._ends
        names = [end.run_id for end in ends]
        try:
            batches = [self._values.batch(self._project_id, names), *self._batches(names)]
        finally:
            self._reset()
        yield from _cut_apart(ends, batches)

    def _batches(self, run_ids: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, Ints]]:
        """Points of all runs, as rows and the numbers of their runs."""
        raise NotImplementedError


def _cut_apart(ends: Sequence[RunEnd], batches: Iterable[tuple[pa.RecordBatch, Ints]]) -> Iterator[RunChunk]:
    """Give the rows and the end of every run, in order, from batches of rows and the numbers of their runs."""
    filled = [(batch, numbers) for batch, numbers in batches if len(numbers)]
    if not filled:
        yield from ends
        return
    of_run = np.concatenate([numbers for _, numbers in filled])
    order = np.argsort(of_run, kind="stable")
    # Taken from one piece: from several, Arrow would look up the piece of every row.
    rows = pa.Table.from_batches([batch for batch, _ in filled]).combine_chunks()
    (batch,) = rows.take(pa.array(order)).combine_chunks().to_batches()
    bounds = np.searchsorted(of_run[order], np.arange(len(ends) + 1)).tolist()
    for place, end in enumerate(ends):
        if bounds[place] < bounds[place + 1]:
            yield RunRows(end.run_id, batch.slice(bounds[place], bounds[place + 1] - bounds[place]))
        yield end
