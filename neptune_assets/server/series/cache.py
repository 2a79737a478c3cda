"""What was used last, up to a total size, for any number of threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Cache(Generic[_T]):
    """Values by key; those used least recently go when the sizes of all are more than ``limit``."""

    def __init__(self, limit: int, size: Callable[[_T], int] = lambda _: 1) -> None:
        self._limit = limit
        self._size = size
        self._total = 0
        self._items: OrderedDict[Hashable, _T] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return what is kept under a key, making it if there is nothing. Two threads may make the same."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
        made = make()
        with self._lock:
            if key not in self._items:
                self._items[key] = made
                self._total += self._size(made)
            while self._total > self._limit and len(self._items) > 1:
                _, dropped = self._items.popitem(last=False)
                self._total -= self._size(dropped)
        return made
