"""Runs read one after the other for the lake, several at a time from the server, in bounded memory.

A run costs a line of a table for all it has, or one request, and one for every page of its series. Each run being read
has a lane: a short queue that its reader fills and that is emptied when the run's turn comes, so that at most a few
batches of each wait.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import chain, islice
from typing import Final

import pyarrow as pa

from neptune_assets.errors import NeptuneAssetsError, SourceError
from neptune_assets.schema import AttributeType, Scope
from neptune_assets.settings import Neptune2Source
from neptune_assets.sources.filters import Selection
from neptune_assets.sources.neptune2.artifacts import ArtifactStore, list_files
from neptune_assets.sources.neptune2.attribute_pages import AttributePages
from neptune_assets.sources.neptune2.attributes import AttributeReader
from neptune_assets.sources.neptune2.calls import Calls
from neptune_assets.sources.neptune2.errors import CallError
from neptune_assets.sources.neptune2.listing import Listed
from neptune_assets.sources.neptune2.projects import Project
from neptune_assets.sources.neptune2.references import Reference
from neptune_assets.sources.neptune2.series import CALLS, Page, PointBuffer, SeriesProgress, image_page, parse_page
from neptune_assets.sources.neptune2.values import texts
from neptune_assets.sources.offline.state import RunState
from neptune_assets.sources.protocol import Issue, RunChunk, RunEnd, RunRows
from neptune_assets.sources.rows import together

_CLIENTS_PAGE: Final = 1_000
"""Points that neptune-client asks for at once; one string may have 1,000 characters, so more are not asked for."""
_TOO_MUCH: Final = frozenset({400, 413, 422})
"""Statuses with which a server may refuse a page for its size."""
_WAITING: Final = 2
"""Batches of one run that may wait for their turn."""


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
        self._settings = settings
        self._selection = selection
        self._artifacts = artifacts
        self._project = project
        self._scope = scope
        self._most_floats = settings.points_per_page

    def read(self, runs: Sequence[Listed]) -> Iterator[RunChunk]:
        """Read runs in the order given; each ends with a RunEnd.

        Raises SourceError if the server does not answer any more, or not to this token.
        """
        workers = min(self._settings.concurrency, max(1, len(runs)))
        waiting = iter(runs)
        lanes: deque[_Lane] = deque()
        readers = ThreadPoolExecutor(workers, "neptune2-run")
        pages = ThreadPoolExecutor(self._settings.concurrency, "neptune2-page")
        attribute_pages = AttributePages(self._calls, self._project.key, self._scope, runs)

        def start() -> None:
            for listed in waiting:
                lane = _Lane()
                lanes.append(lane)
                readers.submit(self._fill, lane, listed, pages, attribute_pages)
                return

        try:
            for _ in range(workers + 1):
                start()
            while lanes:
                yield from lanes[0]
                lanes.popleft()
                start()
        finally:
            for lane in lanes:
                lane.close()
            readers.shutdown(wait=False, cancel_futures=True)
            pages.shutdown(wait=False, cancel_futures=True)

    def _fill(self, lane: _Lane, listed: Listed, pages: ThreadPoolExecutor, attribute_pages: AttributePages) -> None:
        try:
            for chunk in self._chunks(listed, pages, attribute_pages):
                if not lane.put(chunk):
                    return
            lane.put(None)
        except BaseException as error:  # noqa: BLE001 - handed on to the thread that reads
            lane.put(error)

    def _chunks(self, listed: Listed, pages: ThreadPoolExecutor, attribute_pages: AttributePages) -> Iterator[RunChunk]:
        """All of one run; what fails of it is in its end."""
        run_id = listed.run_id
        state = RunState(self._project.name, run_id, self._selection.attribute)
        try:
            attributes = attribute_pages.of(listed)
        except CallError as error:
            why = "It was deleted while it was read." if error.not_there else str(error)
            yield RunEnd(run_id, errors=(Issue(f"Run {run_id!r} of {self._project.name!r} cannot be read. {why}"),))
            return
        reader = AttributeReader(state, listed.key, self._project.key)
        for attribute in attributes:
            reader.take(attribute)
        del attributes
        self._fetch_sets(state, listed, reader.contents.sets)
        self._note_artifacts(state, reader.contents.artifacts)
        values = list(state.finish())
        promised = state.rows.attributes()
        points = self._series(state, listed, reader.contents.series, pages, promised)
        for batch in together(chain(values, points)):
            yield RunRows(run_id, batch)
        yield replace(state.end(), promised=promised)

    def _fetch_sets(self, state: RunState, listed: Listed, paths: Sequence[str]) -> None:
        for path in paths:
            try:
                answer = self._calls.json("getStringSetAttribute", experimentId=listed.key, attribute=path)
                state.assign(path, AttributeType.STRING_SET, texts(answer["values"]))
            except CallError as error:
                if error.not_there:
                    # Neptune's own service lists sys/group_tags and denies having it.
                    state.note(f"The server lists {path!r} but has no such attribute.", path, AttributeType.STRING_SET)
                else:
                    state.error(str(error), path, AttributeType.STRING_SET)
            except (TypeError, ValueError, KeyError) as error:
                state.error(f"The strings of {path!r} cannot be understood: {error}.", path, AttributeType.STRING_SET)

    def _note_artifacts(self, state: RunState, artifacts: Sequence[tuple[str, str]]) -> None:
        """Say what is not copied of artifacts' files, and add the rest as a file set beside the list."""
        listed_only: list[str] = []
        for path, digest in artifacts:
            if not self._artifacts.any:
                listed_only.append(path)
                continue
            try:
                files = list_files(self._calls, self._project.key, digest)
            except CallError as error:
                state.error(str(error), path, AttributeType.ARTIFACT)
                continue
            found = {member.relative_path for member in self._artifacts.members(files)}
            missing = [file for file in files if file.name not in found]
            if missing:
                state.note(
                    f"{len(missing):,} of {len(files):,} files that the artifact {path!r} tracks cannot be copied, "
                    f"such as {missing[0].location!r}: they are gone, changed, or outside "
                    "source.neptune2.artifact_roots.",
                    path,
                    AttributeType.ARTIFACT,
                )
            if found:
                reference = Reference("artifact_files", self._project.key, path, place=digest)
                state.assign(f"{path}/files", AttributeType.FILE_SET, str(reference))
        if listed_only:
            state.note(
                f"Of {len(listed_only):,} artifacts, such as {listed_only[0]!r}, the list of files is taken; the "
                "server never had the files. source.neptune2.artifact_roots says where they may be copied from."
            )

    def _series(
        self,
        state: RunState,
        listed: Listed,
        series: Sequence[tuple[str, AttributeType]],
        pages: ThreadPoolExecutor,
        promised: dict[str, int],
    ) -> Iterator[pa.RecordBatch]:
        """Points of all series, several series at a time; counts those that have any, or that failed, as promised.

        Pages of one series are asked for one after the other: a server finds the next page by where the last one
        ended, and would count from the beginning for any other.
        """
        buffers: dict[AttributeType, PointBuffer] = {}
        waiting = iter(series)
        asked: dict[Future[tuple[Page, bool]], SeriesProgress] = {}
        empty: list[str] = []

        def ask(progress: SeriesProgress) -> None:
            limit = progress.page or self._settings.points_per_page
            asked[pages.submit(self._page, listed.key, progress.path, progress.kind, progress.got, limit)] = progress

        for path, kind in islice(waiting, self._settings.concurrency):
            ask(SeriesProgress(path, kind))
        while asked:
            done, _ = wait(asked, return_when=FIRST_COMPLETED)
            for future in done:
                progress = asked.pop(future)
                path, kind = progress.path, progress.kind
                buffer = buffers.setdefault(kind, PointBuffer(self._project.name, listed.run_id, kind))
                try:
                    page, told = future.result()
                    batches = list(buffer.add(path, self._referring(page, kind, path, listed.key)))
                    if progress.take(page, told):
                        ask(progress)
                    yield from batches
                except CallError as error:
                    progress.fail()
                    state.error(str(error), path, kind)
                except (TypeError, ValueError, KeyError, OverflowError) as error:
                    progress.fail()
                    state.error(f"Points of {path!r} cannot be understood: {error!s:.200}.", path, kind)
                if not progress.more:
                    if progress.total or progress.failed:
                        promised[str(kind)] = promised.get(str(kind), 0) + 1
                        progress.report(state)
                    else:
                        empty.append(path)
                    for following in islice(waiting, 1):
                        ask(SeriesProgress(*following))
        if empty:
            state.note(f"{len(empty):,} series hold no points, such as {min(empty)!r}.")
        for buffer in buffers.values():
            yield from buffer.flush()

    def _page(self, key: str, path: str, kind: AttributeType, offset: int, limit: int) -> tuple[Page, bool]:
        limit = min(limit, self._most_floats if kind is AttributeType.FLOAT_SERIES else _CLIENTS_PAGE)
        try:
            answer = self._calls.json(CALLS[kind], experimentId=key, attribute=path, limit=limit, offset=offset)
        except CallError as error:
            if limit <= _CLIENTS_PAGE or error.status not in _TOO_MUCH:
                raise
            limit = _CLIENTS_PAGE
            answer = self._calls.json(CALLS[kind], experimentId=key, attribute=path, limit=limit, offset=offset)
            self._most_floats = limit
        if kind is AttributeType.FILE_SERIES:
            return image_page(answer, offset, limit)
        return parse_page(answer, kind), True

    def _referring(self, page: Page, kind: AttributeType, path: str, key: str) -> Page:
        """The page with references in the place of an image's place in its series."""
        if kind is not AttributeType.FILE_SERIES:
            return page
        return replace(page, values=[str(Reference("image", key, path, place=str(place))) for place in page.values])


class _Lane:
    """A short queue from the reader of one run to whoever takes its chunks; None ends it, an error is raised there."""

    def __init__(self) -> None:
        self._items: deque[RunChunk | BaseException | None] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: RunChunk | BaseException | None) -> bool:
        """Add an item, waiting until there is room; False if nobody takes any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < _WAITING)
            if self._closed:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def close(self) -> None:
        """Have the reader stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[RunChunk]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._items))
                item = self._items.popleft()
                self._changed.notify_all()
            if item is None:
                return
            if isinstance(item, BaseException):
                if isinstance(item, NeptuneAssetsError):
                    raise item
                raise SourceError(
                    f"Reading from the server broke off: {type(item).__name__}: {item}.",
                    hint="Materialize again; finished runs are kept. If it happens again, report it as a bug.",
                ) from item
            yield item
