"""Which way to call the server: the fast one if the installed client is known, else by its public functions."""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from neptune_assets.sources.neptune2.calls import Calls, FastCalls
from neptune_assets.sources.neptune2.connection import UnfamiliarClientError, open_connection
from neptune_assets.sources.neptune2.public import PublicCalls
from neptune_assets.sources.neptune2.settings import Neptune2Source
from neptune_assets.sources.neptune2.token import ApiToken

TESTED: Final = frozenset({"1.14.0.post2"})
"""Versions of neptune-client whose connection is used directly."""
_LOG = logging.getLogger(__name__)


def client_is_tested() -> bool:
    """True if the installed client, under either of its names, is one whose connection may be used directly."""
    for name in ("neptune-client", "neptune"):
        try:
            return version(name) in TESTED
        except PackageNotFoundError:
            continue
    return False


def open_calls(token: ApiToken, settings: Neptune2Source) -> Calls:
    """Open a session. Raises SourceError if the server does not accept the token or does not answer."""
    if settings.client == "fast":
        if client_is_tested():
            try:
                return FastCalls(open_connection(token, settings), settings)
            except UnfamiliarClientError as error:
                _LOG.warning("This neptune-client lacks %s; only its public functions are called.", error)
        else:
            _LOG.warning("This version of neptune-client is not known; only its public functions are called.")
    return PublicCalls(token, settings)
