"""The source `server`: what clients logged to our own server, read from its store while it runs."""

from __future__ import annotations

from pathlib import Path

from neptune_assets.plugins import SourceSpec
from neptune_assets.settings import Filters
from neptune_assets.sources.protocol import Source
from neptune_assets.sources.server.settings import ServerSource


def _open(settings: ServerSource, filters: Filters) -> Source:
    from neptune_assets.sources.server.source import Server

    return Server(settings, filters)


def _settings_at(path: Path) -> dict[str, str] | None:
    return {"store": str(path)} if next(path.glob("projects/*/*.sqlite3"), None) else None


SOURCE = SourceSpec(
    name="server",
    title="The store of our own server",
    settings=ServerSource,
    paths=("store",),
    open=_open,
    settings_at=_settings_at,
    model_registry=lambda _: True,
)
