"""Progress of long work as log lines: done of total, rate, time left, about every ten seconds."""

from __future__ import annotations

import time
from collections.abc import Callable


class ProgressLog:
    """Write one line at most every ``interval`` seconds; work that ends sooner writes none."""

    def __init__(self, write: Callable[[str], None], what: str, interval: float = 10.0) -> None:
        self._write = write
        self._what = what
        self._interval = interval
        self._start = self._last = time.monotonic()

    def update(self, done: int, total: int, rows: int, share: float | None = None) -> None:
        """Report ``done`` of ``total`` runs and ``rows``; ``share`` is the part of the work done, if known better."""
        now = time.monotonic()
        if now - self._last < self._interval:
            return
        self._last = now
        elapsed = now - self._start
        part = share if share else (done / total if total else 0.0)
        left = duration(elapsed / part - elapsed) if part else "unknown time"
        self._write(f"{self._what}: {done:,}/{total:,} runs, {rows:,} rows, {rows / elapsed:,.0f} rows/s, {left} left")


def duration(seconds: float) -> str:
    """Return seconds as a person would write them: hours and minutes, minutes and seconds, or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
