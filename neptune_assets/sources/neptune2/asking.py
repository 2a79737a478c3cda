"""Asks the server ahead of the thread that reads, which takes the answers: other threads do nothing but ask.

Threads that turn many small answers into rows at the same time would only take Python's lock from each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from heapq import heappop, heappush
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

from neptune_assets.sources.neptune2.open_run import OpenRun
from neptune_assets.sources.neptune2.series import Points

_QUEUED: Final = 4
"""Questions handed to each thread beforehand: they are answered while the rows of earlier runs are written."""
_HELD: Final = 262_144
"""Rows of runs whose turn has not come that may wait; while there are more, only the run whose turn it is goes on."""


class Question(Protocol):
    """Something to ask about a run."""

    run: OpenRun

    def ask(self) -> Any:
        """Ask the server, in a thread of its own."""

    def take(self, answer: Future[Any]) -> bool:
        """Tell the run what was answered, in the thread that reads; True if there is more to ask."""


class Asking:
    """Questions about runs: those about earlier runs are asked first."""

    def __init__(self, pool: ThreadPoolExecutor, concurrency: int) -> None:
        """``pool`` has ``concurrency`` threads."""
        self._pool = pool
        self._most = _QUEUED * concurrency
        self._waiting: list[tuple[int, int, Question]] = []
        self._order = count()
        self._under_way: dict[Future[Any], Question] = {}
        self._answers: SimpleQueue[Future[Any]] = SimpleQueue()
        self._turn = -1
        self._held = 0

    def add(self, question: Question) -> None:
        """Have a question asked when its turn comes."""
        question.run.unanswered += 1
        self._wait(question)
        self._ask()

    def points_of(self, run: OpenRun) -> Iterator[list[Points]]:
        """Give the points of a run as they come until everything is answered; call for every run, in order."""
        self._turn = run.number
        self._held -= run.weight
        while True:
            self._ask()
            if run.weight:
                yield run.take_points()
            elif run.unanswered:
                self._collect()
            else:
                return

    def _wait(self, question: Question) -> None:
        heappush(self._waiting, (question.run.number, next(self._order), question))

    def _ask(self) -> None:
        while self._waiting and len(self._under_way) < self._most:
            if self._waiting[0][0] > self._turn and self._held >= _HELD:
                return
            question = heappop(self._waiting)[2]
            future = self._pool.submit(question.ask)
            self._under_way[future] = question
            future.add_done_callback(self._answers.put)

    def _collect(self) -> None:
        """Wait for an answer, and take all that have come."""
        answer = self._answers.get()
        while True:
            question = self._under_way.pop(answer)
            run = question.run
            before = run.weight
            if question.take(answer):
                self._wait(question)
            else:
                run.unanswered -= 1
            if run.number > self._turn:
                self._held += run.weight - before
            try:
                answer = self._answers.get_nowait()
            except Empty:
                return
