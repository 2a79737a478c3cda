"""Requests to the server: signed in by neptune-query's own client, tried again where that can help.

What heals by itself (429, 408, 5xx, a connection that breaks, an answer that does not come) is tried again with growing
pauses until ``retry_seconds`` have passed. An access token that the server takes no more is fetched anew, once.
Everything else is refused at once. Uses neptune-query's generated client, so only versions in
:data:`~neptune_assets.sources.neptune3.versions.TESTED` come here.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from typing import Any, Final

import httpx

from neptune_assets.settings import Neptune3Source
from neptune_assets.sources.neptune3.access import Access
from neptune_assets.sources.neptune3.model import RefusedError
from neptune_assets.sources.neptune3.pacing import Attempts, Pace

_FIRST_CONTACT: Final = 30.0
"""A server that never answered is given up after so many seconds: its address may be wrong."""
_LOG = logging.getLogger(__name__)


class Connection:
    """One server, one token, any number of threads."""

    def __init__(self, settings: Neptune3Source, access: Access) -> None:
        self._settings = settings
        self._access = access
        self._lock = threading.Lock()
        self._client: Any = None
        self._sign_ins = 0
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
            client, sign_in = self._signed_in()
            self.pace.wait()
            retry_after, trouble, status = None, "", None
            try:
                response = client.get_httpx_client().request(method, path, json=body, params=params)
                status = response.status_code
                if 200 <= status < 300:
                    self._answered = True
                    return bytes(response.content)
                if status == 401 and not signed_in_again:
                    signed_in_again = True
                    self._forget(sign_in)
                    continue
                if status == 401:
                    raise self._access.rejected()
                trouble = f"HTTP {status}{_words(response.content)}"
                if status not in {408, 429} and status < 500:
                    self._answered = True
                    raise RefusedError(f"{self._access.server} refuses: {trouble}.", status=status)
                retry_after = response.headers.get("retry-after")
            except httpx.RequestError as error:
                trouble = f"{type(error).__name__} {error}".strip()
            except _sign_in_errors() as error:
                if type(error).__name__ == "ApiKeyRejectedError":
                    raise self._access.rejected() from None
                trouble = f"signing in failed: {error}"
            given_up = status == 500 and tries_of_500 is not None and attempts.count >= tries_of_500
            if given_up or not attempts.again(retry_after):
                raise RefusedError(
                    f"{self._access.server} did not answer after {attempts.count} tries; the last: {trouble}.",
                    status=status,
                    exhausted=True,
                )
            _LOG.info("%s %s: %s; trying again", method, path, trouble)

    def _signed_in(self) -> tuple[Any, int]:
        with self._lock:
            if self._client is None:
                self._client = self._new_client()
                self._sign_ins += 1
            return self._client, self._sign_ins

    def _forget(self, sign_in: int) -> None:
        """Sign in anew with the next request, unless another thread has done so since."""
        with self._lock:
            if self._sign_ins == sign_in:
                self._client = None

    def _new_client(self) -> Any:
        from neptune_query.generated.neptune_api import AuthenticatedClient
        from neptune_query.generated.neptune_api.auth_helpers import exchange_api_key
        from neptune_query.generated.neptune_api.credentials import Credentials

        seconds = self._settings.request_seconds
        client = AuthenticatedClient(
            base_url=self._access.server,
            credentials=Credentials(api_key=self._access.token, base_url=self._access.server),
            api_key_exchange_callback=exchange_api_key,
            verify_ssl=_verify_certificates(),
            httpx_args={"http2": False, "limits": httpx.Limits(max_connections=self._settings.concurrency + 1)},
            timeout=httpx.Timeout(seconds, pool=None),
            headers={"User-Agent": _user_agent()},
        )
        client.get_httpx_client()  # made here, under the lock, not by several threads at once
        return client


def _sign_in_errors() -> tuple[type[Exception], ...]:
    from neptune_query.generated.neptune_api import errors

    return (
        errors.ApiKeyRejectedError,
        errors.UnableToExchangeApiKeyError,
        errors.UnableToRefreshTokenError,
        errors.UnableToParseResponse,
        errors.InvalidApiTokenException,
    )


def _verify_certificates() -> bool:
    """Follow neptune-query's own switch for certificates."""
    from neptune_query.internal.env import NEPTUNE_VERIFY_SSL

    return bool(NEPTUNE_VERIFY_SSL.get())


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
