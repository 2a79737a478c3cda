from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from neptune_assets.schema import AttributeType
from neptune_assets.sources.neptune2.listing import Listed
from neptune_assets.sources.neptune2.reading import PendingRun, RequestScheduler
from neptune_assets.sources.neptune2.series import Page, Points

PAGE = 10_000


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def run(number: int) -> PendingRun:
    return PendingRun("ws/p", Listed(f"P-{number}", f"key {number}", ""), number, lambda path, kind: True)


class Series:
    """A request that takes so many pages; ``asked`` is set when the page of that number is asked for."""

    def __init__(self, run: PendingRun, pages: int, number: int = 0) -> None:
        self.run = run
        self.pages = pages
        self.count = 0
        self.number = number
        self.asked = threading.Event()

    def send(self) -> Page:
        self.count += 1
        if self.count == self.number:
            self.asked.set()
        numbers = np.full(PAGE, self.count, np.int64)
        return Page(numbers, numbers, numbers.astype(np.float64), self.pages * PAGE)

    def receive(self, response: Future[Page]) -> bool:
        self.run.arrive(Points("x", AttributeType.FLOAT_SERIES, response.result()))
        return self.count < self.pages


class Slow:
    """A request that is answered once an event is set, or when that takes too long."""

    def __init__(self, run: PendingRun, event: threading.Event, seconds: float) -> None:
        self.run = run
        self._event = event
        self._seconds = seconds
        self.seen = False

    def send(self) -> bool:
        return self._event.wait(self._seconds)

    def receive(self, response: Future[bool]) -> bool:
        self.seen = response.result()
        return False


def pages_of(scheduler: RequestScheduler, run: PendingRun) -> list[int]:
    return [int(points.page.steps[0]) for some in scheduler.points_of(run) for points in some]


def test_pages_come_in_order_and_all_of_them(pool: ThreadPoolExecutor) -> None:
    scheduler = RequestScheduler(pool, 2)
    runs = [run(number) for number in range(5)]
    for each in runs:
        scheduler.add(Series(each, 3))
    assert [pages_of(scheduler, each) for each in runs] == [[1, 2, 3]] * 5


def test_a_run_is_asked_about_while_an_earlier_one_is_read(pool: ThreadPoolExecutor) -> None:
    scheduler = RequestScheduler(pool, 2)
    first, second = run(0), run(1)
    later = Series(second, 5, number=5)
    slow = Slow(first, later.asked, seconds=60)
    scheduler.add(slow)
    scheduler.add(later)
    assert pages_of(scheduler, first) == []
    assert slow.seen
    assert pages_of(scheduler, second) == [1, 2, 3, 4, 5]


def test_what_waits_for_its_turn_is_bounded(pool: ThreadPoolExecutor) -> None:
    scheduler = RequestScheduler(pool, 2)
    first, second = run(0), run(1)
    later = Series(second, 60, number=40)
    slow = Slow(first, later.asked, seconds=1)
    scheduler.add(slow)
    scheduler.add(later)
    assert pages_of(scheduler, first) == []
    assert not slow.seen
    assert later.count * PAGE < 300_000
    # Its turn has come.
    assert pages_of(scheduler, second) == list(range(1, 61))


def test_a_run_without_requests_has_no_points_and_waits_for_nobody(pool: ThreadPoolExecutor) -> None:
    scheduler = RequestScheduler(pool, 2)
    assert pages_of(scheduler, run(0)) == []
