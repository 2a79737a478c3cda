"""Reading, as neptune-query asks: tables, definitions, values, series, buckets. What is known, the catalog knows."""

from __future__ import annotations

from starlette.routing import BaseRoute

from neptune_assets.server.endpoints import Endpoint
from neptune_assets.server.neptune3.reading.attribute_values import attribute_values
from neptune_assets.server.neptune3.reading.bucket_series import bucket_series
from neptune_assets.server.neptune3.reading.definitions import attribute_definitions
from neptune_assets.server.neptune3.reading.float_series import float_series
from neptune_assets.server.neptune3.reading.object_series import object_series
from neptune_assets.server.neptune3.reading.tables import search_everywhere, search_project

_LEADERBOARD = "/api/leaderboard/v1"
_PROTO = f"{_LEADERBOARD}/proto"


def routes() -> list[BaseRoute]:
    """Routes of reading."""
    return [
        Endpoint(f"{_PROTO}/leaderboard/entries/search/", search_project).route(),
        Endpoint(f"{_PROTO}/leaderboard/entries/global/search/", search_everywhere).route(),
        Endpoint(f"{_LEADERBOARD}/leaderboard/attributes/definitions/query", attribute_definitions).route(),
        Endpoint(f"{_PROTO}/leaderboard/attributes/query", attribute_values).route(),
        Endpoint(f"{_PROTO}/attributes/series/float", float_series).route(),
        Endpoint(f"{_PROTO}/attributes/series", object_series).route(),
        Endpoint(f"{_PROTO}/attributes/timeseries/buckets", bucket_series).route(),
    ]
