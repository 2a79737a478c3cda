"""When a request may be sent, and when one that failed is tried again.

One clock for all threads: a server that asks to wait is left alone by all of them.
"""

from __future__ import annotations

import random
import threading
import time
from email.utils import parsedate_to_datetime
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
    """Tries of one request: ``again`` says whether to try once more, after the right pause."""

    def __init__(self, seconds: float, pace: Pace) -> None:
        self._until = time.monotonic() + seconds
        self._pace = pace
        self.count = 1

    def again(self, retry_after: str | None = None) -> bool:
        """Sleep as long as is due and return True, or return False if it is time to give up.

        A server's wish (``Retry-After``: seconds or a date) goes before our own pauses and extends nothing.
        """
        left = self._until - time.monotonic()
        wished = _seconds(retry_after)
        ceiling = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(self.count - 1, 10))
        pause = random.uniform(ceiling / 2, ceiling) if wished is None else wished  # noqa: S311 - no secret
        if pause > left:
            return False
        self.count += 1
        if wished is not None:
            self._pace.hold(wished)
        time.sleep(pause)
        return True


def _seconds(retry_after: str | None) -> float | None:
    if not retry_after:
        return None
    for read in (float, _until):
        try:
            return max(0.0, read(retry_after))
        except (ValueError, TypeError, OverflowError):
            continue
    return None


def _until(date: str) -> float:
    return parsedate_to_datetime(date).timestamp() - time.time()
