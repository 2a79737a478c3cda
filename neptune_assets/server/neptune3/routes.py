"""All routes of the 3.x protocol."""

from __future__ import annotations

from starlette.routing import BaseRoute

from neptune_assets.server.neptune3 import reading, session, signed_urls, transfers, writing


def routes() -> list[BaseRoute]:
    """Session, projects, writing, files, reading."""
    return [
        *session.routes(),
        *writing.routes(),
        *signed_urls.routes(),
        *transfers.routes(),
        *reading.routes(),
    ]
