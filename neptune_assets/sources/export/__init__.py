"""neptune-exporter directories as a source: found, audited, repaired, and only ever read."""

from neptune_assets.sources.export.source import Export

__all__ = ["Export"]
