"""From settings to the targets they name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from neptune_assets.migration_settings import Settings, TargetSettings
from neptune_assets.schema import Scope
from neptune_assets.targets.protocol import Target
from neptune_assets.targets.rules import read_rules


def model_openers(settings: Settings) -> dict[str, dict[Scope, Callable[[], Target]]]:
    """Return what opens each configured target that has a model registry, for models and then for model versions.

    Keys are ``mlflow_models`` and ``wandb_models``. Raises SettingsError if the rules for names are wrong.
    """
    targets = _named(settings)
    mlflow, wandb = targets.mlflow, targets.wandb
    openers: dict[str, dict[Scope, Callable[[], Target]]] = {}
    scopes = (Scope.MODELS, Scope.MODEL_VERSIONS)
    if mlflow is not None:

        def open_mlflow(scope: Scope) -> Target:
            from neptune_assets.targets.mlflow.models import ModelsTarget

            return ModelsTarget(mlflow, settings.lake, scope)

        openers["mlflow_models"] = {scope: partial(open_mlflow, scope) for scope in scopes}
    if wandb is not None:

        def open_wandb(scope: Scope) -> Target:
            from neptune_assets.targets.wandb.models import ModelsTarget

            return ModelsTarget(wandb, settings.lake, scope)

        openers["wandb_models"] = {scope: partial(open_wandb, scope) for scope in scopes}
    return openers


def target_openers(settings: Settings) -> dict[str, Callable[[], Target]]:
    """Return one function for each configured target; each call opens it anew, and only then imports its library.

    Raises SettingsError if the rules for names are wrong.
    """
    openers: dict[str, Callable[[], Target]] = {}
    targets = _named(settings)
    mlflow, wandb = targets.mlflow, targets.wandb
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


def ledger_name(target: str, scope: Scope) -> str:
    """Return the name of the ledger of a target for one kind of thing: models and versions have their own."""
    return target if scope is Scope.RUNS else f"{target.partition('_')[0]}_{scope.value}"


def _named(settings: Settings) -> TargetSettings:
    """Return the targets with the naming that rules give to all of them."""
    targets = settings.targets
    naming = read_rules(targets.names).settings.naming
    if naming is None:
        return targets
    change = {"naming": naming}
    return targets.model_copy(
        update={
            "mlflow": targets.mlflow and targets.mlflow.model_copy(update=change),
            "wandb": targets.wandb and targets.wandb.model_copy(update=change),
        }
    )
