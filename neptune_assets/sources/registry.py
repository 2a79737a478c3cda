"""From settings to the source they name."""

from __future__ import annotations

from neptune_assets.errors import SettingsError
from neptune_assets.migration_settings import Settings
from neptune_assets.sources.protocol import Source


def open_source(settings: Settings) -> Source:
    """Open the one source that the settings name; each kind imports its own libraries only here."""
    if settings.source.export is not None:
        from neptune_assets.sources.export.source import Export

        return Export(settings.source.export, settings.filters)
    if settings.source.offline is not None:
        from neptune_assets.sources.offline.source import Offline

        return Offline(settings.source.offline, settings.filters)
    if settings.source.neptune2 is not None:
        from neptune_assets.sources.neptune2.source import Neptune2

        return Neptune2(settings.source.neptune2, settings.filters)
    if settings.source.neptune3 is not None:
        from neptune_assets.sources.neptune3.source import Neptune3

        return Neptune3(settings.source.neptune3, settings.filters)
    if settings.source.server is not None:
        from neptune_assets.sources.server.source import Server

        return Server(settings.source.server, settings.filters)
    raise SettingsError("The settings name no source.", hint="Give one of source.export, source.offline and so on.")
