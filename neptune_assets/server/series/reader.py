"""Points of a series by run and path, wherever they lie, along the run's line of forks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from neptune_assets.lake.runs import LakeRun
from neptune_assets.schema import AttributeType
from neptune_assets.server.catalog.runs import Run
from neptune_assets.server.series import store_points
from neptune_assets.server.series.lake_points import LakePoints
from neptune_assets.server.series.lineage import Lineage, segments
from neptune_assets.server.series.points import NO_POINTS, FloatPoints, ObjectPoint, Window, join

if TYPE_CHECKING:
    from neptune_assets.server.catalog.catalog import Catalog

_EVERYTHING: Final = Window()


class SeriesReader:
    """Reads points for the runs of a catalog; any number of threads may use it. Whether a series exists, that knows."""

    def __init__(self, catalog: Catalog, cache_mb: int = 192) -> None:
        self._catalog = catalog
        self._lake = LakePoints(cache_mb)

    def floats(
        self,
        run: Run,
        path: str,
        window: Window = _EVERYTHING,
        lineage: Lineage = Lineage.FULL,
        *,
        previews: bool = False,
    ) -> FloatPoints:
        """Return points of a float series in a window; ``previews`` adds those that are not final."""
        found: list[FloatPoints] = []
        for segment in segments(run, lineage, self._catalog.parent):
            part = window.narrowed(segment.low, segment.below(found[-1].steps[0] if found else None))
            if part.empty:
                continue
            piece = self._own_floats(segment.run, path, part, previews=previews and segment.run is run)
            if len(piece):
                found.append(piece)
            if window.last:
                window = window.fewer(len(piece))
        found.reverse()
        joined = join(found)
        return joined if window.last else joined.within(window)

    def objects(
        self,
        run: Run,
        path: str,
        kind: AttributeType,
        window: Window = _EVERYTHING,
        lineage: Lineage = Lineage.FULL,
    ) -> list[ObjectPoint]:
        """Return points, ascending, of a series of strings, histograms or files in a window."""
        found: list[list[ObjectPoint]] = []
        for segment in segments(run, lineage, self._catalog.parent):
            part = window.narrowed(segment.low, segment.below(found[-1][0].step if found else None))
            if part.empty:
                continue
            piece = self._own_objects(segment.run, path, kind, part)
            if piece:
                found.append(piece)
            if window.last:
                window = window.fewer(len(piece))
        points = [point for piece in reversed(found) for point in piece]
        return points if window.last else points[: window.limit]

    def lake_run(self, run: Run) -> LakeRun:
        """Return a run of the lake as the lake's reader has it."""
        return self._catalog.lake_project(run).run(run.run_id)

    def _own_floats(self, run: Run, path: str, window: Window, *, previews: bool) -> FloatPoints:
        if run.origin == "lake":
            return self._lake.floats(self.lake_run(run), path, window)
        with self._catalog.store_of(run).read() as connection:
            attribute = store_points.attribute_of(connection, run, path, AttributeType.FLOAT_SERIES)
            if attribute is None:
                return NO_POINTS
            points = store_points.float_points(connection, attribute, window)
            return store_points.with_previews(connection, attribute, window, points) if previews else points

    def _own_objects(self, run: Run, path: str, kind: AttributeType, window: Window) -> list[ObjectPoint]:
        if run.origin == "lake":
            return self._lake.objects(self.lake_run(run), path, kind, window)
        with self._catalog.store_of(run).read() as connection:
            attribute = store_points.attribute_of(connection, run, path, kind)
            return [] if attribute is None else store_points.object_points(connection, attribute, kind, window)
