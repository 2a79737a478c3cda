"""In which order runs are loaded, and several of them at once: parents before their forks, RUN-2 before RUN-10."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from neptune_assets.lake.manifest import RunRecord


def natural(run_id: str) -> tuple[tuple[int, str], ...]:
    """Return what ids are ordered by so that numbers in them count as numbers."""
    parts = re.split(r"([0-9]+)", run_id)
    return (*((int(part), "") if part.isdecimal() else (-1, part) for part in parts), (-2, run_id))


def parents_first(records: Mapping[str, RunRecord]) -> list[str]:
    """Order run ids so that a fork's parent comes before it; otherwise by run id, numbers in it as numbers.

    Parents that are not among the records do not matter; in a circle of parents the smallest run id comes first.
    """
    order: dict[str, None] = {}
    for run_id in sorted(records, key=natural):
        chain: dict[str, None] = {}
        current: str | None = run_id
        while current is not None and current in records and current not in order and current not in chain:
            chain[current] = None
            current = records[current].parent
        order.update(dict.fromkeys(reversed(chain)))
    return list(order)


def why_partial(record: RunRecord) -> str:
    """Return why a run is withheld, in the words of the lake's manifest."""
    reasons = [issue.message for issue in record.errors[:3]]
    return "partial in the lake" + (f": {'; '.join(reasons)}" if reasons else "")


T = TypeVar("T")


class ReadyQueue:
    """Hands out run ids in a given order, but a fork only after its parent has finished."""

    def __init__(self, order: Sequence[str], parents: Mapping[str, str | None]) -> None:
        self._order = order
        self._ready: list[int] = []
        self._waiting: dict[str, list[int]] = {}
        """Run id -> places in the order of forks that wait for it."""
        seen: set[str] = set()
        for place, run_id in enumerate(order):
            parent = parents.get(run_id)
            # A parent that comes later, as in a circle, or never, is not waited for.
            if parent is not None and parent in seen:
                self._waiting.setdefault(parent, []).append(place)
            else:
                self._ready.append(place)
            seen.add(run_id)

    def take(self) -> str | None:
        """Return the first run in the order that may begin now; None if all others wait, or none is left."""
        return self._order[heapq.heappop(self._ready)] if self._ready else None

    def finished(self, run_id: str) -> None:
        """Let the forks of a run begin, whatever became of it."""
        for place in self._waiting.pop(run_id, ()):
            heapq.heappush(self._ready, place)


def run_concurrently(queue: ReadyQueue, at_once: int, job: Callable[[str], T]) -> Generator[tuple[str, T], None, None]:
    """Do a job for every run, at most ``at_once`` at the same time, and yield (run id, result) as they finish.

    One at a time runs in the caller's own thread. The next run begins when the caller asks for the next result. What a
    job raises is raised here; jobs that are under way are always waited for.
    """
    if at_once == 1:
        while (run_id := queue.take()) is not None:
            result = job(run_id)
            queue.finished(run_id)
            yield run_id, result
        return
    with ThreadPoolExecutor(at_once, thread_name_prefix="load") as pool:
        running: dict[Future[T], str] = {}
        while True:
            while len(running) < at_once and (run_id := queue.take()) is not None:
                running[pool.submit(job, run_id)] = run_id
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run_id = running.pop(future)
                queue.finished(run_id)
                yield run_id, future.result()
