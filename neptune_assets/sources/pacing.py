"""When a request to a live server may be sent, and when one that failed is tried again.

One clock for all threads: a server that asks to wait can be left alone by all of them.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Final

_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0


class Pace:
    """Spaces requests out to at most ``per_second``, and holds all of them back when the server says so."""

    def __init__(self, per_second: float | None) -> None:
        self._gap = 0.0 if per_second is None else 1.0 / per_second
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> None:
        """Wait until one more request may be sent."""
        with self._lock:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + self._gap
        if mine > now:
            time.sleep(mine - now)

    def hold(self, seconds: float) -> None:
        """Let no request begin for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class Attempts:
    """Tries of one request until so many seconds have passed. A server's wish goes before our own pauses."""

    def __init__(self, seconds: float, pace: Pace | None = None, *, to_the_end: bool = False) -> None:
        """``pace`` is held back for as long as a server wishes.

        A pause that would last longer than there is time ends the tries, or, with ``to_the_end``, is made shorter and
        followed by one last try.
        """
        self._until = time.monotonic() + seconds
        self._pace = pace
        self._to_the_end = to_the_end
        self.count = 1

    def pause(self, wished: float | None = None) -> float | None:
        """Return the seconds to sleep before the next try, or None if it is time to give up.

        ``wished`` is what the server asked for, as :func:`retry_after` reads it; it extends nothing.
        """
        left = self._until - time.monotonic()
        pause = backoff(self.count) if wished is None else wished
        if self._to_the_end and left > 0:
            pause = min(pause, left)
        elif pause > left:
            return None
        self.count += 1
        if wished is not None and self._pace is not None:
            self._pace.hold(wished)
        return pause

    def again(self, wished: float | None = None) -> bool:
        """Sleep as long as is due and return True, or return False if it is time to give up."""
        pause = self.pause(wished)
        if pause is None:
            return False
        time.sleep(pause)
        return True


def backoff(failures: int) -> float:
    """Return the seconds to pause after so many failures in a row: growing, bounded, never alike for two of us."""
    ceiling = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures - 1, 10))
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311 - no secret
