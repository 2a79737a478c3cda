"""From settings to the targets they name."""

from __future__ import annotations

from collections.abc import Callable

from neptune_assets.settings import Settings
from neptune_assets.targets.protocol import Target


def target_openers(settings: Settings) -> dict[str, Callable[[], Target]]:
    """Return one function for each configured target; each call opens it anew, and only then imports its library."""
    openers: dict[str, Callable[[], Target]] = {}
    mlflow, wandb = settings.targets.mlflow, settings.targets.wandb
    if mlflow is not None:

        def open_mlflow() -> Target:
            from neptune_assets.targets.mlflow.load import MlflowTarget

            return MlflowTarget(mlflow, settings.lake)

        openers["mlflow"] = open_mlflow
    if wandb is not None:

        def open_wandb() -> Target:
            from neptune_assets.targets.wandb.load import WandbTarget

            return WandbTarget(wandb, settings.lake)

        openers["wandb"] = open_wandb
    return openers
