"""Load runs into MLflow."""

from __future__ import annotations

from neptune_assets.plugins import TargetSpec
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.mlflow.settings import MlflowSettings
from neptune_assets.targets.protocol import Target


def _open(settings: MlflowSettings, lake: LakeSettings, scope: Scope) -> Target:
    if scope is Scope.RUNS:
        from neptune_assets.targets.mlflow.load import MlflowTarget

        return MlflowTarget(settings, lake)
    from neptune_assets.targets.mlflow.models import ModelsTarget

    return ModelsTarget(settings, lake, scope)


TARGET = TargetSpec(
    name="mlflow",
    title="MLflow",
    settings=MlflowSettings,
    requires=("mlflow", "adbc-driver-manager", "adbc-driver-sqlite"),
    install="neptune-assets[mlflow]",
    description="Runs of one project in MLflow, replaced as a whole, read back and compared with the lake.",
    models="Models and model versions of one project in MLflow's Model Registry: versions in order, stages as aliases, "
    "each with a run that holds all it has; read back and compared with the lake.",
    open=_open,
)
