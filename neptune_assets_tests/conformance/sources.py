"""Kept for short imports: the suite is part of :mod:`neptune_assets.testing`."""

from neptune_assets.testing.sources import *  # noqa: F403
