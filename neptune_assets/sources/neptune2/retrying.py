"""Which failures of a call are tried again, and what is said when it is given up."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from neptune_assets.errors import SourceUnavailableError
from neptune_assets.sources.live import Attempts, LiveSource
from neptune_assets.sources.neptune2.errors import CallError

PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that another try may heal."""
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

    def run(
        self,
        operation: str,
        parameters: Mapping[str, Any],
        attempt: Callable[[], _Answer],
        *,
        tries: int | None = None,
    ) -> _Answer:
        """Call ``attempt`` until it raises no PassingError any more, time is up, or it was tried so many times.

        Raises CallError if the server answers other calls, else SourceUnavailableError.
        """
        attempts = Attempts(self._seconds, to_the_end=True)
        while True:
            try:
                return attempt()
            except PassingError as error:
                failure = error
            given_up = tries is not None and attempts.count >= tries
            pause = None if given_up else attempts.pause(failure.pause)
            if pause is None:
                raise self._given_up(f"{operation}{describe(parameters)}", failure, attempts.count)
            _LOG.info("%s failed (%s); trying again in %.1f s.", operation, failure, pause)
            time.sleep(pause)

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
