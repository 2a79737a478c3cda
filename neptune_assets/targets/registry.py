"""From settings to the targets they name."""

from __future__ import annotations

from collections.abc import Callable

from neptune_assets.settings import Settings
from neptune_assets.targets.protocol import Target
from neptune_assets.targets.rules import read_rules


def target_openers(settings: Settings) -> dict[str, Callable[[], Target]]:
    """Return one function for each configured target; each call opens it anew, and only then imports its library.

    Raises SettingsError if the rules for names are wrong.
    """
    openers: dict[str, Callable[[], Target]] = {}
    mlflow, wandb = settings.targets.mlflow, settings.targets.wandb
    naming = read_rules(settings.targets.names).settings.naming
    if naming is not None:
        mlflow = mlflow and mlflow.model_copy(update={"naming": naming})
        wandb = wandb and wandb.model_copy(update={"naming": naming})
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
