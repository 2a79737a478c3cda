"""Progress of long work: done of total, rate, time left; as lines of a log, or as a bar on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TextIO

_BAR: Final = 24
"""Characters of a bar."""


class ProgressLog:
    """Write one line at most every ``interval`` seconds; work that ends sooner writes none."""

    def __init__(self, write: Callable[[str], object], what: str, interval: float = 10.0) -> None:
        self._write = write
        self._what = what
        self._interval = interval
        self._start = self._last = time.monotonic()

    def update(self, done: int, total: int, rows: int, share: float | None = None, more: str = "") -> None:
        """Report ``done`` of ``total`` runs and ``rows``; ``share`` is the part of the work done, if known better.

        ``more`` is added to the line.
        """
        now = time.monotonic()
        if now - self._last < self._interval:
            return
        self._last = now
        elapsed = now - self._start
        part = share if share else (done / total if total else 0.0)
        left = duration(elapsed / part - elapsed) if part else "unknown time"
        self._line(
            part,
            f"{self._what}: {done:,}/{total:,} runs, {rows:,} rows, {rows / elapsed:,.0f} rows/s, {more}{left} left",
        )

    def _line(self, share: float, text: str) -> None:
        self._write(text)


class ShellProgress(ProgressLog):
    """On a terminal a bar that is drawn over, twice a second; else lines as of a log. For standard error."""

    def __init__(self, stream: TextIO, what: str) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        super().__init__(stream.write, what, interval=0.5 if self._terminal else 10.0)

    def _line(self, share: float, text: str) -> None:
        if self._terminal:
            filled = min(_BAR, round(share * _BAR))
            self._write(f"[{'#' * filled}{'-' * (_BAR - filled)}] {share:4.0%} {text}\x1b[K\r")
        else:
            self._write(f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._terminal:
            self._write("\x1b[K")
            self._stream.flush()


def duration(seconds: float) -> str:
    """Return seconds as a person would write them: hours and minutes, minutes and seconds, or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
