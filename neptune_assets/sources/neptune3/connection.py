"""Requests to the server: signed in, spaced out, and tried again where that can help.

What heals by itself (429, 408, 5xx, a connection that breaks, an answer that does not come) is tried again with growing
pauses until ``retry_seconds`` have passed. An access token that the server takes no more is fetched anew, once.
Everything else is refused at once.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any, Final

import httpx

from neptune_assets.retries import retry_after
from neptune_assets.sources.live import ApiToken, Attempts, Pace
from neptune_assets.sources.neptune3.model import RefusedError
from neptune_assets.sources.neptune3.settings import Neptune3Source
from neptune_assets.sources.neptune3.sign_in import SignIn

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
        self._sign_in = SignIn(token, self._client)
        self._answered = False
        self._files: httpx.Client | None = None
        self.pace = Pace(settings.requests_per_second)

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

    def attempts(self) -> Attempts:
        """Return fresh tries for one request."""
        seconds = self._settings.retry_seconds
        return Attempts(seconds if self._answered else min(seconds, _FIRST_CONTACT), self.pace)

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
            self.pace.wait()
            wished, trouble, status = None, "", None
            try:
                token = self._sign_in.token()
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
                    self._sign_in.forget(token)
                    continue
            except httpx.HTTPStatusError as error:
                response = error.response
                status = response.status_code
            except httpx.RequestError as error:
                response, trouble = None, f"{type(error).__name__} {error}".strip()
            if response is not None and status is not None:
                trouble = f"HTTP {status}{_words(response.content)}"
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


def _words(content: bytes) -> str:
    """Return what an answer says of the error, short."""
    try:
        data = json.loads(content)
        text = ", ".join(str(data[key]) for key in ("errorType", "title", "message") if data.get(key))
    except (ValueError, AttributeError, TypeError):
        text = content[:200].decode("utf-8", "replace")
    return f" ({text[:300]})" if text.strip() else ""
