"""Which run a model version comes from, and what MLflow calls that run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neptune_assets.settings import LakeSettings
from neptune_assets.targets.mlflow.load import MlflowTarget
from neptune_assets.targets.mlflow.mapping import Attribute
from neptune_assets.targets.mlflow.settings import MlflowSettings
from neptune_assets.targets.origins import Origins


class ModelLinks:
    """Runs of a project, in the lake and in MLflow, as model versions link to them."""

    def __init__(self, target: MlflowSettings, lake: LakeSettings) -> None:
        self._origins = Origins(lake)
        self._runs = MlflowTarget(target, lake)

    def neptune_run(self, project_id: str, values: Mapping[Attribute, Any]) -> str | None:
        """Return the id of the run that a version says it comes from."""
        return self._origins.neptune_run(project_id, values)

    def mlflow_run(self, project_id: str, neptune_run: str) -> str:
        """Return the MLflow id of a run of the project, "" if it was not loaded."""
        held = self._runs.find(project_id, neptune_run) if neptune_run else None
        return held.target_id if held is not None and held.digest is not None else ""

    def close(self) -> None:
        """Let go of connections."""
        self._runs.close()
