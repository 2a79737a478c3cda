"""Runs read one after the other for the lake, in bounded memory, while the server is asked about those that follow.

A run costs a line of a table for all it has, or one request, and one for every page of its series. Small runs are
turned into rows together when they have arrived whole, larger ones as they come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, count
from typing import Final

import pyarrow as pa

from neptune_assets.schema import AttributeType, Scope
from neptune_assets.sources.blocks import LARGE
from neptune_assets.sources.filters import Selection
from neptune_assets.sources.neptune2.artifacts import ArtifactStore
from neptune_assets.sources.neptune2.asking import Asking
from neptune_assets.sources.neptune2.attribute_pages import AttributePages, Attributes
from neptune_assets.sources.neptune2.attributes import AttributeReader
from neptune_assets.sources.neptune2.blocks import Block
from neptune_assets.sources.neptune2.calls import Calls
from neptune_assets.sources.neptune2.errors import CallError
from neptune_assets.sources.neptune2.listing import Listed
from neptune_assets.sources.neptune2.open_run import OpenRun
from neptune_assets.sources.neptune2.projects import Project
from neptune_assets.sources.neptune2.questions import ArtifactQuestion, SeriesPages, SeriesQuestion, StringSetQuestion
from neptune_assets.sources.neptune2.series import PointRows, Points
from neptune_assets.sources.neptune2.settings import Neptune2Source
from neptune_assets.sources.protocol import RunChunk, RunRows
from neptune_assets.sources.rows import BATCH_ROWS, RowBuilder, together

_AHEAD: Final = 4
"""Runs that are opened ahead for every request at a time."""


class RunReader:
    """Reads runs of one project."""

    def __init__(
        self,
        calls: Calls,
        settings: Neptune2Source,
        selection: Selection,
        artifacts: ArtifactStore,
        project: Project,
        scope: Scope,
    ) -> None:
        self._calls = calls
        self._concurrency = settings.concurrency
        self._selection = selection
        self._artifacts = artifacts
        self._project = project
        self._scope = scope
        self._pages = SeriesPages(calls, settings.points_per_page)

    def read(self, runs: Sequence[Listed]) -> Iterator[RunChunk]:
        """Read runs in the order given; each ends with a RunEnd.

        Raises SourceError if the server does not answer any more, or not to this token.
        """
        pool = ThreadPoolExecutor(self._concurrency, "neptune2")
        asking = Asking(pool, self._concurrency)
        block = Block(self._project.name)
        try:
            for run in self._opened(runs, pool, asking):
                arriving = asking.points_of(run)
                came: list[Points] = []
                size = run.size
                while size <= LARGE and (points := next(arriving, None)) is not None:
                    came.extend(points)
                    size += sum(some.page.weight for some in points)
                if size <= LARGE:
                    block.add(run, came)
                if size > LARGE or block.full:
                    yield from block.runs()
                if size > LARGE:
                    yield from self._large(run, chain([came], arriving))
            yield from block.runs()
        except Exception:
            # What arrived whole stays.
            yield from block.runs()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _opened(self, runs: Sequence[Listed], pool: ThreadPoolExecutor, asking: Asking) -> Iterator[OpenRun]:
        """Give the runs in order; some are opened ahead, so that there is always something to ask."""
        attributes = AttributePages(self._calls, self._project.key, self._scope, runs, pool, self._concurrency)
        ahead = self._concurrency * _AHEAD
        opened: deque[OpenRun] = deque()
        number = count()
        while True:
            while len(opened) < ahead and (attributes.ready or not opened):
                following = attributes.take()
                if following is None:
                    break
                opened.append(self._open(*following, next(number), asking))
            if not opened:
                return
            yield opened.popleft()

    def _open(self, listed: Listed, found: Attributes | CallError, number: int, asking: Asking) -> OpenRun:
        """Sort out what the server says of a run, and begin to ask for the rest."""
        run = OpenRun(self._project.name, listed, number, self._selection.attribute)
        if isinstance(found, CallError):
            run.unreadable("It was deleted while it was read." if found.not_there else str(found))
            return run
        reader = AttributeReader(run.state, listed.key, self._project.key)
        for attribute in found:
            reader.take(attribute)
        contents = reader.contents
        for path in contents.sets:
            asking.add(StringSetQuestion(run, self._calls, path))
        if self._artifacts.any:
            for path, digest in contents.artifacts:
                asking.add(ArtifactQuestion(run, self._calls, self._artifacts, self._project.key, path, digest))
        elif contents.artifacts:
            run.state.note(
                f"Of {len(contents.artifacts):,} artifacts, such as {contents.artifacts[0][0]!r}, the list of files is "
                "taken; the server never had the files. source.neptune2.artifact_roots says where they may be copied "
                "from."
            )
        for path, kind in contents.series:
            asking.add(SeriesQuestion(run, self._pages, path, kind))
        return run

    def _large(self, run: OpenRun, arriving: Iterable[Sequence[Points]]) -> Iterator[RunChunk]:
        """Read a run by itself, without waiting for all of it."""
        for rows in together(self._rows(run, arriving)):
            yield RunRows(run.listed.run_id, rows)
        yield run.end()

    def _rows(self, run: OpenRun, arriving: Iterable[Sequence[Points]]) -> Iterator[pa.RecordBatch]:
        project, run_id = self._project.name, run.listed.run_id
        collected: dict[AttributeType, PointRows] = {}
        for points in arriving:
            for some in points:
                rows = collected.setdefault(some.kind, PointRows(some.kind))
                rows.add(0, some)
                if rows.full:
                    del collected[some.kind]
                    yield from _batches(rows, project, run_id)
        for rows in collected.values():
            yield from _batches(rows, project, run_id)
        builder = RowBuilder(project, run_id, lambda path, kind: True)
        for path, kind, value in run.values():
            try:
                builder.value(kind, path, value)
            except (ValueError, OverflowError, TypeError) as problem:
                run.refuse(path, kind, problem)
            yield from builder.drain()
        yield from builder.flush()


def _batches(rows: PointRows, project_id: str, run_id: str) -> list[pa.RecordBatch]:
    table, _ = rows.table(project_id, [run_id])
    batches: list[pa.RecordBatch] = table.to_batches(max_chunksize=BATCH_ROWS)
    return batches
