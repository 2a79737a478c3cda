"""When a request may be sent, when one that failed is tried again, and what is said when it is given up."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar

from neptune_assets.errors import SourceUnavailableError
from neptune_assets.settings import LiveSource
from neptune_assets.sources.neptune2.errors import CallError

PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that another try may heal."""
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 30.0
_QUOTED: Final = 300
"""Characters of a refusal that are quoted."""
_TOLD: Final = frozenset({"attribute", "projectIdentifier", "experimentId", "hash", "index", "offset"})
"""Parameters that tell a user what was asked for."""
_LOG = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class PassingError(Exception):
    """A failure that another try may heal; ``pause`` is what the server asked to wait, in seconds."""

    def __init__(self, reason: str, status: int = 0, pause: float | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.pause = pause


class Retries:
    """Tries calls again until ``retry_seconds`` have passed. Safe to use from many threads."""

    def __init__(self, settings: LiveSource, url: str, alive: Callable[[], bool]) -> None:
        """``alive`` asks the server once if it answers anything; that tells a bad call from a server that is down."""
        self._seconds = settings.retry_seconds
        self._url = url
        self._alive = alive

    def run(self, operation: str, parameters: Mapping[str, Any], attempt: Callable[[], _Answer]) -> _Answer:
        """Call ``attempt`` until it raises no PassingError any more, or time is up.

        Raises CallError if the server answers other calls, else SourceUnavailableError.
        """
        started = time.monotonic()
        tries = 0
        while True:
            try:
                return attempt()
            except PassingError as error:
                failure = error
            tries += 1
            left = started + self._seconds - time.monotonic()
            if left <= 0:
                raise self._given_up(f"{operation}{describe(parameters)}", failure, tries)
            pause = failure.pause
            if pause is None:
                ceiling = min(_FIRST_PAUSE * 2 ** min(tries, 10), _LONGEST_PAUSE)
                pause = random.uniform(ceiling / 2, ceiling)  # noqa: S311 - no secret
            _LOG.info("%s failed (%s); trying again in %.1f s.", operation, failure, min(pause, left))
            time.sleep(min(pause, left))

    def _given_up(self, what: str, failure: PassingError, tries: int) -> CallError | SourceUnavailableError:
        if self._alive():
            return CallError(
                f"The server failed {tries} times to answer {what}: {failure}.",
                hint="Materialize again later; what else the server holds was read.",
                status=failure.status,
            )
        return SourceUnavailableError(
            f"The server at {self._url} does not answer: {failure} (after {tries} tries of {what}).",
            hint="Check that it runs and can be reached, then materialize again; finished runs are kept.",
        )


class Pace:
    """Spaces requests so that no more than so many start in a second."""

    def __init__(self, per_second: float | None) -> None:
        self._gap = 0.0 if per_second is None else 1 / per_second
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Wait for this request's turn."""
        if not self._gap:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        time.sleep(max(0.0, turn - now))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks to wait, as a number or a date; None if it does not say."""
    text = headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def reason(error: BaseException) -> str:
    """Names of an error and of the innermost one behind it, without texts that could hold secrets."""
    inner = error
    while inner.__cause__ is not None or inner.__context__ is not None:
        inner = inner.__cause__ or inner.__context__ or inner
    return " caused by ".join(dict.fromkeys((type(error).__name__, type(inner).__name__)))


def describe(parameters: Mapping[str, Any]) -> str:
    """The parameters that tell a user what was asked for, in parentheses."""
    named = [f"{name} {value!r:.200}" for name, value in parameters.items() if name in _TOLD]
    return f" ({', '.join(named)})" if named else ""


def quote(body: bytes) -> str:
    """What a refusal says: its title or message if it is JSON."""
    try:
        content = json.loads(body)
        text = content.get("title") or content.get("message") or content.get("errorType") or ""
    except (ValueError, AttributeError):
        text = body.decode("utf-8", "replace")
    text = " ".join(str(text).split())[:_QUOTED]
    return f", {text!r}" if text else ""
