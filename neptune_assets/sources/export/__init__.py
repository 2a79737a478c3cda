"""neptune-exporter directories as a source: found, audited, repaired, and only ever read."""

from __future__ import annotations

from neptune_assets.plugins import SourceSpec
from neptune_assets.settings import Filters
from neptune_assets.sources.export.settings import ExportSource
from neptune_assets.sources.protocol import Source


def _open(settings: ExportSource, filters: Filters) -> Source:
    from neptune_assets.sources.export.source import Export

    return Export(settings, filters)


SOURCE = SourceSpec(
    name="export",
    title="A neptune-exporter directory",
    settings=ExportSource,
    paths=("data", "files", "model_data", "model_files", "error_report"),
    open=_open,
    model_registry=lambda settings: settings.model_data is not None,
    in_place=lambda settings: settings.storage,
)
