"""All routes of the 2.x protocol."""

from __future__ import annotations

from starlette.routing import BaseRoute


def routes() -> list[BaseRoute]:
    """Swagger documents, session, runs, attributes, tables, operations, uploads, artifacts."""
    return []
