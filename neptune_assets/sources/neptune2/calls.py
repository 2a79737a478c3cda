"""Calls to the server through neptune-client's connection: built from the server's own description, retried by us.

The client's own retries misread ``Retry-After`` (its first character only), spin without a pause when a token has
expired, and do not cover tables. So requests are built by the client (bravado, from the swagger documents it fetched)
and sent over its session with its tokens, but how often and how fast is decided here.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO, Final

import requests
from neptune.common.exceptions import NeptuneConnectionLostException

from neptune_assets.errors import SourceError, SourceUnavailableError
from neptune_assets.settings import LiveSource
from neptune_assets.sources.neptune2.connection import Connection
from neptune_assets.sources.neptune2.errors import CallError

_LOG = logging.getLogger(__name__)
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 30.0
_CONNECT_SECONDS: Final = 30.0
_BLOCK: Final = 1 << 20
_QUOTED: Final = 300
"""Characters of a refusal that are quoted."""


class _PassingError(Exception):
    """A failure that another try may heal; ``pause`` is what the server asked to wait, in seconds."""

    def __init__(self, reason: str, status: int = 0, pause: float | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.pause = pause


class Calls:
    """Makes calls, a limited number at a time and a second. Safe to use from many threads."""

    def __init__(self, connection: Connection, settings: LiveSource) -> None:
        self._connection = connection
        self._retry_seconds = settings.retry_seconds
        self._timeout = (min(_CONNECT_SECONDS, settings.request_seconds), settings.request_seconds)
        self._slots = threading.BoundedSemaphore(settings.concurrency)
        self._pace = _Pace(settings.requests_per_second)
        self._lock = threading.Lock()
        self.count = 0
        """Requests sent so far."""

    def json(self, operation: str, headers: Mapping[str, str] | None = None, **parameters: Any) -> Any:
        """Make a call and return the JSON it answers.

        Raises CallError if it fails for good, SourceUnavailableError if the server does not answer any more,
        SourceError if the token is refused.
        """
        return self._again(operation, parameters, lambda: self._json(operation, headers or {}, parameters))

    def download(self, operation: str, sink: BinaryIO, size: int | None = None, **parameters: Any) -> None:
        """Stream the bytes that a call answers into a file, from its start; one that comes short is tried again.

        ``size`` is how many there must be, if that is known. Raises as :meth:`json` does.
        """
        self._again(operation, parameters, lambda: self._download(operation, None, sink, size, parameters))

    def download_url(self, url: str, sink: BinaryIO) -> None:
        """Stream the bytes behind an address that the server gave out into a file, from its start."""
        self._again("the prepared archive", {}, lambda: self._download("", url, sink, None, {}))

    def alive(self) -> bool:
        """True if the server answers at all, asked once."""
        try:
            with self._send("getProject", {}, {"projectIdentifier": "-"}) as response:
                return response.status_code not in _PASSING
        except (_PassingError, requests.RequestException, NeptuneConnectionLostException):
            return False

    def _again(self, operation: str, parameters: Mapping[str, Any], attempt: Any) -> Any:
        started = time.monotonic()
        tries = 0
        while True:
            try:
                return attempt()
            except _PassingError as error:
                failure = error
            except (requests.RequestException, NeptuneConnectionLostException, TimeoutError) as error:
                failure = _PassingError(_reason(error))
            left = started + self._retry_seconds - time.monotonic()
            if left <= 0:
                raise self._given_up(operation, parameters, failure, tries + 1)
            pause = failure.pause
            if pause is None:
                pause = min(_FIRST_PAUSE * 2**tries, _LONGEST_PAUSE) * random.uniform(0.75, 1.25)  # noqa: S311
            _LOG.info("%s failed (%s); trying again in %.1f s.", operation, failure, min(pause, left))
            time.sleep(min(pause, left))
            tries += 1

    def _given_up(
        self, operation: str, parameters: Mapping[str, Any], failure: _PassingError, tries: int
    ) -> CallError | SourceUnavailableError:
        what = f"{operation}{_describe(parameters)}"
        if self.alive():
            return CallError(
                f"The server failed {tries} times to answer {what}: {failure}.",
                hint="Materialize again later; what else the server holds was read.",
                status=failure.status,
            )
        return SourceUnavailableError(
            f"The server at {self._connection.url} does not answer: {failure} (after {tries} tries of {what}).",
            hint="Check that it runs and can be reached, then materialize again; finished runs are kept.",
        )

    @contextmanager
    def _send(
        self, operation: str, headers: Mapping[str, str], parameters: Mapping[str, Any], url: str | None = None
    ) -> Iterator[requests.Response]:
        """Send one request; the response is open inside the block and counts as one in progress."""
        with self._slots:
            self._pace.wait()
            with self._lock:
                self.count += 1
            response = self._connection.send(operation, headers, parameters, url, self._timeout)
            with response:
                yield response

    def _json(self, operation: str, headers: Mapping[str, str], parameters: Mapping[str, Any]) -> Any:
        with self._send(operation, headers, parameters) as response:
            self._check(response, operation, parameters)
            try:
                return json.loads(response.content)
            except ValueError:
                raise _PassingError("it answered something other than JSON", response.status_code) from None

    def _download(
        self, operation: str, url: str | None, sink: BinaryIO, size: int | None, parameters: Mapping[str, Any]
    ) -> None:
        sink.seek(0)
        sink.truncate()
        with self._send(operation, {"Accept": "*/*"}, parameters, url) as response:
            self._check(response, operation, parameters)
            for block in response.iter_content(_BLOCK):
                sink.write(block)
        got = sink.tell()
        if size is not None and got != size:
            raise _PassingError(f"it sent {got:,} of {size:,} bytes", response.status_code)

    def _check(self, response: requests.Response, operation: str, parameters: Mapping[str, Any]) -> None:
        status = response.status_code
        if 200 <= status < 300:
            return
        if status in _PASSING:
            raise _PassingError(f"HTTP {status}", status, _retry_after(response))
        body = response.content
        if status == 401 and b"AUTHORIZATION_TOKEN_EXPIRED" in body:
            self._connection.refresh()
            raise _PassingError("the access token had expired", status)
        if status == 401:
            raise SourceError(
                f"The server at {self._connection.url} does not accept the API token (HTTP 401).",
                hint="Check that the token is right and still valid.",
            )
        raise CallError(
            f"The server refused {operation}{_describe(parameters)}: HTTP {status}{_quote(body)}.",
            hint="Check that it still exists and that the token's user may see it.",
            status=status,
        )


class _Pace:
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


def _retry_after(response: requests.Response) -> float | None:
    """Seconds the server asks to wait, as a number or a date; None if it does not say."""
    text = response.headers.get("Retry-After", "").strip()
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


def _reason(error: BaseException) -> str:
    """Name of the innermost error, without addresses that could hold secrets."""
    inner = error
    while inner.__cause__ is not None or inner.__context__ is not None:
        inner = inner.__cause__ or inner.__context__ or inner
    names = dict.fromkeys((type(error).__name__, type(inner).__name__))
    return " caused by ".join(names)


def _describe(parameters: Mapping[str, Any]) -> str:
    """The parameters that tell a user what was asked for."""
    named = {
        name: value
        for name, value in parameters.items()
        if name in {"attribute", "projectIdentifier", "experimentId", "hash", "index", "offset"}
    }
    return f" ({', '.join(f'{name} {value!r:.200}' for name, value in named.items())})" if named else ""


def _quote(body: bytes) -> str:
    """What a refusal says: its title or message if it is JSON."""
    try:
        content = json.loads(body)
        text = content.get("title") or content.get("message") or content.get("errorType") or ""
    except (ValueError, AttributeError):
        text = body.decode("utf-8", "replace")
    text = " ".join(str(text).split())[:_QUOTED]
    return f", {text!r}" if text else ""
