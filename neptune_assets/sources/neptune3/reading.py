"""Reads runs in order while many requests are under way: attributes in batches of runs, series in groups.

Decisions. What fails for good is cut in halves until only what fails is left, of runs as of the attributes of one run:
that makes its run partial, the others go on. A server that answers nothing any more ends the reading.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from neptune_assets.errors import SourceUnavailableError
from neptune_assets.schema import CLASS_TYPES, SERIES_TYPES, AttributeClass, AttributeType
from neptune_assets.settings import Filters
from neptune_assets.sources.blocks import LARGE
from neptune_assets.sources.filters import Selection
from neptune_assets.sources.neptune3.blocks import Block, weight
from neptune_assets.sources.neptune3.collector import Collector
from neptune_assets.sources.neptune3.model import (
    Answer,
    Attribute,
    FloatPart,
    ListedRun,
    ObjectPart,
    Page,
    RefusedError,
    Request,
    RunAttributes,
)
from neptune_assets.sources.neptune3.pages import Pages
from neptune_assets.sources.neptune3.settings import Neptune3Source
from neptune_assets.sources.protocol import RunEnd, RunRows
from neptune_assets.sources.rows import together

if TYPE_CHECKING:
    from neptune_assets.sources.neptune3.client import Client

_ATTRIBUTES_TOGETHER: Final = 20_000
"""Attributes of a batch of runs, as far as their number is known beforehand."""
_NAMES: Final = 1_000
_NAMES_BYTES: Final = 200_000
"""Attributes of a run that are asked for by name at once: neptune-query stays below 220,000 bytes of names."""
_MOST_FAILURES: Final = 200
_FIRST_FAILURES: Final = 20
"""Requests by name that may fail for one run, and before any succeeds; then the names that are left are given up."""
_FIRST_RUNS: Final = 8
_MOST_RUNS: Final = 256
_LIVE: Final = frozenset(AttributeType) - {AttributeType.FILE_SET, AttributeType.ARTIFACT}
"""Types that 3.x servers know."""


@dataclass(slots=True)
class _Batch:
    """Runs whose attributes were asked for together; ``missing`` are attributes listed and not sent, by sys id."""

    found: list[RunAttributes]
    failed: dict[str, str]
    missing: dict[str, list[str]]
    unchecked: str = ""


@dataclass(frozen=True, slots=True)
class _Begun:
    """Runs whose attributes have come and whose points are being asked for."""

    batch: _Batch
    collectors: list[Collector]
    pages: Pages


class Reading:
    """Reads runs of one project."""

    def __init__(
        self, client: Client, settings: Neptune3Source, filters: Filters, selection: Selection, project: str
    ) -> None:
        self._client = client
        self._settings = settings
        self._selection = selection
        self._project = project
        chosen = {kind for name in filters.attributes.classes for kind in CLASS_TYPES[AttributeClass(name)]} & _LIVE
        self._types = None if chosen == _LIVE else sorted(map(str, chosen))
        self._mean = 0.0

    def read(self, runs: Sequence[ListedRun]) -> Iterator[RunRows | RunEnd]:
        """Read runs one after the other; every one ends with a RunEnd, in the order given."""
        pool = ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="neptune3")
        ahead = _Ahead(self, deque(runs), pool)
        try:
            while (begun := ahead.take()) is not None:
                yield from self._runs(begun, ahead)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def next_runs(self, left: deque[ListedRun]) -> list[ListedRun]:
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

    def ask(self, runs: list[ListedRun]) -> _Batch:
        """Ask for the attributes of some runs."""
        batch = _Batch([], {}, {})
        self._attributes(runs, batch)
        self._compare(batch)
        return batch

    def _attributes(self, runs: list[ListedRun], batch: _Batch) -> None:
        try:
            batch.found.extend(self._client.attributes(self._project, runs, self._types))
        except RefusedError as error:
            self._check_alive(error)
            if len(runs) == 1:
                batch.found.append(self._by_name(runs[0], batch, error))
                return
            middle = len(runs) // 2
            self._attributes(runs[:middle], batch)
            self._attributes(runs[middle:], batch)

    def _by_name(self, run: ListedRun, batch: _Batch, failure: RefusedError) -> RunAttributes:
        """Ask for the attributes of a run that does not come whole by their names, for less where that fails too.

        What is left is known by path and type only; of series, the points are asked for all the same.
        """
        found = RunAttributes(run)
        try:
            listed = self._client.definitions(self._project, [run], self._types)
        except RefusedError as error:
            self._check_alive(error)
            listed = {}
        if not any(listed.values()):
            batch.failed[run.sys_id] = str(failure)
            return found
        waiting = deque(_together(sorted(listed)))
        unread: list[Attribute] = []
        failures = 0
        while waiting:
            names = waiting.popleft()
            reason = f"given up after {failures} requests that failed, the first with {failure}"
            if failures < (_MOST_FAILURES if found.attributes else _FIRST_FAILURES):
                try:
                    (came,) = self._client.attributes(self._project, [run], self._types, names)
                except RefusedError as error:
                    self._check_alive(error)
                    failures += 1
                    reason = str(error)
                    if len(names) > 1:
                        middle = len(names) // 2
                        waiting.extend((names[:middle], names[middle:]))
                        continue
                else:
                    found.attributes.extend(came.attributes)
                    found.unknown.update(came.unknown)
                    continue
            unread.extend(Attribute(path, kind, undescribed=reason) for path in names for kind in sorted(listed[path]))
        if not found.attributes:
            batch.failed[run.sys_id] = str(failure)
            unread = [item for item in unread if item.type in SERIES_TYPES]
        found.attributes.extend(unread)
        return found

    def _compare(self, batch: _Batch) -> None:
        """Compare the attributes that came with those that the server lists for the same runs."""
        runs = [run for run in batch.found if run.run.sys_id not in batch.failed]
        if not runs:
            return
        try:
            listed = self._client.definitions(self._project, [run.run for run in runs], self._types)
            came = {item.path for run in runs for item in run.attributes}
            if listed.keys() <= came:
                return
            # Which of them lacks what: only asked for one by one when something is missing.
            for run in runs:
                has = {item.path for item in run.attributes}
                lacks = self._client.definitions(self._project, [run.run], self._types).keys() - has
                if lacks:
                    batch.missing[run.run.sys_id] = sorted(lacks)
        except RefusedError as error:
            batch.unchecked = str(error)

    def begin(self, batch: _Batch, pool: ThreadPoolExecutor) -> _Begun:
        """Begin to ask for the points of runs whose attributes have come."""
        self._learn(batch)
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
        pages = Pages(collectors, pool, self._settings.concurrency, self._client.groups, self._answer)
        pages.begin()
        return _Begun(batch, collectors, pages)

    def _runs(self, begun: _Begun, ahead: _Ahead) -> Iterator[RunRows | RunEnd]:
        batch, pages = begun.batch, begun.pages
        block = Block(self._project)
        try:
            for position, collector in enumerate(begun.collectors):
                points = pages.of_run(position)
                if pages.all_asked:
                    ahead.look()
                came: list[FloatPart | ObjectPart] = []
                for parts in points:
                    came.extend(parts)
                    if weight(came) > LARGE:
                        yield from self._ended(block, batch)
                        yield from self._large(collector, chain([came], points))
                        break
                else:
                    block.add(collector, came)
                    if block.full:
                        yield from self._ended(block, batch)
        except SourceUnavailableError:
            # What arrived whole stays.
            yield from self._ended(block, batch)
            raise
        yield from self._ended(block, batch)

    def _large(
        self, collector: Collector, points: Iterable[Sequence[FloatPart | ObjectPart]]
    ) -> Iterator[RunRows | RunEnd]:
        for rows in together(_rows(collector, points)):
            yield RunRows(collector.run.run_id, rows)
        yield collector.end()

    def _ended(self, block: Block, batch: _Batch) -> Iterator[RunRows | RunEnd]:
        """Give the runs of a block; nothing was promised of those whose attributes could not be read."""
        failed = {run.run.run_id for run in batch.found if run.run.sys_id in batch.failed}
        for chunk in block.runs():
            if isinstance(chunk, RunEnd) and chunk.run_id in failed:
                chunk = replace(chunk, promised=None)
            yield chunk

    def _answer(self, requests: Sequence[Request], *, again: bool = False) -> Answer:
        """Ask for points; where that fails for good, ask for less until only what fails is left."""
        try:
            return Answer(self._client.page(self._project, requests, again=again))
        except RefusedError as error:
            self._check_alive(error)
            if len(requests) == 1:
                return self._last_try(requests[0])
        middle = len(requests) // 2
        first, second = (self._answer(part, again=True) for part in (requests[:middle], requests[middle:]))
        page = Page([*first.page.parts, *second.page.parts], [*first.page.rest, *second.page.rest])
        return Answer(page, [*first.failed, *second.failed])

    def _last_try(self, request: Request) -> Answer:
        try:
            return Answer(self._client.page(self._project, [request], again=True))
        except RefusedError as error:
            return Answer(Page(), [(request, str(error))])

    def _check_alive(self, error: RefusedError) -> None:
        """Raise SourceUnavailableError if the server answers nothing at all any more."""
        if not error.exhausted:
            return
        try:
            self._client.alive(self._project)
        except RefusedError as failure:
            raise SourceUnavailableError(
                str(failure), hint="Runs that were read are kept; materialize again when the server is back."
            ) from error


def _together(names: Sequence[str]) -> Iterator[list[str]]:
    """Cut names into groups that one request holds."""
    group: list[str] = []
    size = 0
    for name in names:
        length = len(name.encode())
        if group and (size + length > _NAMES_BYTES or len(group) >= _NAMES):
            yield group
            group, size = [], 0
        group.append(name)
        size += length
    if group:
        yield group


class _Ahead:
    """The batch of runs that comes next, asked for while the one before is given out."""

    def __init__(self, reading: Reading, left: deque[ListedRun], pool: ThreadPoolExecutor) -> None:
        self._reading = reading
        self._left = left
        self._pool = pool
        self._attributes: Future[_Batch] | None = None
        self._begun: _Begun | None = None
        self._ask()

    def look(self) -> None:
        """Begin with the next batch's points if its attributes have come; what went wrong is told by :meth:`take`."""
        asked = self._attributes
        if self._begun is None and asked is not None and asked.done() and asked.exception() is None:
            self._begun = self._reading.begin(asked.result(), self._pool)
            self._attributes = None

    def take(self) -> _Begun | None:
        """Return the next batch, None after the last. Raises what went wrong with asking for it."""
        begun, self._begun = self._begun, None
        if begun is None and self._attributes is not None:
            begun = self._reading.begin(self._attributes.result(), self._pool)
        self._attributes = None
        self._ask()
        return begun

    def _ask(self) -> None:
        if self._left:
            self._attributes = self._pool.submit(self._reading.ask, self._reading.next_runs(self._left))


def _rows(collector: Collector, points: Iterable[Sequence[FloatPart | ObjectPart]]) -> Iterator[pa.RecordBatch]:
    yield from collector.values()
    for parts in points:
        yield from collector.take(parts)
    yield from collector.finish()
