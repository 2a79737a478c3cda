"""Several runs at once, parents before their forks: who may begin when, and threads to work in."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


class Turns:
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


def in_lanes(turns: Turns, at_once: int, job: Callable[[str], T]) -> Generator[tuple[str, T], None, None]:
    """Do a job for every run, at most ``at_once`` at the same time, and yield (run id, result) as they finish.

    One at a time runs in the caller's own thread. The next run begins when the caller asks for the next result. What a
    job raises is raised here; jobs that are under way are always waited for.
    """
    if at_once == 1:
        while (run_id := turns.take()) is not None:
            result = job(run_id)
            turns.finished(run_id)
            yield run_id, result
        return
    with ThreadPoolExecutor(at_once, thread_name_prefix="load") as pool:
        running: dict[Future[T], str] = {}
        while True:
            while len(running) < at_once and (run_id := turns.take()) is not None:
                running[pool.submit(job, run_id)] = run_id
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run_id = running.pop(future)
                turns.finished(run_id)
                yield run_id, future.result()
