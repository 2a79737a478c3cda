"""Settings of the source `neptune3`."""

from __future__ import annotations

from pydantic import Field

from neptune_assets.sources.live import LiveSource


class Neptune3Source(LiveSource):
    """A running Neptune 3.x server, read as neptune-query reads it. It is only ever read."""

    points_per_page: int = Field(
        default=250_000, ge=1_000, le=1_000_000, description="Points asked for at once, of all series together."
    )
    series_per_page: int = Field(
        default=1_000, ge=1, le=10_000, description="Series asked for at once, of all runs together."
    )
    metric_previews: bool = Field(
        default=False,
        description="Also take points of metrics that are not final, as series of their own: `<path>:preview` and "
        "`<path>:preview_completion`.",
    )
