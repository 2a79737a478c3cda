"""May the server be asked, and with which token: looked up before the first request, never kept in a message."""

from __future__ import annotations

import base64
import binascii
import json
import os
from dataclasses import dataclass, field
from typing import Final

from neptune_assets.errors import SettingsError, SourceError
from neptune_assets.sources.neptune3.settings import Neptune3Source

SWITCH: Final = "DISABLE_NEPTUNE_LOGGING"


@dataclass(frozen=True, slots=True)
class Access:
    """A token and the server it is for. The token is left out of every representation."""

    token: str = field(repr=False)
    server: str
    token_env: str

    def rejected(self) -> SourceError:
        """Return the error for a token that the server does not take."""
        return SourceError(
            f"{self.server} does not accept the API token in {self.token_env}: it is unknown or has expired.",
            hint=f"Put a valid token into {self.token_env}; for this project's own server, "
            "`python -m neptune_assets.server token` prints it.",
        )


def find_access(settings: Neptune3Source) -> Access:
    """Return the token that the settings name.

    Raises SourceError where the environment forbids all use of Neptune, SettingsError if there is no usable token.
    """
    name = settings.api_token_env
    if os.environ.get(SWITCH, "").strip().lower() in {"true", "1", "yes", "on"}:
        raise SourceError(
            f"{SWITCH} is set: Neptune is switched off in this environment, so no request is sent.",
            hint=f"Unset {SWITCH} for the process that reads the server, or read an export or recordings instead.",
        )
    token = os.environ.get(name, "").strip()
    if not token:
        raise SettingsError(
            f"The environment variable {name} holds no API token.",
            hint="Set it, or name another variable in source.neptune3.api_token_env.",
        )
    try:
        content = json.loads(base64.b64decode(token, validate=True))
        server = str(content.get("api_url") or content.get("api_address") or "")
    except (binascii.Error, ValueError, AttributeError):
        server = ""
    if not server:
        # The text may be another secret that was put there by mistake: it is not repeated.
        raise SettingsError(
            f"What {name} holds is no Neptune API token.",
            hint="A token is base64 of JSON with the server's address; copy the whole of it.",
        )
    return Access(token, server.rstrip("/"), name)
