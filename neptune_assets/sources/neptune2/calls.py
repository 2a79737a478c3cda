"""Calls to the server, over neptune-client's own connection.

The client's own retries misread ``Retry-After`` (its first character only), spin without a pause when a token has
expired, and do not cover tables. So requests are built by the client (bravado, from the swagger documents it fetched)
and sent over its session with its tokens, but how often and how fast is decided here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

import requests

from neptune_assets.retries import retry_after
from neptune_assets.sources.live import LiveSource, Pace
from neptune_assets.sources.neptune2.connection import Connection
from neptune_assets.sources.neptune2.errors import CallError
from neptune_assets.sources.neptune2.retrying import PASSING, PassingError, Retries, describe, quote, reason

_CONNECT_SECONDS: Final = 30.0
_BLOCK: Final = 1 << 20


class Calls:
    """Makes calls by the names of the 2.x protocol, over the client's connection. Safe to use from many threads."""

    def __init__(self, connection: Connection, settings: LiveSource) -> None:
        self._connection = connection
        self._timeout = (min(_CONNECT_SECONDS, settings.request_seconds), settings.request_seconds)
        self._slots = threading.BoundedSemaphore(settings.concurrency)
        self._pace = Pace(settings.requests_per_second)
        self._retries = Retries(settings, connection.url, self._alive)
        self._lock = threading.Lock()
        self.count = 0
        """Requests sent so far."""

    def json(
        self, operation: str, headers: Mapping[str, str] | None = None, *, tries: int | None = None, **parameters: Any
    ) -> Any:
        """Make a call and return the JSON object it answers. With ``tries`` it is given up after so many.

        Raises CallError if it fails for good, SourceUnavailableError if the server no longer answers, SourceError if
        the token is refused.
        """
        return self._retries.run(
            operation, parameters, lambda: self._json(operation, headers or {}, parameters), tries=tries
        )

    def download(
        self, operation: str, sink: BinaryIO, size: int | None = None, *, most: int | None = None, **parameters: Any
    ) -> None:
        """Write the bytes that a call answers into a file, from its start; one that comes short is tried again.

        ``size`` is how many there must be, if that is known, and ``most`` how many there may be: no more are read.
        Raises as :meth:`json` does.
        """
        most = size if most is None else most
        self._retries.run(operation, parameters, lambda: self._download(operation, None, sink, size, most, parameters))

    def download_url(self, url: str, sink: BinaryIO, most: int) -> None:
        """Write the bytes behind an address that the server gave out into a file, as :meth:`download` does."""
        self._retries.run("the prepared archive", {}, lambda: self._download("", url, sink, None, most, {}))

    def _alive(self) -> bool:
        try:
            with self._send("getProject", {}, {"projectIdentifier": "-"}) as response:
                return response.status_code not in PASSING
        except PassingError:
            return False

    @contextmanager
    def _send(
        self, operation: str, headers: Mapping[str, str], parameters: Mapping[str, Any], url: str | None = None
    ) -> Iterator[requests.Response]:
        """Send one request; the response is open inside the block and counts as one in progress."""
        with self._slots:
            self._pace.wait()
            with self._lock:
                self.count += 1
            try:
                with self._connection.send(operation, headers, parameters, url, self._timeout) as response:
                    yield response
            except self._connection.broken as error:
                raise PassingError(reason(error)) from error
            except UnicodeError as error:
                raise CallError(
                    f"No request can hold {operation}{describe(parameters)}.", hint="The server gave a broken name."
                ) from error

    def _json(self, operation: str, headers: Mapping[str, str], parameters: Mapping[str, Any]) -> Any:
        with self._send(operation, headers, parameters) as response:
            self._check(response, operation, parameters)
            content = response.content
            status = response.status_code
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            raise PassingError("it answered something other than JSON", status) from None
        if not isinstance(answer, dict):
            raise PassingError(f"it answered something other than a JSON object, {answer!r:.80}", status)
        return answer

    def _download(
        self,
        operation: str,
        url: str | None,
        sink: BinaryIO,
        size: int | None,
        most: int | None,
        parameters: Mapping[str, Any],
    ) -> None:
        sink.seek(0)
        sink.truncate()
        with self._send(operation, {"Accept": "*/*"}, parameters, url) as response:
            self._check(response, operation, parameters)
            for block in response.iter_content(_BLOCK):
                if most is not None and sink.tell() + len(block) > most:
                    # It could go on until the disk is full; another try would read as much again.
                    raise CallError(
                        f"The server sends more than the {most:,} bytes that there can be.",
                        hint="Look at the file on the server.",
                        status=response.status_code,
                    )
                sink.write(block)
            status = response.status_code
        got = sink.tell()
        if size is not None and got != size:
            raise PassingError(f"it sent {got:,} of {size:,} bytes", status)

    def _check(self, response: requests.Response, operation: str, parameters: Mapping[str, Any]) -> None:
        status = response.status_code
        if 200 <= status < 300:
            return
        if status in PASSING:
            raise PassingError(f"HTTP {status}", status, retry_after(response.headers.get("Retry-After")))
        body = response.content
        if status == 401 and b"AUTHORIZATION_TOKEN_EXPIRED" in body:
            self._connection.refresh()
            raise PassingError("the access token had expired", status)
        if status == 401:
            raise self._connection.token.rejected()
        raise CallError(
            f"The server refused {operation}{describe(parameters)}: HTTP {status}{quote(body)}.",
            hint="Check that it still exists and that the token's user may see it.",
            status=status,
        )
