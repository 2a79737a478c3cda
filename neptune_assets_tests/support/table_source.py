"""Kept for short imports: what makes sources for tests is part of :mod:`neptune_assets.testing`."""

from neptune_assets.testing.lakes import *  # noqa: F403
