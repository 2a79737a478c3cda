"""A block of small runs that have arrived whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.schema import AttributeType
from neptune_assets.sources.blocks import RunBlock, weight_of
from neptune_assets.sources.neptune2.open_run import OpenRun
from neptune_assets.sources.neptune2.series import PointRows, Points


class Block(RunBlock):
    """Small runs of a Neptune 2.x server."""

    def _reset(self) -> None:
        super()._reset()
        self._points: dict[AttributeType, PointRows] = {}

    def add(self, run: OpenRun, points: Sequence[Points]) -> None:
        """Take a run with all of its points; values that cannot be kept are told by its end."""
        number = len(self._ends)
        for path, kind, value in run.values():
            try:
                self._values.add(number, path, kind, value)
            except (ValueError, OverflowError, TypeError) as problem:
                run.refuse(path, kind, problem)
            self._weight += weight_of(value)
        for some in points:
            if some.kind not in self._points:
                self._points[some.kind] = PointRows(some.kind)
            self._points[some.kind].add(number, some)
            self._weight += some.page.weight
        self._ends.append(run.end())

    def _tables(self, run_ids: Sequence[str]) -> Iterator[tuple[pa.Table, npt.NDArray[np.int64]]]:
        for rows in self._points.values():
            yield rows.table(self._project_id, run_ids)
