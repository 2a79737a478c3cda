"""A running Neptune 2.x server as a source, read through neptune-client; it is only ever read."""

from __future__ import annotations

from neptune_assets.plugins import SourceSpec
from neptune_assets.settings import Filters
from neptune_assets.sources.neptune2.settings import Neptune2Source
from neptune_assets.sources.protocol import Source


def _open(settings: Neptune2Source, filters: Filters) -> Source:
    from neptune_assets.sources.neptune2.source import Neptune2

    return Neptune2(settings, filters)


SOURCE = SourceSpec(
    name="neptune2",
    title="A running Neptune 2.x server",
    settings=Neptune2Source,
    paths=("artifact_roots",),
    requires=("neptune-client",),
    install="neptune-assets[neptune2]",
    open=_open,
    model_registry=lambda _: True,
)
