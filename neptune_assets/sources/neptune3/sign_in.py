"""Signing in: the API token is exchanged for an access token, which is used until it runs out or is refused."""

from __future__ import annotations

import base64
import json
import threading
import time
from typing import Final

import httpx

from neptune_assets.sources.live import ApiToken

_EXCHANGE: Final = "/api/backend/v1/authorization/oauth-token"
_EARLY: Final = 30.0
"""Seconds before its end that an access token is replaced, as neptune-query does."""


class SignIn:
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
