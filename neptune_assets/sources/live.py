"""What sources that ask a running server share: settings, the API token, when to send a request and when to try again.

The protocols of the servers are in the packages of their sources.
"""

from __future__ import annotations

import base64
import json
import os
import random
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from neptune_assets.errors import SettingsError, SourceError
from neptune_assets.settings import EnvironmentName, Model


class LiveSource(Model):
    """What the sources that ask a running server have in common. They only ever read."""

    projects: list[str] | None = Field(
        default=None, description="Exactly these projects, as workspace/project; found out from the server if left out."
    )
    workspace: str | None = Field(
        default=None, description="Find projects of this workspace only; those of all workspaces if left out."
    )
    api_token_env: EnvironmentName = Field(
        default="NEPTUNE_API_TOKEN", description="Environment variable that holds the API token."
    )
    concurrency: int = Field(default=8, ge=1, le=64, description="Requests to the server at the same time.")
    requests_per_second: float | None = Field(
        default=None, gt=0, description="Maximum requests per second; no limit if left out."
    )
    request_seconds: float = Field(default=120, gt=0, description="Give up waiting for one answer after this long.")
    retry_seconds: float = Field(
        default=300, ge=0, description="Seconds to keep retrying a request that fails with a transient error."
    )
    runs_per_page: int = Field(default=1_000, ge=1, le=10_000, description="Runs asked for at once.")
    points_per_page: int = Field(
        default=10_000,
        ge=1,
        le=10_000,
        description="Points of one float series asked for at once; 1,000 of other series, and where a server refuses "
        "more.",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_client(cls, values: Any) -> Any:
        """Accept ``client: fast`` of version 0.1, which is the only way now; refuse ``client: public``."""
        if not isinstance(values, dict) or "client" not in values:
            return values
        values = dict(values)
        if values.pop("client") not in {"fast", None}:
            raise ValueError(
                "client: public was removed, because Neptune's clients are pinned to their last versions. "
                "Remove the line; the server is read the same way, faster."
            )
        warnings.warn("The setting client was removed; remove the line.", DeprecationWarning, stacklevel=2)
        return values


_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0


class RateLimiter:
    """Spaces requests out to at most ``per_second``, and holds all of them back when the server says so."""

    def __init__(self, per_second: float | None) -> None:
        self._gap = 0.0 if per_second is None else 1.0 / per_second
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> None:
        """Wait until one more request may be sent."""
        with self._lock:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + self._gap
        if mine > now:
            time.sleep(mine - now)

    def hold(self, seconds: float) -> None:
        """Let no request begin for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class RetryBudget:
    """Tries of one request until so many seconds have passed. A server's wish goes before our own pauses."""

    def __init__(self, seconds: float, limiter: RateLimiter | None = None, *, to_the_end: bool = False) -> None:
        """``limiter`` is held back for as long as a server wishes.

        A pause that would last longer than there is time ends the tries, or, with ``to_the_end``, is made shorter and
        followed by one last try.
        """
        self._until = time.monotonic() + seconds
        self._limiter = limiter
        self._to_the_end = to_the_end
        self.count = 1

    def pause(self, wished: float | None = None) -> float | None:
        """Return the seconds to sleep before the next try, or None if it is time to give up.

        ``wished`` is what the server asked for, as :func:`retry_after` reads it; it extends nothing.
        """
        left = self._until - time.monotonic()
        pause = backoff(self.count) if wished is None else wished
        if self._to_the_end and left > 0:
            pause = min(pause, left)
        elif pause > left:
            return None
        self.count += 1
        if wished is not None and self._limiter is not None:
            self._limiter.hold(wished)
        return pause

    def again(self, wished: float | None = None) -> bool:
        """Sleep as long as is due and return True, or return False if it is time to give up."""
        pause = self.pause(wished)
        if pause is None:
            return False
        time.sleep(pause)
        return True


def backoff(failures: int) -> float:
    """Return the seconds to pause after so many failures in a row: growing, bounded, never alike for two of us."""
    ceiling = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures - 1, 10))
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311 - no secret


OFF_SWITCH: Final = "DISABLE_NEPTUNE_LOGGING"
"""Set to true by teams that want nothing to call Neptune any longer."""


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A token, the address of the server that it is for, and the variable that holds it. Never shown in full."""

    text: str = field(repr=False)
    url: str
    variable: str

    @property
    def host(self) -> str:
        """Name or number of the server."""
        return urlsplit(self.url).hostname or ""

    def rejected(self) -> SourceError:
        """The error for a token that the server does not accept."""
        return SourceError(
            f"The server at {self.url} does not accept the API token in {self.variable}: it is unknown or has expired.",
            hint=f"Put a valid token into {self.variable}; for a server of this project, `neptune-assets token` "
            "prints it.",
        )


def read_token(settings: LiveSource) -> ApiToken:
    """Take the token from the environment.

    Raises SettingsError if the environment forbids to call Neptune, or holds no usable token.
    """
    if os.environ.get(OFF_SWITCH, "").strip().lower() in {"1", "true", "yes", "on"}:
        raise SettingsError(
            f"{OFF_SWITCH} is set, which forbids to call Neptune; no request was sent.",
            hint=f"Unset {OFF_SWITCH} to read a server that still runs, or use source.export or source.offline.",
        )
    name = settings.api_token_env
    text = os.environ.get(name, "").strip()
    if not text:
        raise SettingsError(
            f"The environment variable {name} holds no API token.",
            hint="Set it, or name another variable with api_token_env.",
        )
    try:
        content = json.loads(base64.b64decode(text, validate=True))
        url = str(content.get("api_url") or content.get("api_address") or "").rstrip("/")
        address = url if not url or urlsplit(url).scheme else f"https://{url}"
    except (ValueError, AttributeError, RecursionError):
        address = ""
    if not address:
        # The text may be another secret that was put there by mistake: it is not repeated.
        raise SettingsError(
            f"The environment variable {name} does not hold a valid Neptune API token.",
            hint="Copy the complete token: it is base64 of JSON that names the server's address.",
        )
    return ApiToken(text, address, name)


def allow_transport(token: ApiToken, *, allow_http: bool) -> None:
    """Let the client talk plain http where that is allowed: to this machine, or to any if settings say so.

    The client's OAuth library refuses http unless an environment variable is set, which is done here and only then.
    Raises SettingsError for http to elsewhere.
    """
    if urlsplit(token.url).scheme != "http":
        return
    if not allow_http and not _is_loopback(token.host):
        raise SettingsError(
            f"The API token is for {token.url}, where everything, the token included, would travel unencrypted.",
            hint="Use https, or set source.neptune2.allow_http if the network between is yours.",
        )
    os.environ.setdefault("OAUTHLIB_INSECURE_TRANSPORT", "1")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


_MOST_FAILURES: Final = 200
_FIRST_FAILURES: Final = 20
"""Requests that may fail in :func:`fetch_in_halves`, in all and before any succeeds; then the rest is given up."""


def fetch_in_halves(
    groups: Iterable[list[str]], fetch: Callable[[list[str]], str | None], failure: str
) -> dict[str, str]:
    """Call ``fetch`` with groups of names, then with halves of those that fail, until only what fails is left.

    ``fetch`` returns why it failed, None if it did not; ``failure`` is why all names together failed. Returns the names
    that were not fetched, with the reason.
    """
    waiting = deque(groups)
    unread: dict[str, str] = {}
    failures = 0
    most = _FIRST_FAILURES
    while waiting:
        names = waiting.popleft()
        reason: str | None = f"given up after {failures} requests that failed, the first with: {failure}"
        if failures < most:
            reason = fetch(names)
            if reason is None:
                most = _MOST_FAILURES
                continue
            failures += 1
            if len(names) > 1:
                middle = len(names) // 2
                waiting.extend((names[:middle], names[middle:]))
                continue
        unread.update(dict.fromkeys(names, reason or failure))
    return unread


def quoted(body: bytes) -> str:
    """What a response of a server says of an error, short and in parentheses; empty if it says nothing."""
    try:
        content = json.loads(body)
        text = ", ".join(str(content[key]) for key in ("errorType", "title", "message") if content.get(key))
    except (ValueError, AttributeError, TypeError, RecursionError):
        text = body[:1_200].decode("utf-8", "replace")
    text = " ".join(text.split())[:300]
    return f" ({text})" if text else ""
