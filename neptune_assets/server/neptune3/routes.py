"""All routes of the 3.x protocol."""

from __future__ import annotations

from starlette.routing import BaseRoute

from neptune_assets.server.endpoints import Endpoint
from neptune_assets.server.neptune3 import session, transfers, writing
from neptune_assets.server.neptune3.reading import (
    attribute_definitions,
    attribute_values,
    search_everywhere,
    search_project,
)
from neptune_assets.server.neptune3.series import bucket_series, float_series, object_series

_LEADERBOARD = "/api/leaderboard/v1"
_PROTO = f"{_LEADERBOARD}/proto"


def routes() -> list[BaseRoute]:
    """Session, projects, writing, files, reading."""
    return [
        *session.routes(),
        *writing.routes(),
        *transfers.signed_url_routes(),
        *transfers.routes(),
        Endpoint(f"{_PROTO}/leaderboard/entries/search/", search_project).route(),
        Endpoint(f"{_PROTO}/leaderboard/entries/global/search/", search_everywhere).route(),
        Endpoint(f"{_LEADERBOARD}/leaderboard/attributes/definitions/query", attribute_definitions).route(),
        Endpoint(f"{_PROTO}/leaderboard/attributes/query", attribute_values).route(),
        Endpoint(f"{_PROTO}/attributes/series/float", float_series).route(),
        Endpoint(f"{_PROTO}/attributes/series", object_series).route(),
        Endpoint(f"{_PROTO}/attributes/timeseries/buckets", bucket_series).route(),
    ]
