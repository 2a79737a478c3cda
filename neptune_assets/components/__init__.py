"""Components: what a user's YAML file names as its ``type``."""

from neptune_assets.components.migration import NeptuneMigration

__all__ = ["NeptuneMigration"]
