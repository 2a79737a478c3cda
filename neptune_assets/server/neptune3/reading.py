"""Reading, as neptune-query asks."""

from __future__ import annotations

from starlette.routing import BaseRoute


def routes() -> list[BaseRoute]:
    """Routes of reading."""
    return []
