"""From settings to the source they name."""

from __future__ import annotations

from neptune_assets.migration_settings import Settings
from neptune_assets.sources.protocol import Source


def open_source(settings: Settings) -> Source:
    """Open the one source that the settings name. Raises SettingsError if what it needs is not installed."""
    spec, source = settings.source.chosen
    spec.check_installed()
    return spec.open(source, settings.filters)
