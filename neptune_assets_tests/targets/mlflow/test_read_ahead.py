from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from neptune_assets.targets.mlflow.database import read_ahead

PATIENCE = 60.0


def test_items_come_in_order_and_two_are_made_before_they_are_needed() -> None:
    made: list[int] = []
    second = threading.Event()

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            if number == 1:
                second.set()
            yield number

    with read_ahead(items()) as ahead:
        assert made == [0]
        assert next(ahead) == 0
        assert second.wait(PATIENCE)
        assert 2 not in made
        assert list(ahead) == [1, 2, 3, 4]


def test_nothing_is_nothing() -> None:
    with read_ahead([]) as ahead:
        assert list(ahead) == []


@pytest.mark.parametrize("good", [0, 1, 3])
def test_what_making_an_item_raises_comes_in_its_place(good: int) -> None:
    def items() -> Iterator[int]:
        yield from range(good)
        raise OSError("the disk is gone")

    with read_ahead(items()) as ahead:
        assert [next(ahead) for _ in range(good)] == list(range(good))
        with pytest.raises(OSError, match="the disk is gone"):
            next(ahead)


def test_leaving_early_ends_the_thread() -> None:
    before = threading.active_count()
    with read_ahead(range(100)) as ahead:
        assert next(ahead) == 0
    assert threading.active_count() == before
