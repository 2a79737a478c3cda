"""Points of a series by run and path, wherever they lie, along the run's line of forks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from neptune_assets.lake.runs import LakeRun
from neptune_assets.schema import AttributeType
from neptune_assets.server.catalog.runs import Run
from neptune_assets.server.series import store_points
from neptune_assets.server.series.buckets import Bucket, edges, gather
from neptune_assets.server.series.cache import Cache
from neptune_assets.server.series.lake_points import LakePoints
from neptune_assets.server.series.lineage import Lineage, segments
from neptune_assets.server.series.points import FloatPoints, ObjectPoint, Window, join

if TYPE_CHECKING:
    from neptune_assets.server.catalog.catalog import Catalog

_EVERYTHING: Final = Window()
_ASCENDING: Final = Window(last=False)
_BUCKETS_KEPT: Final = 100_000


class SeriesReader:
    """Reads points for the runs of a catalog; any number of threads may use it. Whether a series exists, that knows."""

    def __init__(self, catalog: Catalog, cache_mb: int = 192) -> None:
        self._catalog = catalog
        self._lake = LakePoints(cache_mb)
        self._buckets: Cache[list[Bucket]] = Cache(_BUCKETS_KEPT, len)

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
        found = list(self.float_pieces(run, path, window, lineage, previews=previews))
        return join(found[::-1] if window.last else found)

    def float_pieces(
        self,
        run: Run,
        path: str,
        window: Window = _ASCENDING,
        lineage: Lineage = Lineage.FULL,
        *,
        previews: bool = False,
    ) -> Iterator[FloatPoints]:
        """Yield the same in pieces of bounded size, from the end of the window that is wanted first.

        A piece is ascending in itself. Where the store holds the points, it is read until the last piece was taken.
        """
        parts = self._float_parts(run, path, window, lineage, previews=previews)
        for member, part in parts if window.last else reversed(parts):
            part = Window(part.low, part.high, window.limit, window.last)
            for piece in self._own_floats(member, path, part, previews=previews and member is run):
                yield piece
                window = window.fewer(len(piece))
            if window.empty:
                return

    def _float_parts(
        self, run: Run, path: str, window: Window, lineage: Lineage, *, previews: bool
    ) -> list[tuple[Run, Window]]:
        """Return which runs hold points of a window, the youngest first, and where."""
        line = segments(run, lineage, self._catalog.parent)
        found: list[tuple[Run, Window]] = []
        first: int | None = None
        for segment in line:
            part = window.narrowed(segment.low, segment.below(first))
            if part.empty:
                continue
            found.append((segment.run, part))
            if segment is not line[-1]:
                # Where the line goes on below it: a parent's point at this step is not one of the line.
                begin = Window(part.low, part.high, limit=1, last=False)
                for piece in self._own_floats(segment.run, path, begin, previews=previews and segment.run is run):
                    first = int(piece.steps[0])
        return found

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

    def buckets(
        self, run: Run, path: str, low: float, high: float, count: int, lineage: Lineage, *, previews: bool
    ) -> list[Bucket]:
        """Return a float series gathered into buckets; kept for a while, as charts ask for the same again and again.

        A client that gave up waiting finds, when it asks again, what was gathered meanwhile.
        """

        def gathered() -> list[Bucket]:
            pieces = self.float_pieces(run, path, lineage=lineage, previews=previews)
            return gather(pieces, low, edges(low, high, count))

        if run.origin == "store" or run.parent is not None:
            return gathered()
        key = (run.number, run.version, path, low, high, count)
        return self._buckets.get(key, gathered)

    def lake_run(self, run: Run) -> LakeRun:
        """Return a run of the lake as the lake's reader has it."""
        return self._catalog.lake_project(run).run(run.run_id)

    def _own_floats(self, run: Run, path: str, window: Window, *, previews: bool) -> Iterator[FloatPoints]:
        if run.origin == "lake":
            yield from self._lake.floats(self.lake_run(run), path, window)
            return
        with self._catalog.store_of(run).read() as connection:
            attribute = store_points.attribute_of(connection, run, path, AttributeType.FLOAT_SERIES)
            if attribute is None:
                return
            pieces = store_points.float_pieces(connection, attribute, window)
            yield from store_points.with_previews(connection, attribute, window, pieces) if previews else pieces

    def _own_objects(self, run: Run, path: str, kind: AttributeType, window: Window) -> list[ObjectPoint]:
        if run.origin == "lake":
            return self._lake.objects(self.lake_run(run), path, kind, window)
        with self._catalog.store_of(run).read() as connection:
            attribute = store_points.attribute_of(connection, run, path, kind)
            return [] if attribute is None else store_points.object_points(connection, attribute, kind, window)
