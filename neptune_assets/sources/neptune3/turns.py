"""Turns at neptune-query's public functions, which take token and limits from the process as a whole.

Callers with one token share a turn; those with another wait. What a turn changes in the environment is put back when
the last caller leaves.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from neptune_assets.sources.neptune3.access import Access
from neptune_assets.sources.neptune3.settings import Neptune3Source

_CONDITION = threading.Condition()
_STATE: dict[str, str | int | None] = {"token": None, "callers": 0}
_BEFORE: dict[str, str | None] = {}


@contextmanager
def turn(settings: Neptune3Source, access: Access, retry_seconds: float) -> Iterator[None]:
    """Call public functions of neptune-query inside: with this token, and without its hour of retries."""
    import neptune_query

    wanted = {
        "NEPTUNE_QUERY_RETRY_SOFT_TIMEOUT": str(math.ceil(retry_seconds)),
        "NEPTUNE_QUERY_RETRY_HARD_TIMEOUT": str(math.ceil(retry_seconds)),
        "NEPTUNE_QUERY_MAX_WORKERS": "1",
        "NEPTUNE_HTTP_REQUEST_TIMEOUT_SECONDS": str(math.ceil(settings.request_seconds)),
    }
    with _CONDITION:
        while _STATE["callers"] and _STATE["token"] != access.token:
            _CONDITION.wait()
        if not _STATE["callers"]:
            _BEFORE.update({name: os.environ.get(name) for name in wanted})
            neptune_query.set_api_token(access.token)
            _STATE["token"] = access.token
        _STATE["callers"] = int(_STATE["callers"] or 0) + 1
        os.environ.update(wanted)
    try:
        yield
    finally:
        with _CONDITION:
            _STATE["callers"] = int(_STATE["callers"] or 0) - 1
            if not _STATE["callers"]:
                for name, value in _BEFORE.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value
                _BEFORE.clear()
                _CONDITION.notify_all()
