"""When something that failed is tried again: one policy a layer, and no layer repeats what the one below gave up.

A layer that tries an operation again until its policy ends it raises an error with ``retried`` set
(:class:`~neptune_assets.errors.NeptuneAssetsError`): layers above it in this process pass that on at once. Only the
orchestrating layer, which waits longest, tries once more.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Seconds to pause before each further try; there are as many tries as pauses, and one more.

    ``jitter`` is the share by which a pause is longer or shorter by chance, ``longest_asked`` the seconds that a server
    can ask for at most.
    """

    pauses: Sequence[float]
    jitter: float = 0.0
    longest_asked: float = 120.0

    @property
    def tries(self) -> int:
        """How often an operation is tried at most."""
        return len(self.pauses) + 1

    def pause(self, failures: int, asked: float | None = None) -> float | None:
        """Return the seconds to wait after so many failures in a row, None if it is time to give up.

        ``asked`` is what the server wants, as :func:`retry_after` reads it.
        """
        if failures > len(self.pauses):
            return None
        if asked is not None:
            return min(asked, self.longest_asked)
        return self.pauses[failures - 1] * random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311 - no secret


def retry_after(text: str | None) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks to wait, a number or a date; None if it says nothing."""
    if not text:
        return None
    for read in (float, _seconds_until):
        try:
            return max(0.0, read(text))
        except (ValueError, TypeError, OverflowError):
            continue
    return None


def _seconds_until(date: str) -> float:
    moment = parsedate_to_datetime(date)
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
