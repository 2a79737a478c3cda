"""A running Neptune 3.x server as a source of runs."""

from __future__ import annotations

from neptune_assets.plugins import SourceSpec
from neptune_assets.settings import Filters
from neptune_assets.sources.neptune3.settings import Neptune3Source
from neptune_assets.sources.protocol import Source


def _open(settings: Neptune3Source, filters: Filters) -> Source:
    from neptune_assets.sources.neptune3.source import Neptune3

    return Neptune3(settings, filters)


SOURCE = SourceSpec(
    name="neptune3",
    title="A running Neptune 3.x server",
    settings=Neptune3Source,
    requires=("neptune-query", "neptune-api"),
    install="neptune-assets[neptune3]",
    open=_open,
)
