"""Reads runs in order while many requests are under way: attributes in batches of runs, series in groups across runs.

What fails for good is cut in halves until only what fails is left, of runs as of the attributes of one run: that makes
its run partial, the others go on. A server that no longer answers ends the reading. Points wait until their run's turn,
so at most ``concurrency`` pages are under way and as many wait. Small runs become rows together.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from neptune_assets.errors import SourceUnavailableError
from neptune_assets.schema import CLASS_TYPES, MAX_STEP, SERIES_TYPES, AttributeClass, AttributeType
from neptune_assets.settings import Filters
from neptune_assets.sources.blocks import LARGE, RunBlock, weight_of
from neptune_assets.sources.filters import Selection
from neptune_assets.sources.live import fetch_in_halves
from neptune_assets.sources.neptune3.rows import (
    COMPLETION,
    PREVIEW,
    Attribute,
    FloatPart,
    Floats,
    ListedRun,
    ObjectPart,
    Page,
    RefusedError,
    Request,
    Response,
    RunAttributes,
    add_points,
    float_batches,
    in_range,
    value_cell,
)
from neptune_assets.sources.neptune3.settings import Neptune3Source
from neptune_assets.sources.protocol import RunEnd, RunRows
from neptune_assets.sources.rows import NO_TIME, Ints, RowBuilder, together
from neptune_assets.sources.run_state import Issues
from neptune_assets.sources.times import OddTimes
from neptune_assets.sources.values import micro_step

if TYPE_CHECKING:
    from neptune_assets.sources.neptune3.client import Client

_COUNTS: Final = "sys/diagnostics/attributes/"
_COUNTED: Final = {
    f"{_COUNTS}{name}_count": kind
    for name, kind in {
        "bool": AttributeType.BOOL,
        "file_ref": AttributeType.FILE,
        "file_ref_series": AttributeType.FILE_SERIES,
        "float": AttributeType.FLOAT,
        "float_series": AttributeType.FLOAT_SERIES,
        "histogram_series": AttributeType.HISTOGRAM_SERIES,
        "int": AttributeType.INT,
        "string": AttributeType.STRING,
        "string_series": AttributeType.STRING_SERIES,
        "string_set": AttributeType.STRING_SET,
    }.items()
}
"""Where Neptune says how many attributes of each type a run has."""


class Collector:
    """Turns what arrives of one run into batches, and ends with what was promised and did not arrive.

    ``keep(path, type)`` is the filter on attributes; ``all_types`` says that attributes of every type were asked for.
    """

    def __init__(
        self, project_id: str, found: RunAttributes, keep: Callable[[str, str], bool], *, all_types: bool
    ) -> None:
        self.run = found.run
        self._project_id = project_id
        self._kept: list[Attribute] = []
        self._builder = RowBuilder(project_id, found.run.run_id, lambda path, kind: True)
        self._errors = Issues()
        self._notes = Issues()
        self._failed: set[tuple[str, AttributeType]] = set()
        self._reached: dict[tuple[str, AttributeType], int] = {}
        self._previews: set[str] = set()
        self._odd_times = OddTimes()
        self._keep(item for item in found.attributes if keep(item.path, str(item.type)))
        if all_types:
            self._count(found.attributes)
        for path, kind in found.unknown.items():
            if keep(path, kind):
                self.note(f"{path!r} is of the type {kind!r}, which this version cannot read.", path, kind)

    def _keep(self, attributes: Iterable[Attribute]) -> None:
        """Take each attribute once, however often the server sends it."""
        known: dict[tuple[str, AttributeType], Attribute] = {}
        for item in attributes:
            first = known.setdefault((item.path, item.type), item)
            # As text, since not-a-number differs from itself.
            if first is not item and repr(first) != repr(item):
                self.error(f"The server sends two values of {item.path!r}; the first is kept.", item.path, item.type)
        self._kept = list(known.values())

    def error(self, message: str, path: str | None = None, kind: str | None = None) -> None:
        """Report something that makes the run partial."""
        self._errors.add(message, path, kind)

    def note(self, message: str, path: str | None = None, kind: str | None = None) -> None:
        """Report something that does not make the run partial."""
        self._notes.add(message, path, kind)

    def requests(self) -> list[Request]:
        """What to ask for: every series from its end."""
        return [Request(self.run, item.path, item.type) for item in self._kept if item.type in SERIES_TYPES]

    def singles(self) -> Iterator[Attribute]:
        """The attributes that are not series."""
        return (item for item in self._kept if item.type not in SERIES_TYPES)

    def refuse(self, item: Attribute, problem: Exception) -> None:
        """Report a value that no row can hold."""
        self._failed.add((item.path, item.type))
        self.error(f"The value of {item.path!r} cannot be kept: {problem}.", item.path, str(item.type))

    def values(self) -> Iterator[pa.RecordBatch]:
        """Give the attributes that are not series."""
        for item in self.singles():
            try:
                self._builder.value(item.type, item.path, value_cell(item))
            except (ValueError, OverflowError, TypeError) as problem:
                self.refuse(item, problem)
            yield from self._builder.drain()

    def take(self, parts: Sequence[FloatPart | ObjectPart]) -> Iterator[pa.RecordBatch]:
        """Give the points that arrived."""
        accepted = list(self.accepted(parts))
        yield from self.points([part for part in accepted if isinstance(part, ObjectPart)])
        floats = [part for part in accepted if isinstance(part, FloatPart)]
        for batch, _ in float_batches(self._project_id, [self.run.run_id], [(0, part) for part in floats]):
            yield batch

    def accepted(self, parts: Sequence[FloatPart | ObjectPart]) -> Iterator[FloatPart | ObjectPart]:
        """Remember what arrived, and leave out what no row can hold."""
        for part in parts:
            if isinstance(part, FloatPart):
                yield self._accepted_floats(part)
            else:
                yield self._accepted_objects(part)

    def _accepted_floats(self, part: FloatPart) -> FloatPart:
        path = part.request.path
        good = in_range(part.steps)
        if not good.all():
            self._out_of_range(part.request, len(good) - int(good.sum()))
            part = FloatPart(
                part.request,
                part.steps[good],
                part.times[good],
                part.values[good],
                None if part.preview is None else part.preview[good],
                None if part.completion is None else part.completion[good],
            )
        beyond = self._odd_times.beyond(path, part.times)
        if beyond is not None:
            part.times = np.where(beyond, NO_TIME, part.times)
        final = part.steps
        if part.preview is not None:
            self._previews.update((path + PREVIEW, path + COMPLETION))
            final = part.steps[~part.preview]
        self._reach(part.request, final)
        return part

    def _accepted_objects(self, part: ObjectPart) -> ObjectPart:
        points = [point for point in part.points if -MAX_STEP < point[0] < MAX_STEP]
        if len(points) < len(part.points):
            self._out_of_range(part.request, len(part.points) - len(points))
        times = np.asarray([point[1] for point in points], np.int64)
        beyond = self._odd_times.beyond(part.request.path, times)
        if beyond is not None:
            points = [
                (step, None if odd else time, value)
                for odd, (step, time, value) in zip(beyond.tolist(), points, strict=True)
            ]
        self._reach(part.request, np.asarray([point[0] for point in points], np.float64))
        return ObjectPart(part.request, points)

    def _out_of_range(self, request: Request, count: int) -> None:
        self.fail(request, f"{count:,} of its points have steps that no row can hold.")

    def points(self, parts: Sequence[ObjectPart]) -> Iterator[pa.RecordBatch]:
        """Give points of strings, histograms and files, as far as they fill batches."""
        for part in parts:
            refused = add_points(self._builder, part)
            if refused:
                self.fail(part.request, f"{refused:,} of its points cannot be kept.")
            yield from self._builder.drain()

    def fail(self, request: Request, reason: str) -> None:
        """Mark a series as not read to its end."""
        self._failed.add((request.path, request.type))
        self.error(f"{request.path!r} could not be read: {reason}", request.path, str(request.type))

    def finish(self) -> Iterator[pa.RecordBatch]:
        """Give the rows that are left."""
        yield from self._builder.flush()

    def end(self) -> RunEnd:
        """Compare what was promised with what arrived and end the run."""
        promised: Counter[str] = Counter()
        inherited = 0
        for item in self._kept:
            if item.type not in SERIES_TYPES or self._expected(item):
                promised[str(item.type)] += 1
            else:
                inherited += self.run.parent is not None
        promised[str(AttributeType.FLOAT_SERIES)] += len(self._previews)
        if inherited:
            self.note(f"{inherited} series are its ancestors' alone: the run has no points of its own in them.")
        notes = (*self._notes.told(), *self._odd_times.issues())
        return RunEnd(self.run.run_id, +promised, self._errors.told(), notes)

    def _expected(self, item: Attribute) -> bool:
        """True if points of a series should have arrived; reports what is missing."""
        key = (item.path, item.type)
        reached = self._reached.get(key)
        if key in self._failed:
            return True
        if item.undescribed and reached is None:
            self.error(f"{item.path!r} could not be read: {item.undescribed}", item.path, str(item.type))
            return True
        if item.undescribed:
            self.note(
                f"The server does not describe the series {item.path!r}, so that its end cannot be compared: "
                f"{item.undescribed}",
                item.path,
                str(item.type),
            )
            return True
        if reached is None:
            if self.run.parent is not None:
                return False
            if item.previews or (item.last_step is None and item.type is AttributeType.FLOAT_SERIES):
                self.note(f"The series {item.path!r} has no final point.", item.path, str(item.type))
                return False
            self.error(
                f"The server lists the series {item.path!r} and sent none of its points.",
                item.path,
                str(item.type),
            )
        elif item.last_step is not None and not item.previews and not _goes_to(reached, item.last_step):
            self.error(
                f"The series {item.path!r} ends at step {reached / 1e6:g}; the server says {item.last_step:g}.",
                item.path,
                str(item.type),
            )
        return True

    def _reach(self, request: Request, steps: Floats) -> None:
        """Remember how far a series got."""
        if len(steps):
            key = (request.path, request.type)
            last = micro_step(float(steps.max()))
            self._reached[key] = max(last, self._reached.get(key, last))

    def _count(self, attributes: Sequence[Attribute]) -> None:
        """Compare the number of attributes listed with the numbers that the server keeps with the run."""
        listed = Counter(item.type for item in attributes)
        for item in attributes:
            kind = _COUNTED.get(item.path)
            if kind is not None and isinstance(item.value, int) and listed[kind] < item.value:
                self.error(
                    f"The server counts {item.value} attributes of type {kind} and lists {listed[kind]}.",
                    None,
                    str(kind),
                )


def _goes_to(reached: int, step: float) -> bool:
    """True if micro-steps reach a step, which may be any number at all."""
    return abs(step) < MAX_STEP and reached >= micro_step(step)


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
        """Take a run with all of its points; what cannot be kept is an error of its end."""
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

    def _batches(self, run_ids: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, Ints]]:
        yield from float_batches(self._project_id, run_ids, self._floats)
        for number, batch in self._others:
            yield batch, np.full(len(batch), number)


class Pages:
    """Pages of a batch of runs, asked for ahead and given out run by run."""

    def __init__(
        self,
        collectors: Sequence[Collector],
        pool: ThreadPoolExecutor,
        concurrency: int,
        groups_of: Callable[[Sequence[Request]], Iterable[list[Request]]],
        answer: Callable[[Sequence[Request]], Response],
    ) -> None:
        self._concurrency = concurrency
        self._answer = answer
        self._collectors = collectors
        self._pool = pool
        self._position = {collector.run.sys_id: number for number, collector in enumerate(collectors)}
        requests = [request for collector in collectors for request in collector.requests()]
        floats = [request for request in requests if request.type is AttributeType.FLOAT_SERIES]
        others = [request for request in requests if request.type is not AttributeType.FLOAT_SERIES]
        groups = [*groups_of(floats), *groups_of(others)]
        self._groups = deque(sorted(groups, key=lambda group: self._position[group[0].run.sys_id]))
        self._awaited: dict[int, int] = defaultdict(int)
        for group in groups:
            for position in self._positions(group):
                self._awaited[position] += 1
        self._waiting: dict[int, list[FloatPart | ObjectPart]] = defaultdict(list)
        self._rest: dict[int, deque[list[Request]]] = defaultdict(deque)
        self._ahead: list[int] = []
        self._under_way: dict[Future[Response], tuple[list[Request], bool]] = {}

    @property
    def all_asked(self) -> bool:
        """True if no group is left to be asked for the first time."""
        return not self._groups

    def begin(self) -> None:
        """Request the first groups before the first run's turn."""
        self._ask(0)

    def of_run(self, position: int) -> Iterator[Sequence[FloatPart | ObjectPart]]:
        """Give the points of a run as they arrive; call for every run, in order."""
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
        most = self._concurrency
        while len(self._under_way) < most:
            rest = self._rest[position]
            if rest:
                requests, shared = rest.popleft(), False
            elif self._groups and (self._may_ask_ahead(position)):
                requests, shared = self._groups.popleft(), True
            else:
                return
            self._under_way[self._pool.submit(self._answer, requests)] = (requests, shared)

    def _may_ask_ahead(self, position: int) -> bool:
        if self._position[self._groups[0][0].run.sys_id] <= position:
            return True
        self._ahead = [last for last in self._ahead if last > position]
        return len(self._ahead) < self._concurrency

    def _collect(self, future: Future[Response]) -> None:
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
            pieces = 1 if shared else max(1, min(len(left), self._concurrency - len(self._under_way)))
            size = -(-len(left) // pieces)
            self._rest[position].extend(left[start : start + size] for start in range(0, len(left), size))

    def _positions(self, group: Sequence[Request]) -> set[int]:
        return {self._position[request.run.sys_id] for request in group}


_ATTRIBUTES_TOGETHER: Final = 20_000
"""Attributes of a batch of runs, as far as their number is known beforehand."""
_NAMES: Final = 1_000
_NAMES_BYTES: Final = 200_000
"""Attributes of a run that are asked for by name at once: neptune-query stays below 220,000 bytes of names."""
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
    """Runs whose attributes have arrived and whose points are being requested."""

    batch: _Batch
    collectors: list[Collector]
    pages: Pages


class RunReader:
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
        """Request the attributes of a run that cannot be read whole by their names, fewer where that fails too.

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

        def fetch(names: list[str]) -> str | None:
            try:
                (came,) = self._client.attributes(self._project, [run], self._types, names)
            except RefusedError as error:
                self._check_alive(error)
                return str(error)
            found.attributes.extend(came.attributes)
            found.unknown.update(came.unknown)
            return None

        unread = [
            Attribute(path, kind, undescribed=reason)
            for path, reason in fetch_in_halves(_together(sorted(listed)), fetch, str(failure)).items()
            for kind in sorted(listed[path])
        ]
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
        """Begin to request the points of runs whose attributes have arrived."""
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

    def _answer(self, requests: Sequence[Request], *, again: bool = False) -> Response:
        """Ask for points; where that fails for good, ask for less until only what fails is left."""
        try:
            return Response(self._client.page(self._project, requests, again=again))
        except RefusedError as error:
            self._check_alive(error)
            if len(requests) == 1:
                return self._last_try(requests[0])
        middle = len(requests) // 2
        first, second = (self._answer(part, again=True) for part in (requests[:middle], requests[middle:]))
        page = Page([*first.page.parts, *second.page.parts], [*first.page.rest, *second.page.rest])
        return Response(page, [*first.failed, *second.failed])

    def _last_try(self, request: Request) -> Response:
        try:
            return Response(self._client.page(self._project, [request], again=True))
        except RefusedError as error:
            return Response(Page(), [(request, str(error))])

    def _check_alive(self, error: RefusedError) -> None:
        """Raise SourceUnavailableError if the server no longer responds at all."""
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

    def __init__(self, reading: RunReader, left: deque[ListedRun], pool: ThreadPoolExecutor) -> None:
        self._reading = reading
        self._left = left
        self._pool = pool
        self._attributes: Future[_Batch] | None = None
        self._begun: _Begun | None = None
        self._ask()

    def look(self) -> None:
        """Begin with the next batch's points if its attributes have arrived; :meth:`take` raises what went wrong."""
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
