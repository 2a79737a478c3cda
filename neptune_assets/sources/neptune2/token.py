"""The API token: where it comes from, which server it names, and whether that server may be talked to."""

from __future__ import annotations

import base64
import binascii
import json
import os
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from neptune_assets.errors import SettingsError
from neptune_assets.sources.live_settings import LiveSource

OFF_SWITCH: Final = "DISABLE_NEPTUNE_LOGGING"
"""Set to true by teams that want nothing to call Neptune any more."""


@dataclass(frozen=True)
class ApiToken:
    """A token and the address of the server that it is for. Never shown in full."""

    text: str = field(repr=False)
    url: str

    @property
    def host(self) -> str:
        """Name or number of the server."""
        return urlsplit(self.url).hostname or ""


def refuse_if_switched_off() -> None:
    """Raise SettingsError if the environment says that nothing may call Neptune."""
    if os.environ.get(OFF_SWITCH, "").strip().lower() in {"1", "true", "yes", "on"}:
        raise SettingsError(
            f"{OFF_SWITCH} is set, which says that nothing may call Neptune any more; no call was made.",
            hint=f"Unset {OFF_SWITCH} to export a server that still runs, or use source.export or source.offline.",
        )


def read_token(settings: LiveSource) -> ApiToken:
    """Take the token from the environment. Raises SettingsError if there is none or it cannot be read."""
    name = settings.api_token_env
    text = os.environ.get(name, "").strip()
    if not text:
        raise SettingsError(f"The environment variable {name} holds no API token.", hint="Set it, or api_token_env.")
    try:
        content = json.loads(base64.b64decode(text, validate=True))
        url = content.get("api_url") or content["api_address"]
        scheme = urlsplit(url).scheme
    except (binascii.Error, ValueError, KeyError, AttributeError, TypeError):
        raise SettingsError(
            f"What the environment variable {name} holds is no API token of Neptune.",
            hint="Copy the token again, whole: it is base64 text that names the server's address.",
        ) from None
    return ApiToken(text, url if scheme else f"https://{url}")


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
