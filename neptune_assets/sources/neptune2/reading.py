"""Runs read one after the other for the lake, in bounded memory, while the server is asked about those that follow.

A run costs a line of a table for all it has, or one request, and one for every page of its series. Threads only send
requests, those about earlier runs first; the thread that reads takes the responses, since threads that turn many small
responses into rows at once would only take Python's lock from each other. Small runs become rows together when they
have arrived whole, larger ones as they come.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from heapq import heappop, heappush
from itertools import chain, count
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa

from neptune_assets.schema import AttributeType, Scope
from neptune_assets.sources.blocks import LARGE, RunBlock, weight_of
from neptune_assets.sources.filters import Selection
from neptune_assets.sources.neptune2.attributes import AttributePages, AttributeReader, Attributes
from neptune_assets.sources.neptune2.connection import CallError, Calls
from neptune_assets.sources.neptune2.files import ArtifactFile, ArtifactStore, list_files
from neptune_assets.sources.neptune2.listing import Listed, Project
from neptune_assets.sources.neptune2.series import CALLS, Page, PointRows, Points, image_page, parse_page
from neptune_assets.sources.neptune2.settings import Neptune2Source
from neptune_assets.sources.neptune2.values import Reference, texts
from neptune_assets.sources.protocol import RunChunk, RunEnd, RunRows
from neptune_assets.sources.rows import NO_TIME, Ints, RowBuilder, together
from neptune_assets.sources.run_state import RunState
from neptune_assets.sources.times import OddTimes


class PendingRun:
    """One run; only the thread that reads touches it."""

    def __init__(self, project_id: str, listed: Listed, number: int, keep: Callable[[str, str], bool]) -> None:
        """``number`` is the run's place among those that are read; ``keep`` is the filter on attributes."""
        self.listed = listed
        self.number = number
        self.state = RunState(project_id, listed.run_id, keep)
        self.pending = 0
        """Requests about the run without a response so far."""
        self.weight = 0
        """Room that points take which have arrived and were not taken, in rows."""
        self._points: list[Points] = []
        self._promised: Counter[str] = Counter()
        self._empty: list[str] = []
        self._odd_times = OddTimes()

    @property
    def size(self) -> int:
        """Rows of values, long ones counted for several; points are not counted."""
        return sum(weight_of(value) for values in self.state.snapshot().values() for value in values.values())

    def unreadable(self, why: str) -> None:
        """Report that nothing can be known of the run."""
        project = self.state.project_id
        self.state.error(f"Run {self.listed.run_id!r} of {project!r} cannot be read. {why}")
        self.state.whole = False

    def arrive(self, points: Points) -> None:
        """Keep points until they are taken; times that no row can hold are removed, which the end of the run notes."""
        page = points.page
        known = page.times != NO_TIME
        beyond = self._odd_times.beyond(points.path, page.times[known])
        if beyond is not None:
            page.times[np.flatnonzero(known)[beyond]] = NO_TIME
        self._points.append(points)
        self.weight += points.page.weight

    def take_points(self) -> list[Points]:
        """Take the points that have arrived since the last time."""
        points, self._points, self.weight = self._points, [], 0
        return points

    def promise(self, kind: AttributeType) -> None:
        """Count an attribute that the server says the run has."""
        self._promised[str(kind)] += 1

    def lack_points(self, path: str) -> None:
        """Remember a series without points, which is noted and not missed."""
        self._empty.append(path)

    def values(self) -> Iterator[tuple[str, AttributeType, Any]]:
        """Give path, type and value of what is not a series, and count them as promised; call once, at the end."""
        for path, values in self.state.snapshot().items():
            kept = [kind for kind in values if self.state.rows.wants(kind, path)]
            if len(kept) > 1:
                types = ", ".join(map(str, kept))
                self.state.note(f"{path!r} holds values of several types: {types}. All of them are kept.", path)
            for kind in kept:
                self.promise(kind)
                yield path, kind, sorted(values[kind]) if kind is AttributeType.STRING_SET else values[kind]

    def refuse(self, path: str, kind: AttributeType, problem: Exception) -> None:
        """Report a value that no row can hold."""
        self.state.error(f"The value of {path!r} cannot be kept: {problem}. It is left out.", path, kind)

    def end(self) -> RunEnd:
        """End the run, once everything was answered and its values were given."""
        if self._empty:
            self.state.note(f"{len(self._empty):,} series hold no points, such as {min(self._empty)!r}.")
        end = self.state.end()
        return replace(
            end,
            promised=dict(self._promised) if self.state.whole else None,
            notes=(*end.notes, *self._odd_times.issues()),
        )


_QUEUED: Final = 4
"""Requests handed to each thread beforehand: responses arrive while the rows of earlier runs are written."""
_HELD: Final = 262_144
"""Rows of later runs that may wait; while there are more, only the run whose turn it is goes on."""


class RunRequest(Protocol):
    """A request about a run."""

    run: PendingRun

    def send(self) -> Any:
        """Send it and return what was found, in a thread of the pool."""

    def receive(self, response: Future[Any]) -> bool:
        """Hand the response to the run, in the thread that reads; True if there is another one to send."""


class RequestScheduler:
    """Sends requests about runs, those about earlier runs first."""

    def __init__(self, pool: ThreadPoolExecutor, concurrency: int) -> None:
        """``pool`` has ``concurrency`` threads."""
        self._pool = pool
        self._most = _QUEUED * concurrency
        self._waiting: list[tuple[int, int, RunRequest]] = []
        self._order = count()
        self._under_way: dict[Future[Any], RunRequest] = {}
        self._responses: SimpleQueue[Future[Any]] = SimpleQueue()
        self._turn = -1
        self._held = 0

    def add(self, request: RunRequest) -> None:
        """Send a request when its turn comes."""
        request.run.pending += 1
        self._wait(request)
        self._send()

    def points_of(self, run: PendingRun) -> Iterator[list[Points]]:
        """Give the points of a run as they arrive until nothing is pending; call for every run, in order."""
        self._turn = run.number
        self._held -= run.weight
        while True:
            self._send()
            if run.weight:
                yield run.take_points()
            elif run.pending:
                self._collect()
            else:
                return

    def _wait(self, request: RunRequest) -> None:
        heappush(self._waiting, (request.run.number, next(self._order), request))

    def _send(self) -> None:
        while self._waiting and len(self._under_way) < self._most:
            if self._waiting[0][0] > self._turn and self._held >= _HELD:
                return
            request = heappop(self._waiting)[2]
            future = self._pool.submit(request.send)
            self._under_way[future] = request
            future.add_done_callback(self._responses.put)

    def _collect(self) -> None:
        """Wait for a response, and receive all that have arrived."""
        answer = self._responses.get()
        while True:
            request = self._under_way.pop(answer)
            run = request.run
            before = run.weight
            if request.receive(answer):
                self._wait(request)
            else:
                run.pending -= 1
            if run.number > self._turn:
                self._held += run.weight - before
            try:
                answer = self._responses.get_nowait()
            except Empty:
                return


_CLIENTS_PAGE: Final = 1_000
"""Points that neptune-client asks for at once; one string may have 1,000 characters, so more are not asked for."""
_TOO_MUCH: Final = frozenset({400, 413, 422})
"""Statuses with which a server may refuse a page for its size."""


class StringSetRequest:
    """The strings of a set, where the server does not send them with the other attributes."""

    def __init__(self, run: PendingRun, calls: Calls, path: str) -> None:
        self.run = run
        self._calls = calls
        self._path = path

    def send(self) -> list[str]:
        """Ask for the strings."""
        key = self.run.listed.key
        return texts(self._calls.json("getStringSetAttribute", experimentId=key, attribute=self._path)["values"])

    def receive(self, response: Future[list[str]]) -> bool:
        """Assign the strings, or report why there are none."""
        state, path = self.run.state, self._path
        try:
            state.assign(path, AttributeType.STRING_SET, response.result())
        except CallError as error:
            if error.not_there:
                # Neptune's own service lists sys/group_tags and denies having it.
                state.note(f"The server lists {path!r} but has no such attribute.", path, AttributeType.STRING_SET)
            else:
                state.error(str(error), path, AttributeType.STRING_SET)
        except (TypeError, ValueError, KeyError) as error:
            state.error(f"The strings of {path!r} cannot be understood: {error}.", path, AttributeType.STRING_SET)
        return False


class ArtifactRequest:
    """The files of an artifact, and which of them can be copied."""

    def __init__(
        self, run: PendingRun, calls: Calls, artifacts: ArtifactStore, project_key: str, path: str, digest: str
    ) -> None:
        self.run = run
        self._calls = calls
        self._artifacts = artifacts
        self._project_key = project_key
        self._path = path
        self._digest = digest

    def send(self) -> tuple[Sequence[ArtifactFile], set[str]]:
        """Ask for the files, and look which of them are there."""
        files = list_files(self._calls, self._project_key, self._digest)
        return files, {member.relative_path for member in self._artifacts.members(files)}

    def receive(self, response: Future[tuple[Sequence[ArtifactFile], set[str]]]) -> bool:
        """Add what can be copied as a file set beside the list, and say what cannot."""
        state, path = self.run.state, self._path
        try:
            files, found = response.result()
        except CallError as error:
            state.error(str(error), path, AttributeType.ARTIFACT)
            return False
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
            reference = Reference("artifact_files", self._project_key, path, place=self._digest)
            state.assign(f"{path}/files", AttributeType.FILE_SET, str(reference))
        return False


class SeriesPages:
    """Asks for pages of series: of fewer points, once the server refused one for its size."""

    def __init__(self, calls: Calls, most: int) -> None:
        self._calls = calls
        self.most = most

    def page(self, key: str, path: str, kind: AttributeType, offset: int, limit: int) -> tuple[Page, bool]:
        """Request a page; True if its steps and times are the server's. Raises as :meth:`Calls.json` does."""
        limit = min(limit, self.most if kind is AttributeType.FLOAT_SERIES else _CLIENTS_PAGE)
        try:
            answer = self._calls.json(CALLS[kind], experimentId=key, attribute=path, limit=limit, offset=offset)
        except CallError as error:
            if limit <= _CLIENTS_PAGE or error.status not in _TOO_MUCH:
                raise
            limit = _CLIENTS_PAGE
            answer = self._calls.json(CALLS[kind], experimentId=key, attribute=path, limit=limit, offset=offset)
            self.most = limit
        if kind is AttributeType.FILE_SERIES:
            return image_page(answer, offset, limit, lambda place: str(Reference("image", key, path, place=place)))
        return parse_page(answer, kind), True


class SeriesRequest:
    """The points of one series, page by page.

    Pages are asked for one after the other: a server finds the next page by where the last one ended, and would count
    from the beginning for any other.
    """

    def __init__(self, run: PendingRun, pages: SeriesPages, path: str, kind: AttributeType) -> None:
        self.run = run
        self._pages = pages
        self._path = path
        self._kind = kind
        self._limit = pages.most
        self._got = 0
        self._total = 0
        self._untimed = 0
        self._lost = 0
        self._why = ""
        self._last: Page | None = None
        self._located = True

    def send(self) -> tuple[Page, bool]:
        """Ask for the next page."""
        return self._pages.page(self.run.listed.key, self._path, self._kind, self._got, self._limit)

    def receive(self, response: Future[tuple[Page, bool]]) -> bool:
        """Hand the points to the run; True if there is another page."""
        try:
            page, self._located = response.result()
        except CallError as error:
            return self._fail(str(error))
        except (TypeError, ValueError, KeyError, OverflowError, AttributeError) as error:
            return self._fail(f"Points of {self._path!r} cannot be understood: {error!s:.200}.")
        if self._last is not None and page.sent and _same(page, self._last):
            return self._fail(f"The server gives the points of {self._path!r} twice, after {self._got:,} of them.")
        self._last = page
        self._total = page.total
        self._untimed += page.untimed
        if page.refused:
            self._lost += page.sent - len(page)
            self._why = self._why or page.refused
        if page.sent:
            if not self._got:
                # What the server gives at once may be fewer than were asked for.
                self._limit = page.sent
            self._got += page.sent
            if len(page):
                self.run.arrive(Points(self._path, self._kind, page))
            if self._got < self._total:
                return True
        self._report()
        return False

    def _fail(self, message: str) -> bool:
        self.run.state.error(message, self._path, self._kind)
        self.run.promise(self._kind)
        return False

    def _report(self) -> None:
        """Tell the run what is odd about the series, once all of it was read."""
        state, path, kind = self.run.state, self._path, self._kind
        if not self._total and not self._got:
            self.run.lack_points(path)
            return
        self.run.promise(kind)
        if self._got < self._total:
            state.error(f"The server gave {self._got:,} of {self._total:,} points of {path!r}.", path, kind)
        if self._lost:
            state.error(f"{self._lost:,} points of {path!r} cannot be kept: {self._why}.", path, kind)
        if self._untimed:
            state.note(f"{self._untimed:,} points of {path!r} have no time on the server; they are kept.", path, kind)
        if not self._located:
            state.repair("steps_numbered", self._got)
            state.note(
                f"The server does not report steps and times of the images of {path!r}; steps are their places "
                "in the series.",
                path,
                kind,
            )


def _same(page: Page, other: Page) -> bool:
    """True if two pages hold the same points."""
    return (
        page.sent == other.sent
        and np.array_equal(page.steps, other.steps)
        and np.array_equal(page.times, other.times)
        and (
            page.values == other.values
            if isinstance(page.values, list) or isinstance(other.values, list)
            else np.array_equal(page.values, other.values, equal_nan=True)
        )
    )


class Block(RunBlock):
    """Small runs of a Neptune 2.x server."""

    def _reset(self) -> None:
        super()._reset()
        self._points: dict[AttributeType, PointRows] = {}

    def add(self, run: PendingRun, points: Sequence[Points]) -> None:
        """Take a run with all of its points; values that cannot be kept are errors of its end."""
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

    def _batches(self, run_ids: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, Ints]]:
        for rows in self._points.values():
            yield rows.batch(self._project_id, run_ids)


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

        Raises SourceError if the server no longer responds, or not to this token.
        """
        pool = ThreadPoolExecutor(self._concurrency, "neptune2")
        scheduler = RequestScheduler(pool, self._concurrency)
        block = Block(self._project.name)
        try:
            for run in self._opened(runs, pool, scheduler):
                arriving = scheduler.points_of(run)
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

    def _opened(
        self, runs: Sequence[Listed], pool: ThreadPoolExecutor, scheduler: RequestScheduler
    ) -> Iterator[PendingRun]:
        """Give the runs in order; some are opened ahead, so that there is always something to ask."""
        attributes = AttributePages(self._calls, self._project.key, self._scope, runs, pool, self._concurrency)
        ahead = self._concurrency * _AHEAD
        opened: deque[PendingRun] = deque()
        number = count()
        while True:
            while len(opened) < ahead and (attributes.ready or not opened):
                following = attributes.take()
                if following is None:
                    break
                opened.append(self._open(*following, next(number), scheduler))
            if not opened:
                return
            yield opened.popleft()

    def _open(
        self, listed: Listed, found: Attributes | CallError, number: int, scheduler: RequestScheduler
    ) -> PendingRun:
        """Sort out what the server says of a run, and begin to ask for the rest."""
        run = PendingRun(self._project.name, listed, number, self._selection.attribute)
        if isinstance(found, CallError):
            run.unreadable("It was deleted while it was read." if found.not_there else str(found))
            return run
        reader = AttributeReader(run.state, listed.key, self._project.key)
        for attribute in found:
            reader.take(attribute)
        contents = reader.contents
        for path in contents.sets:
            scheduler.add(StringSetRequest(run, self._calls, path))
        if self._artifacts.any:
            for path, digest in contents.artifacts:
                scheduler.add(ArtifactRequest(run, self._calls, self._artifacts, self._project.key, path, digest))
        elif contents.artifacts:
            run.state.note(
                f"Of {len(contents.artifacts):,} artifacts, such as {contents.artifacts[0][0]!r}, the list of files is "
                "taken; the server never had the files. source.neptune2.artifact_roots says where they may be copied "
                "from."
            )
        for path, kind in contents.series:
            scheduler.add(SeriesRequest(run, self._pages, path, kind))
        return run

    def _large(self, run: PendingRun, arriving: Iterable[Sequence[Points]]) -> Iterator[RunChunk]:
        """Read a run by itself, without waiting for all of it."""
        for rows in together(self._rows(run, arriving)):
            yield RunRows(run.listed.run_id, rows)
        yield run.end()

    def _rows(self, run: PendingRun, arriving: Iterable[Sequence[Points]]) -> Iterator[pa.RecordBatch]:
        project, run_id = self._project.name, run.listed.run_id
        collected: dict[AttributeType, PointRows] = {}
        for points in arriving:
            for some in points:
                rows = collected.setdefault(some.kind, PointRows(some.kind))
                rows.add(0, some)
                if rows.full:
                    del collected[some.kind]
                    yield rows.batch(project, [run_id])[0]
        for rows in collected.values():
            yield rows.batch(project, [run_id])[0]
        builder = RowBuilder(project, run_id, lambda path, kind: True)
        for path, kind, value in run.values():
            try:
                builder.value(kind, path, value)
            except (ValueError, OverflowError, TypeError) as problem:
                run.refuse(path, kind, problem)
            yield from builder.drain()
        yield from builder.flush()
