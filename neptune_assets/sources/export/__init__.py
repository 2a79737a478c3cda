"""neptune-exporter directories as a source: found, audited, repaired, and only ever read."""

from __future__ import annotations

from pathlib import Path

from neptune_assets.plugins import SourceSpec
from neptune_assets.settings import Filters
from neptune_assets.sources.export.settings import ExportSource
from neptune_assets.sources.protocol import Source


def _open(settings: ExportSource, filters: Filters) -> Source:
    from neptune_assets.sources.export.source import Export

    return Export(settings, filters)


def _settings_at(path: Path) -> dict[str, str] | None:
    """Read the exporter's four directories where they are side by side, or a directory of data alone."""
    beside = path.parent if path.name == "data" and not (path / "data").is_dir() else path
    places = {name: beside / name for name in ("data", "files", "model_data", "model_files")}
    found = {name: str(place) for name, place in places.items() if place.is_dir()}
    data = Path(found.setdefault("data", str(path)))
    return found if next(data.glob("*/*_part_*.parquet"), None) else None


SOURCE = SourceSpec(
    name="export",
    title="A neptune-exporter directory",
    settings=ExportSource,
    paths=("data", "files", "model_data", "model_files", "error_report"),
    open=_open,
    settings_at=_settings_at,
    model_registry=lambda settings: settings.model_data is not None,
    in_place=lambda settings: settings.storage,
)
