"""Rows of many small runs made at once: what it costs to make a batch does not depend on how few rows it has.

A block takes runs that have arrived whole. Its rows are made together, put in order of runs, and cut apart again, which
copies nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from neptune_assets.sources.neptune3.collector import Collector
from neptune_assets.sources.neptune3.model import FloatPart, Ints, ObjectPart
from neptune_assets.sources.neptune3.rows import float_table, value_cell
from neptune_assets.sources.neptune3.value_rows import ValueRows
from neptune_assets.sources.protocol import RunEnd, RunRows

LARGE: Final = 4_096
"""A run of more rows than this is read by itself, as it comes."""
_FULL: Final = 16_384
"""Rows of a block, or what takes as much room."""
_ROOM: Final = 100
"""So many letters take about as much room as a row."""


def weight(parts: Sequence[FloatPart | ObjectPart]) -> int:
    """Return how many rows points will be; long texts count for several."""
    return sum(
        len(part.steps) if isinstance(part, FloatPart) else sum(_weight(point[2]) for point in part.points)
        for part in parts
    )


class Block:
    """Small runs, in order. ``full`` says when it should be emptied."""

    def __init__(self, project_id: str) -> None:
        self._project_id = project_id
        self._reset()

    def _reset(self) -> None:
        self._ends: list[RunEnd] = []
        self._values = ValueRows()
        self._floats: list[tuple[int, FloatPart]] = []
        self._others: list[tuple[int, pa.RecordBatch]] = []
        self._weight = 0

    @property
    def full(self) -> bool:
        """True if enough has come together."""
        return self._weight >= _FULL

    def add(self, collector: Collector, parts: Sequence[FloatPart | ObjectPart]) -> None:
        """Take a run with all of its points; what cannot be kept is told by its end."""
        number = len(self._ends)
        for item in collector.singles():
            try:
                self._values.add(number, item.path, item.type, value_cell(item.type, item.value))
            except (ValueError, OverflowError, TypeError) as problem:
                collector.refuse(item, problem)
            self._weight += _weight(item.value)
        others: list[ObjectPart] = []
        for part in collector.accepted(parts):
            if isinstance(part, FloatPart):
                self._floats.append((number, part))
            else:
                others.append(part)
        self._others.extend((number, batch) for batch in collector.points(others))
        self._others.extend((number, batch) for batch in collector.finish())
        self._weight += weight(parts)
        self._ends.append(collector.end())

    def runs(self) -> Iterator[RunRows | RunEnd]:
        """Give the rows and the end of every run, in order, and be empty again."""
        ends = self._ends
        names = [end.run_id for end in ends]
        tables: list[pa.Table] = []
        numbers: list[Ints] = []
        for found, runs in (
            self._values.table(self._project_id, names),
            float_table(self._project_id, names, self._floats),
        ):
            if len(runs):
                tables.append(found)
                numbers.append(runs)
        for number, batch in self._others:
            tables.append(pa.Table.from_batches([batch]))
            numbers.append(np.full(batch.num_rows, number, np.int64))
        self._reset()
        if not tables:
            yield from ends
            return
        of_run = np.concatenate(numbers)
        order = np.argsort(of_run, kind="stable")
        # Taken from one piece: from several, Arrow would look up the piece of every row.
        (batch,) = pa.concat_tables(tables).combine_chunks().take(pa.array(order)).combine_chunks().to_batches()
        bounds = np.searchsorted(of_run[order], np.arange(len(ends) + 1)).tolist()
        for place, end in enumerate(ends):
            if bounds[place] < bounds[place + 1]:
                yield RunRows(end.run_id, batch.slice(bounds[place], bounds[place + 1] - bounds[place]))
            yield end


def _weight(value: object) -> int:
    if isinstance(value, str):
        return 1 + len(value) // _ROOM
    if isinstance(value, list):
        return 1 + sum(len(item) for item in value) // _ROOM
    if isinstance(value, tuple):
        # A histogram: (type, edges, values).
        return 1 + (len(value[1]) + len(value[2])) * 8 // _ROOM
    return 1
