"""A block of small runs that have arrived whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.sources.blocks import RunBlock, weight_of
from neptune_assets.sources.neptune3.collector import Collector
from neptune_assets.sources.neptune3.model import FloatPart, ObjectPart
from neptune_assets.sources.neptune3.rows import float_table, value_cell


def weight(parts: Sequence[FloatPart | ObjectPart]) -> int:
    """Return how many rows points will be; long texts count for several."""
    return sum(
        len(part.steps) if isinstance(part, FloatPart) else sum(weight_of(point[2]) for point in part.points)
        for part in parts
    )


class Block(RunBlock):
    """Small runs of a Neptune 3.x server."""

    def _reset(self) -> None:
        super()._reset()
        self._floats: list[tuple[int, FloatPart]] = []
        self._others: list[tuple[int, pa.RecordBatch]] = []

    def add(self, collector: Collector, parts: Sequence[FloatPart | ObjectPart]) -> None:
        """Take a run with all of its points; what cannot be kept is told by its end."""
        number = len(self._ends)
        for item in collector.singles():
            try:
                self._values.add(number, item.path, item.type, value_cell(item))
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

    def _tables(self, run_ids: Sequence[str]) -> Iterator[tuple[pa.Table, npt.NDArray[np.int64]]]:
        yield float_table(self._project_id, run_ids, self._floats)
        for number, batch in self._others:
            yield pa.Table.from_batches([batch]), np.full(len(batch), number)
