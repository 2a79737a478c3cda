"""Runs that wait for each other, because handling many at once costs little more than handling one."""

from __future__ import annotations

import time
from typing import Final, Generic, TypeVar

SECONDS: Final = 1.0
"""Nothing waits longer than this for others."""

_T = TypeVar("_T")


class Waiting(Generic[_T]):
    """What waits, in order: up to a number of things and of bytes they hold."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._items: list[_T] = []
        self._bytes = 0
        self._since = 0.0

    def add(self, item: _T, nbytes: int) -> None:
        """Have one more wait."""
        if not self._items:
            self._since = time.monotonic()
        self._items.append(item)
        self._bytes += nbytes

    @property
    def due(self) -> bool:
        """True if enough wait, or one for long enough."""
        if not self._items:
            return False
        full = len(self._items) >= self._most or self._bytes >= self._most_bytes
        return full or time.monotonic() - self._since >= SECONDS

    def take(self) -> list[_T]:
        """Take all that wait."""
        items, self._items, self._bytes = self._items, [], 0
        return items
