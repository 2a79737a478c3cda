"""What the direct way into MLflow's database rests on: who may use one SQLite file, and reading ahead of the writer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from neptune_assets.targets.mlflow.database import ReadWriteLock, lock_of, prefetch

PATIENCE = 60.0


def begun(step: Callable[[], None]) -> threading.Event:
    """Do something in a thread of its own; the event tells when it is done."""
    done = threading.Event()

    def work() -> None:
        step()
        done.set()

    threading.Thread(target=work, daemon=True).start()
    return done


def test_readers_come_in_beside_each_other_and_beside_a_writer() -> None:
    lock = ReadWriteLock()
    lock.acquire_write()
    lock.acquire_read()
    assert begun(lock.acquire_read).wait(PATIENCE)


def test_writers_come_one_after_the_other() -> None:
    lock = ReadWriteLock()
    lock.acquire_write()
    second = begun(lock.acquire_write)
    assert not second.wait(0.05)
    lock.release_write()
    assert second.wait(PATIENCE)


def test_an_exclusive_writer_waits_for_readers_and_keeps_others_out_until_it_leaves() -> None:
    lock = ReadWriteLock()
    lock.acquire_write()
    lock.acquire_read()
    shut = begun(lock.upgrade)
    assert not shut.wait(0.05)
    late = begun(lock.acquire_read)
    assert not late.wait(0.05)
    lock.release_read()
    assert shut.wait(PATIENCE)
    assert not late.wait(0.05)
    # Upgrading again changes nothing.
    lock.upgrade()
    lock.release_write()
    assert late.wait(PATIENCE)


def test_one_lock_for_one_file() -> None:
    assert lock_of("/a") is lock_of("/a")
    assert lock_of("/a") is not lock_of("/b")


def test_items_come_in_order_and_two_are_made_before_they_are_needed() -> None:
    made: list[int] = []
    second = threading.Event()

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            if number == 1:
                second.set()
            yield number

    with prefetch(items()) as ahead:
        assert made == [0]
        assert next(ahead) == 0
        assert second.wait(PATIENCE)
        assert 2 not in made
        assert list(ahead) == [1, 2, 3, 4]


def test_nothing_is_nothing() -> None:
    with prefetch([]) as ahead:
        assert list(ahead) == []


@pytest.mark.parametrize("good", [0, 1, 3])
def test_what_making_an_item_raises_comes_in_its_place(good: int) -> None:
    def items() -> Iterator[int]:
        yield from range(good)
        raise OSError("the disk is gone")

    with prefetch(items()) as ahead:
        assert [next(ahead) for _ in range(good)] == list(range(good))
        with pytest.raises(OSError, match="the disk is gone"):
            next(ahead)


def test_leaving_early_ends_the_thread() -> None:
    before = threading.active_count()
    with prefetch(range(100)) as ahead:
        assert next(ahead) == 0
    assert threading.active_count() == before
