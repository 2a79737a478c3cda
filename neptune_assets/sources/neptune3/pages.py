"""Pages of series for a batch of runs: asked for ahead, many at a time, and given out run by run.

A group of series may span runs; its points wait here until their run's turn, so at most ``concurrency`` pages are under
way and as many wait.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from neptune_assets.schema import AttributeType
from neptune_assets.sources.neptune3.collector import Collector
from neptune_assets.sources.neptune3.model import Answer, FloatPart, ObjectPart, Request


class Pages:
    """Pages of a batch of runs, asked for ahead and given out run by run."""

    def __init__(
        self,
        collectors: Sequence[Collector],
        pool: ThreadPoolExecutor,
        concurrency: int,
        groups_of: Callable[[Sequence[Request]], Iterable[list[Request]]],
        answer: Callable[[Sequence[Request]], Answer],
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
        self._under_way: dict[Future[Answer], tuple[list[Request], bool]] = {}

    @property
    def all_asked(self) -> bool:
        """True if no group is left to be asked for the first time."""
        return not self._groups

    def begin(self) -> None:
        """Ask for the first groups before the first run's turn comes."""
        self._ask(0)

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

    def _collect(self, future: Future[Answer]) -> None:
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
