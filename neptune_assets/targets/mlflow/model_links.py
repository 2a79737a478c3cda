"""Which run a model version comes from, and what MLflow calls that run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neptune_assets import settings
from neptune_assets.errors import UnknownProjectError
from neptune_assets.lake.reader import Lake
from neptune_assets.schema import AttributeType
from neptune_assets.targets.mlflow.load import MlflowTarget
from neptune_assets.targets.mlflow.mapping import Attribute


class ModelLinks:
    """Runs of a project, in the lake and in MLflow, as model versions link to them."""

    def __init__(self, target: settings.MlflowTarget, lake: settings.LakeSettings) -> None:
        self._lake = lake
        self._runs = MlflowTarget(target, lake)
        self._ids: dict[str, frozenset[str]] = {}

    def neptune_run(self, project_id: str, values: Mapping[Attribute, Any]) -> str | None:
        """Return the id of the run that a version says it comes from: Neptune has no field for it, people log one.

        A text that is the id of a run of the project counts, one under a name with "run" in it first.
        """
        runs = self._ids_of_runs(project_id)
        found = sorted(
            ("run" not in path.lower(), path, value)
            for (path, kind), value in values.items()
            if kind == AttributeType.STRING and not path.startswith("sys/") and value in runs
        )
        return found[0][2] if found else None

    def mlflow_run(self, project_id: str, neptune_run: str) -> str:
        """Return the MLflow id of a run of the project, "" if it was not loaded."""
        held = self._runs.find(project_id, neptune_run) if neptune_run else None
        return held.target_id if held is not None and held.digest is not None else ""

    def close(self) -> None:
        """Let go of connections."""
        self._runs.close()

    def _ids_of_runs(self, project_id: str) -> frozenset[str]:
        if project_id not in self._ids:
            try:
                self._ids[project_id] = frozenset(Lake(self._lake).project(project_id).records())
            except UnknownProjectError:
                self._ids[project_id] = frozenset()
        return self._ids[project_id]
