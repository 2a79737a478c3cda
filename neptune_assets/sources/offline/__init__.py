"""The offline source: recordings of neptune-scale and of neptune-client that never reached a server."""

from __future__ import annotations

from neptune_assets.plugins import SourceSpec
from neptune_assets.settings import Filters
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.protocol import Source


def _open(settings: OfflineSource, filters: Filters) -> Source:
    from neptune_assets.sources.offline.source import Offline

    return Offline(settings, filters)


SOURCE = SourceSpec(
    name="offline",
    title="Recordings of Neptune's clients",
    settings=OfflineSource,
    paths=("paths", "search_files_in", "files_from"),
    requires=("neptune-api",),
    install="neptune-assets[offline]",
    open=_open,
    model_registry=lambda _: True,
)
