"""A block of small runs that have arrived whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from neptune_assets.schema import AttributeType
from neptune_assets.sources.blocks import FULL, runs_of, weight_of
from neptune_assets.sources.neptune2.open_run import OpenRun
from neptune_assets.sources.neptune2.series import PointRows, Points
from neptune_assets.sources.protocol import RunChunk, RunEnd
from neptune_assets.sources.value_rows import ValueRows


class Block:
    """Small runs, in order. ``full`` says when it should be emptied."""

    def __init__(self, project_id: str) -> None:
        self._project_id = project_id
        self._reset()

    def _reset(self) -> None:
        self._ends: list[RunEnd] = []
        self._values = ValueRows()
        self._points: dict[AttributeType, PointRows] = {}
        self._weight = 0

    @property
    def full(self) -> bool:
        """True if enough has come together."""
        return self._weight >= FULL

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

    def runs(self) -> Iterator[RunChunk]:
        """Give the rows and the end of every run, in order, and be empty again."""
        ends = self._ends
        names = [end.run_id for end in ends]
        rows: list[ValueRows | PointRows] = [self._values, *self._points.values()]
        self._reset()
        yield from runs_of(ends, [each.table(self._project_id, names) for each in rows])
