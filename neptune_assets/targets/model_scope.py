"""Where models and model versions are loaded among runs, and which run a version is made from.

Each kind is loaded under a project's name that no project has.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from neptune_assets import settings
from neptune_assets.errors import UnknownProjectError
from neptune_assets.lake.reader import Lake, LakeRun
from neptune_assets.schema import AttributeType, Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.rules import RenamedRun, Rules


class SourceRuns:
    """Runs of the lake that model versions may come from; each project's ids are read once."""

    def __init__(self, lake: LakeSettings) -> None:
        self._lake = lake
        self._ids: dict[str, frozenset[str]] = {}

    def neptune_run(self, project_id: str, values: Mapping[tuple[str, str], Any]) -> str | None:
        """Return the id of the run that a version names as its origin: Neptune has no field for it, people log one.

        ``values`` are the version's parameters by path and type. A text that is the id of a run of the project counts,
        one under a name with "run" in it first.
        """
        runs = self._ids_of_runs(project_id)
        found = sorted(
            ("run" not in path.lower(), path, value)
            for (path, kind), value in values.items()
            if kind == AttributeType.STRING and not path.startswith("sys/") and value in runs
        )
        return found[0][2] if found else None

    def _ids_of_runs(self, project_id: str) -> frozenset[str]:
        if project_id not in self._ids:
            try:
                self._ids[project_id] = frozenset(Lake(self._lake).project(project_id).records())
            except UnknownProjectError:
                self._ids[project_id] = frozenset()
        return self._ids[project_id]


def scoped_project_id(project_id: str, scope: Scope) -> str:
    """Return what stands for the project where things of this kind are loaded."""
    return f"{project_id}/{scope.value}"


def scoped_run(run: LakeRun, scope: Scope) -> LakeRun:
    """Return a model or model version as a run of its place."""
    # It reads its rows through the run it was made of, so another name for the project does no harm.
    found = copy.copy(run) if isinstance(run, RenamedRun) else RenamedRun(run, Rules(settings.NameRules()))
    found.project_id = scoped_project_id(run.project_id, scope)
    return found
