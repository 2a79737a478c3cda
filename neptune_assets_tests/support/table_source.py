"""Kept for short imports: what makes sources for tests is part of :mod:`neptune_assets.testing`."""

from neptune_assets.testing.tables import *  # noqa: F403
