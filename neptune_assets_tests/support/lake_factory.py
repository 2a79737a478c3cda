"""Kept for short imports: what makes lakes for tests is part of :mod:`neptune_assets.testing`."""

from neptune_assets.testing.lakes import *  # noqa: F403
