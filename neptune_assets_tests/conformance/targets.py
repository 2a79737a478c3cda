"""Kept for short imports: the suite is part of :mod:`neptune_assets.testing`."""

from neptune_assets.testing.targets import *  # noqa: F403
