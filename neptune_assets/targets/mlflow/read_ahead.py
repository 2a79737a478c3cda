"""Read the next portion while the one before is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Final, TypeVar

T = TypeVar("T")

_END: Final = object()


@contextmanager
def read_ahead(items: Iterable[T]) -> Iterator[Iterator[T]]:
    """Make the first item, then hand out an iterator that makes the next one while the caller works on the last.

    What making an item raises is raised where the item would have come. Two items are held at most.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:

        def made(following: Future[Any]) -> Iterator[T]:
            while (item := following.result()) is not _END:
                following = pool.submit(next, source, _END)
                yield item

        first = pool.submit(next, source, _END)
        wait([first])
        yield made(first)
