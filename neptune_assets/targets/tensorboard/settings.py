"""Settings of the target `tensorboard`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from neptune_assets.settings import Model


class TensorboardSettings(Model):
    """Write event files that `tensorboard --logdir` shows."""

    directory: str | None = Field(
        default=None, description="Local directory of runs, for `tensorboard --logdir`; beside the lake if left out."
    )
    forks: Literal["stitched", "own"] = Field(
        default="stitched",
        description="Forks begin with their ancestors' metrics and histograms (stitched), or have only their own.",
    )
