"""One server: signing in, requests that are spaced out and tried again where that can help, and files as streams.

What heals by itself (429, 408, 5xx, a connection that breaks, a response that does not arrive) is tried again with
growing pauses until ``retry_seconds`` have passed. An access token that the server no longer takes is fetched anew,
once. Everything else is refused at once.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Final, cast

import httpx

from neptune_assets.errors import FileGoneError
from neptune_assets.retries import retry_after
from neptune_assets.sources.live import ApiToken, RateLimiter, RetryBudget, quoted
from neptune_assets.sources.neptune3.rows import FileReference, RefusedError
from neptune_assets.sources.neptune3.settings import Neptune3Source

_EXCHANGE: Final = "/api/backend/v1/authorization/oauth-token"
_EARLY: Final = 30.0
"""Seconds before its end that an access token is replaced, as neptune-query does."""


class Authentication:
    """Gives the access token of one server to any number of threads; one of them fetches it for all."""

    def __init__(self, token: ApiToken, client: httpx.Client) -> None:
        self._api_token = token
        self._client = client
        self._lock = threading.Lock()
        self._token = ""
        self._until = 0.0

    def token(self) -> str:
        """Return an access token that is good for now.

        Raises SourceError if the API token is not accepted, httpx's errors if the server cannot be reached or answers
        anything else (HTTPStatusError).
        """
        with self._lock:
            if not self._token or time.time() > self._until:
                response = self._client.get(_EXCHANGE, headers={"X-Neptune-Api-Token": self._api_token.text})
                if response.status_code == 401:
                    raise self._api_token.rejected()
                try:
                    token = str(response.raise_for_status().json()["accessToken"])
                except (ValueError, KeyError, TypeError, RecursionError):
                    token = ""
                if not token or not token.isascii() or not token.isprintable():
                    raise httpx.DecodingError("the answer holds no access token", request=response.request)
                self._token, self._until = token, _end_of(token) - _EARLY
            return self._token

    def forget(self, token: str) -> None:
        """Fetch a new access token next time, unless that has happened since."""
        with self._lock:
            if self._token == token:
                self._token = ""


def _end_of(token: str) -> float:
    """When an access token (a JWT) runs out, in seconds since 1970; never, if it does not say."""
    try:
        payload = token.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"])
    except (IndexError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")


_FIRST_CONTACT: Final = 30.0
"""A server that never answered is given up after so many seconds: its address may be wrong."""
_LOG = logging.getLogger(__name__)


class Connection:
    """One server, one token, any number of threads."""

    def __init__(self, settings: Neptune3Source, token: ApiToken) -> None:
        self._settings = settings
        self._api_token = token
        self._lock = threading.Lock()
        self._client = httpx.Client(
            base_url=token.url,
            headers={"User-Agent": _user_agent()},
            timeout=httpx.Timeout(settings.request_seconds, pool=None),
            limits=httpx.Limits(max_connections=settings.concurrency + 1),
            verify=_verify_certificates(),
        )
        self._authentication = Authentication(token, self._client)
        self._answered = False
        self._files: httpx.Client | None = None
        self.limiter = RateLimiter(settings.requests_per_second)

    def post(
        self, path: str, body: Any, *, params: Mapping[str, str] | None = None, tries_of_500: int | None = None
    ) -> bytes:
        """Send JSON and return the answer's bytes.

        A request that gets HTTP 500 ``tries_of_500`` times is given up early: it may ask for the one thing that the
        server cannot give, and the caller can ask for less. Raises RefusedError, or SourceError for a bad token.
        """
        return self._request("POST", path, body, params, tries_of_500)

    def get(self, path: str, params: Mapping[str, str] | None = None) -> bytes:
        """Return the answer's bytes; raises as :meth:`post` does."""
        return self._request("GET", path, None, params, None)

    def attempts(self) -> RetryBudget:
        """Return fresh tries for one request."""
        seconds = self._settings.retry_seconds
        return RetryBudget(seconds if self._answered else min(seconds, _FIRST_CONTACT), self.limiter)

    @property
    def files(self) -> httpx.Client:
        """The client for signed addresses of files, which take no token."""
        with self._lock:
            if self._files is None:
                self._files = httpx.Client(
                    follow_redirects=True, timeout=self._settings.request_seconds, verify=_verify_certificates()
                )
            return self._files

    def _request(
        self, method: str, path: str, body: Any, params: Mapping[str, str] | None, tries_of_500: int | None
    ) -> bytes:
        attempts = self.attempts()
        signed_in_again = False
        while True:
            self.limiter.wait()
            wished, trouble, status = None, "", None
            try:
                token = self._authentication.token()
                headers = {"Authorization": f"Bearer {token}"}
                response = self._client.request(method, path, json=body, params=params, headers=headers)
                status = response.status_code
                if 200 <= status < 300:
                    self._answered = True
                    return response.content
                if status == 401:
                    if signed_in_again:
                        raise self._api_token.rejected()
                    signed_in_again = True
                    self._authentication.forget(token)
                    continue
            except httpx.HTTPStatusError as error:
                response = error.response
                status = response.status_code
            except httpx.RequestError as error:
                response, trouble = None, f"{type(error).__name__} {error}".strip()
            if response is not None and status is not None:
                trouble = f"HTTP {status}{quoted(response.content)}"
                if status not in {408, 429} and status < 500:
                    self._answered = True
                    raise RefusedError(f"{self._api_token.url} refuses: {trouble}.", status=status)
                wished = retry_after(response.headers.get("retry-after"))
            given_up = status == 500 and tries_of_500 is not None and attempts.count >= tries_of_500
            if given_up or not attempts.again(wished):
                raise RefusedError(
                    f"{self._api_token.url} did not answer after {attempts.count} tries; the last: {trouble}.",
                    status=status,
                    exhausted=True,
                )
            _LOG.info("%s %s: %s; trying again", method, path, trouble)


def _verify_certificates() -> bool:
    """Follow the switch for certificates that Neptune's clients have."""
    return os.environ.get("NEPTUNE_VERIFY_SSL", "true").lower() in {"true", "1"}


def _user_agent() -> str:
    from importlib.metadata import version

    return f"neptune-query/{version('neptune-query')} (neptune_assets={version('neptune_assets')})"


_SIGN: Final = "/api/storagebridge/v1/signedUrl"
_BLOCK: Final = 1 << 20
_CONFIRMED: Final = 3
"""Number of identical refusals (or complete but short responses) before giving up."""


def open_download(connection: Connection, project: str, reference: FileReference) -> BinaryIO:
    """Open a file for reading; nothing is kept on disk.

    Raises FileGoneError if the server does not have it, then or while reading if it ends early.
    """
    download = _Download(connection, project, reference)
    download.begin()
    return cast(BinaryIO, io.BufferedReader(download, _BLOCK))


class _Download(io.RawIOBase):
    def __init__(self, connection: Connection, project: str, reference: FileReference) -> None:
        super().__init__()
        self._connection = connection
        self._project = project
        self._reference = reference
        self._attempts: RetryBudget = connection.attempts()
        self._ends = 0
        self._refusals = 0
        self._offset = 0
        self._response: httpx.Response | None = None
        self._blocks: Iterator[bytes] = iter(())
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._hang_up()
        super().close()

    def begin(self) -> None:
        """Ask for the file from where we are; try again what can heal."""
        while True:
            trouble = self._ask()
            if trouble is None:
                return
            if not self._attempts.again():
                raise self._gone(f"could not be fetched after {self._attempts.count} tries; the last: {trouble}")

    def readinto(self, buffer: object) -> int:
        target = memoryview(cast(bytearray, buffer)).cast("B")
        while not self._left:
            trouble = ""
            try:
                block = next(self._blocks, None)
            except httpx.RequestError as error:
                block, trouble = None, f"{type(error).__name__} {error}"
            if block is not None:
                if self._offset + len(block) > self._reference.size:
                    # It could go on until the disk is full.
                    raise self._gone(f"goes on after the {self._reference.size:,} bytes that the server has promised")
                self._left = memoryview(block)
                continue
            if not trouble and self._offset == self._reference.size:
                return 0
            if not trouble:
                self._ends += 1
                if self._ends >= _CONFIRMED:
                    raise self._gone(f"ends after {self._offset:,} of {self._reference.size:,} bytes")
            if not self._attempts.again():
                raise self._gone(f"broke off after {self._offset:,} bytes; the last: {trouble or 'it ended early'}")
            self.begin()
        count = min(len(target), len(self._left))
        target[:count] = self._left[:count]
        self._left = self._left[count:]
        self._offset += count
        return count

    def _ask(self) -> str | None:
        """Open the file at the offset; return what went wrong if trying again may help."""
        self._hang_up()
        headers = {"Range": f"bytes={self._offset}-"} if self._offset else {}
        try:
            request = self._connection.files.build_request("GET", self._signed_address(), headers=headers)
            self._connection.limiter.wait()
            response = self._connection.files.send(request, stream=True)
        except (httpx.RequestError, httpx.InvalidURL, ValueError) as error:
            return f"{type(error).__name__} {error}"
        self._response = response
        status = response.status_code
        if status == 404:
            raise self._gone("is not on the server (404)")
        if status not in {200, 206}:
            # A signature that ran out is 400 or 403; the next try has a new one.
            self._refusals += status < 500 and status not in {408, 429}
            if self._refusals >= _CONFIRMED:
                raise self._gone(f"is refused (HTTP {status})")
            return f"HTTP {status}"
        self._blocks = response.iter_bytes(_BLOCK)
        if status == 200 and self._offset:
            try:
                self._skip()
            except httpx.RequestError as error:
                return f"{type(error).__name__} {error}"
        return None

    def _skip(self) -> None:
        """Pass over what was read before a server that does not do ranges began again."""
        left = self._offset
        while left:
            block = next(self._blocks, b"")
            if not block:
                return
            if len(block) > left:
                self._left = memoryview(block)[left:]
            left -= min(left, len(block))

    def _signed_address(self) -> str:
        body = {
            "files": [{"path": self._reference.key, "permission": "read", "project_identifier": self._project}],
        }
        try:
            files = json.loads(self._connection.post(_SIGN, body))["files"]
            return str(files[0]["url"])
        except RefusedError as error:
            raise self._gone(f"cannot be fetched: {error}") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise self._gone("has no address on the server") from error

    def _hang_up(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def _gone(self, what: str) -> FileGoneError:
        return FileGoneError(
            f"The file {self._reference.key!r} of {self._project} {what}.",
            hint="The run stays partial; materialize again once the server has the file.",
        )
