"""Reads runs in order while many requests are under way: attributes in batches of runs, series in groups.

Decisions. A group of series may span runs; its points wait here until their run's turn, so at most ``concurrency``
pages are under way and as many wait. What fails for good is cut in halves until only what fails is left.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from neptune_assets.errors import SourceUnavailableError
from neptune_assets.schema import CLASS_TYPES, AttributeClass, AttributeType
from neptune_assets.settings import Filters, Neptune3Source
from neptune_assets.sources.filters import Selection
from neptune_assets.sources.neptune3.collector import Collector
from neptune_assets.sources.neptune3.model import (
    FloatPart,
    ListedRun,
    ObjectPart,
    Page,
    Reader,
    RefusedError,
    Request,
    RunAttributes,
)
from neptune_assets.sources.protocol import RunEnd, RunRows
from neptune_assets.sources.rows import BATCH_BYTES, BATCH_ROWS

_ATTRIBUTES_TOGETHER: Final = 20_000
"""Attributes of a batch of runs, as far as their number is known beforehand."""
_FIRST_RUNS: Final = 8
_MOST_RUNS: Final = 256
_LIVE: Final = frozenset(AttributeType) - {AttributeType.FILE_SET, AttributeType.ARTIFACT}
"""Types that 3.x servers know."""


@dataclass(slots=True)
class _Answer:
    """What came of some requests: a page, and those that failed with the reason."""

    page: Page
    failed: list[tuple[Request, str]] = field(default_factory=list)


@dataclass(slots=True)
class _Batch:
    """Runs whose attributes were asked for together; ``missing`` are attributes listed and not sent, by sys id."""

    found: list[RunAttributes]
    failed: dict[str, str]
    missing: dict[str, list[str]]
    unchecked: str = ""


class Reading:
    """Reads runs of one project."""

    def __init__(
        self, reader: Reader, settings: Neptune3Source, filters: Filters, selection: Selection, project: str
    ) -> None:
        self._reader = reader
        self._settings = settings
        self._selection = selection
        self._project = project
        chosen = {kind for name in filters.attributes.classes for kind in CLASS_TYPES[AttributeClass(name)]} & _LIVE
        self._types = None if chosen == _LIVE else sorted(map(str, chosen))
        self._mean = 0.0

    def read(self, runs: Sequence[ListedRun]) -> Iterator[RunRows | RunEnd]:
        """Read runs one after the other; every one ends with a RunEnd, in the order given."""
        left = deque(runs)
        pool = ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="neptune3")
        try:
            ahead = pool.submit(self._batch, self._next_runs(left)) if left else None
            while ahead is not None:
                batch = ahead.result()
                self._learn(batch)
                ahead = pool.submit(self._batch, self._next_runs(left)) if left else None
                yield from self._runs(batch, pool)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _next_runs(self, left: deque[ListedRun]) -> list[ListedRun]:
        """Take as many runs as will have about the right number of attributes together."""
        taken: list[ListedRun] = []
        expected = 0.0
        most = _MOST_RUNS if self._mean else _FIRST_RUNS
        while left and len(taken) < most:
            expected += left[0].attributes or self._mean
            if taken and expected > _ATTRIBUTES_TOGETHER:
                break
            taken.append(left.popleft())
        return taken

    def _learn(self, batch: _Batch) -> None:
        if batch.found:
            mean = sum(len(run.attributes) for run in batch.found) / len(batch.found)
            self._mean = max(1.0, (self._mean + mean) / 2 if self._mean else mean)

    def _batch(self, runs: list[ListedRun]) -> _Batch:
        batch = _Batch([], {}, {})
        self._attributes(runs, batch)
        self._compare(batch)
        return batch

    def _attributes(self, runs: list[ListedRun], batch: _Batch) -> None:
        try:
            batch.found.extend(self._reader.attributes(self._project, runs, self._types))
        except RefusedError as error:
            self._check_alive(error)
            if len(runs) == 1:
                batch.failed[runs[0].sys_id] = str(error)
                batch.found.append(RunAttributes(runs[0]))
                return
            middle = len(runs) // 2
            self._attributes(runs[:middle], batch)
            self._attributes(runs[middle:], batch)

    def _compare(self, batch: _Batch) -> None:
        """Compare the attributes that came with those that the server lists for the same runs."""
        runs = [run for run in batch.found if run.run.sys_id not in batch.failed]
        if not runs:
            return
        try:
            listed = self._reader.definitions(self._project, [run.run for run in runs], self._types)
            came = {item.path for run in runs for item in run.attributes}
            if listed <= came:
                return
            # Which of them lacks what: only asked for one by one when something is missing.
            for run in runs:
                has = {item.path for item in run.attributes}
                lacks = self._reader.definitions(self._project, [run.run], self._types) - has
                if lacks:
                    batch.missing[run.run.sys_id] = sorted(lacks)
        except RefusedError as error:
            batch.unchecked = str(error)

    def _runs(self, batch: _Batch, pool: ThreadPoolExecutor) -> Iterator[RunRows | RunEnd]:
        collectors = []
        for found in batch.found:
            collector = Collector(self._project, found, self._selection.attribute, all_types=self._types is None)
            sys_id = found.run.sys_id
            if sys_id in batch.failed:
                collector.error(f"Its attributes could not be read: {batch.failed[sys_id]}")
            for path in batch.missing.get(sys_id, ()):
                if any(self._selection.attribute(path, str(kind)) for kind in _LIVE):
                    collector.error(f"The server lists {path!r} and sent no value.", path)
            if batch.unchecked:
                collector.note(f"Whether all attributes came could not be checked: {batch.unchecked}")
            collectors.append(collector)
        pages = _Pages(self, collectors, pool)
        for position, collector in enumerate(collectors):
            run_id = collector.run.run_id
            for rows in _together(_rows(collector, pages, position)):
                yield RunRows(run_id, rows)
            failed = collector.run.sys_id in batch.failed
            end = collector.end()
            yield RunEnd(run_id, None, end.errors, end.notes) if failed else end

    @property
    def concurrency(self) -> int:
        """Requests under way at the same time."""
        return self._settings.concurrency

    def groups(self, requests: Sequence[Request]) -> list[list[Request]]:
        """Cut requests into groups that are asked for together."""
        return list(self._reader.groups(requests))

    def answer(self, requests: Sequence[Request], *, again: bool = False) -> _Answer:
        """Ask for points; where that fails for good, ask for less until only what fails is left."""
        try:
            return _Answer(self._reader.page(self._project, requests, again=again))
        except RefusedError as error:
            self._check_alive(error)
            if len(requests) == 1:
                return self._last_try(requests[0])
        middle = len(requests) // 2
        first, second = (self.answer(part, again=True) for part in (requests[:middle], requests[middle:]))
        page = Page([*first.page.parts, *second.page.parts], [*first.page.rest, *second.page.rest])
        return _Answer(page, [*first.failed, *second.failed])

    def _last_try(self, request: Request) -> _Answer:
        try:
            return _Answer(self._reader.page(self._project, [request], again=True))
        except RefusedError as error:
            return _Answer(Page(), [(request, str(error))])

    def _check_alive(self, error: RefusedError) -> None:
        """Raise SourceUnavailableError if the server answers nothing at all any more."""
        if not error.exhausted:
            return
        try:
            self._reader.alive(self._project)
        except RefusedError as failure:
            raise SourceUnavailableError(
                str(failure), hint="Runs that were read are kept; materialize again when the server is back."
            ) from error


def _rows(collector: Collector, pages: _Pages, position: int) -> Iterator[pa.RecordBatch]:
    yield from collector.values()
    for parts in pages.of_run(position):
        yield from collector.take(parts)
    yield from collector.finish()


def _together(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Join small batches: every batch costs its reader the same, however small it is."""
    waiting: list[pa.RecordBatch] = []
    count = size = 0
    for batch in batches:
        if waiting and (count + batch.num_rows > BATCH_ROWS or size + batch.nbytes > BATCH_BYTES):
            yield _joined(waiting)
            waiting, count, size = [], 0, 0
        waiting.append(batch)
        count += batch.num_rows
        size += batch.nbytes
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


class _Pages:
    """Pages of a batch of runs, asked for ahead and given out run by run."""

    def __init__(self, reading: Reading, collectors: Sequence[Collector], pool: ThreadPoolExecutor) -> None:
        self._reading = reading
        self._collectors = collectors
        self._pool = pool
        self._position = {collector.run.sys_id: number for number, collector in enumerate(collectors)}
        requests = [request for collector in collectors for request in collector.requests()]
        floats = [request for request in requests if request.type is AttributeType.FLOAT_SERIES]
        others = [request for request in requests if request.type is not AttributeType.FLOAT_SERIES]
        groups = [*reading.groups(floats), *reading.groups(others)]
        self._groups = deque(sorted(groups, key=lambda group: self._position[group[0].run.sys_id]))
        self._awaited: dict[int, int] = defaultdict(int)
        for group in groups:
            for position in self._positions(group):
                self._awaited[position] += 1
        self._waiting: dict[int, list[FloatPart | ObjectPart]] = defaultdict(list)
        self._rest: dict[int, deque[list[Request]]] = defaultdict(deque)
        self._ahead: list[int] = []
        self._under_way: dict[Future[_Answer], tuple[list[Request], bool]] = {}

    def of_run(self, position: int) -> Iterator[Sequence[FloatPart | ObjectPart]]:
        """Give the points of a run as they come; call for every run, in order."""
        while True:
            self._ask(position)
            if self._waiting[position]:
                yield self._waiting.pop(position)
                continue
            mine = any(not shared for _, shared in self._under_way.values())
            if not self._awaited[position] and not self._rest[position] and not mine:
                return
            done, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
            for future in done:
                self._collect(future)

    def _ask(self, position: int) -> None:
        """Keep as many requests under way as may be: the rest of this run first, then the next groups."""
        most = self._reading.concurrency
        while len(self._under_way) < most:
            rest = self._rest[position]
            if rest:
                requests, shared = rest.popleft(), False
            elif self._groups and (self._may_ask_ahead(position)):
                requests, shared = self._groups.popleft(), True
            else:
                return
            self._under_way[self._pool.submit(self._reading.answer, requests)] = (requests, shared)

    def _may_ask_ahead(self, position: int) -> bool:
        if self._position[self._groups[0][0].run.sys_id] <= position:
            return True
        self._ahead = [last for last in self._ahead if last > position]
        return len(self._ahead) < self._reading.concurrency

    def _collect(self, future: Future[_Answer]) -> None:
        requests, shared = self._under_way.pop(future)
        answer = future.result()
        if shared:
            positions = self._positions(requests)
            for position in positions:
                self._awaited[position] -= 1
            self._ahead.append(max(positions))
        for part in answer.page.parts:
            self._waiting[self._position[part.request.run.sys_id]].append(part)
        for request, reason in answer.failed:
            self._collectors[self._position[request.run.sys_id]].fail(request, reason)
        rest: dict[int, list[Request]] = defaultdict(list)
        for request in answer.page.rest:
            rest[self._position[request.run.sys_id]].append(request)
        for position, left in rest.items():
            # Long series go on side by side; what one more page will finish stays together.
            pieces = 1 if shared else max(1, min(len(left), self._reading.concurrency - len(self._under_way)))
            size = -(-len(left) // pieces)
            self._rest[position].extend(left[start : start + size] for start in range(0, len(left), size))

    def _positions(self, group: Sequence[Request]) -> set[int]:
        return {self._position[request.run.sys_id] for request in group}
