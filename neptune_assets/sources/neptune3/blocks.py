"""A block of small runs that have arrived whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from neptune_assets.sources.blocks import FULL, runs_of, weight_of
from neptune_assets.sources.neptune3.collector import Collector
from neptune_assets.sources.neptune3.model import FloatPart, ObjectPart
from neptune_assets.sources.neptune3.rows import float_table, value_cell
from neptune_assets.sources.protocol import RunChunk, RunEnd
from neptune_assets.sources.value_rows import ValueRows


def weight(parts: Sequence[FloatPart | ObjectPart]) -> int:
    """Return how many rows points will be; long texts count for several."""
    return sum(
        len(part.steps) if isinstance(part, FloatPart) else sum(weight_of(point[2]) for point in part.points)
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
        return self._weight >= FULL

    def add(self, collector: Collector, parts: Sequence[FloatPart | ObjectPart]) -> None:
        """Take a run with all of its points; what cannot be kept is told by its end."""
        number = len(self._ends)
        for item in collector.singles():
            try:
                self._values.add(number, item.path, item.type, value_cell(item.type, item.value))
            except (ValueError, OverflowError, TypeError) as problem:
                collector.refuse(item, problem)
            self._weight += weight_of(item.value)
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

    def runs(self) -> Iterator[RunChunk]:
        """Give the rows and the end of every run, in order, and be empty again."""
        ends = self._ends
        names = [end.run_id for end in ends]
        tables = [
            self._values.table(self._project_id, names),
            float_table(self._project_id, names, self._floats),
            *((pa.Table.from_batches([batch]), np.full(len(batch), number)) for number, batch in self._others),
        ]
        self._reset()
        yield from runs_of(ends, tables)
