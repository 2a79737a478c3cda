"""Load runs into Weights & Biases."""

from __future__ import annotations

from neptune_assets.plugins import TargetSpec
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.protocol import Target
from neptune_assets.targets.wandb.settings import WandbSettings


def _open(settings: WandbSettings, lake: LakeSettings, scope: Scope) -> Target:
    if scope is Scope.RUNS:
        from neptune_assets.targets.wandb.load import WandbTarget

        return WandbTarget(settings, lake)
    from neptune_assets.targets.wandb.models import ModelsTarget

    return ModelsTarget(settings, lake, scope)


TARGET = TargetSpec(
    name="wandb",
    title="Weights & Biases",
    settings=WandbSettings,
    paths=("staging",),
    requires=("wandb", "pillow"),
    install="neptune-assets[wandb]",
    description="Runs of one project in Weights & Biases: staged as offline runs, decoded and compared with the lake, "
    "then synced when a key is configured.",
    models="Models and model versions of one project in Weights & Biases: each a run that holds all it has, versions "
    "in order in collections of models, stages as aliases; read back and compared with the lake.",
    open=_open,
)
