"""Which W&B project a Neptune project goes to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.wandb.config import PROJECT, StagedProject, write_json
from neptune_assets.targets.wandb.naming import project_name
from neptune_assets.targets.wandb.settings import WandbSettings


class ProjectNames:
    """The W&B projects of Neptune projects: once runs are staged under a name it stays, whatever comes later."""

    def __init__(self, settings: WandbSettings, lake: LakeSettings, root: Path) -> None:
        self._settings, self._lake, self._root = settings, lake, root
        self._names: dict[str, str] = {}

    def name(self, project_id: str) -> str:
        """Return the W&B project."""
        if project_id not in self._names:
            inputs = self._inputs(project_id)
            kept = _kept(self._path(project_id))
            if kept is not None and {name: kept.get(name) for name in inputs} == inputs:
                self._names[project_id] = str(kept["wandb_project"])
            else:
                from neptune_assets.lake.reader import Lake

                lake = Lake(self._lake)
                # A project may have models and no runs.
                others = {other for scope in Scope for other in lake.projects(scope)}
                naming, prefix = self._settings.naming, self._settings.project_prefix
                self._names[project_id] = project_name(project_id, others, naming, prefix)
        return self._names[project_id]

    def keep(self, project_id: str) -> None:
        """Remember the W&B project beside its staged runs."""
        path = self._path(project_id)
        value = {**self._inputs(project_id), "wandb_project": self.name(project_id)}
        if _kept(path) != value:
            write_json(path, value)

    def _path(self, project_id: str) -> Path:
        return StagedProject(self._root, project_id).path / PROJECT

    def _inputs(self, project_id: str) -> dict[str, str]:
        return {
            "project_id": project_id,
            "prefix": self._settings.project_prefix,
            "naming": self._settings.naming,
        }


def _kept(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return data if isinstance(data, dict) else None
