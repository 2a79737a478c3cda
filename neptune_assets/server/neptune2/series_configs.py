"""How float series are to be drawn, where a client said so: kept in the store only, the lake has no place for it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from neptune_assets.schema import AttributeType

if TYPE_CHECKING:
    from neptune_assets.server.catalog.tables import Run
    from neptune_assets.server.service import Service


def series_configs(service: Service, run: Run) -> dict[str, dict[str, Any]]:
    """Return minimum, maximum and unit by path, of those float series of a run that have any."""
    if run.origin != "store":
        return {}
    with service.catalog.store_of(run).read() as connection:
        rows = connection.execute(
            "SELECT path, value FROM attributes WHERE run = ? AND type = ? AND value IS NOT NULL",
            (run.store_id, AttributeType.FLOAT_SERIES.value),
        ).fetchall()
    return {path: json.loads(value) for path, value in rows}
