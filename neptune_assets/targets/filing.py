"""Where models and model versions are filed among runs: each kind under a name that no project has."""

from __future__ import annotations

import copy

from neptune_assets import settings
from neptune_assets.lake.reader import LakeRun
from neptune_assets.schema import Scope
from neptune_assets.targets.ruled import RuledRun
from neptune_assets.targets.rules import Rules


def place_of(project_id: str, scope: Scope) -> str:
    """Return what stands for the project where things of this kind are filed."""
    return f"{project_id}/{scope.value}"


def filed(run: LakeRun, scope: Scope) -> LakeRun:
    """Return a model or model version as a run of its place."""
    # It reads its rows through the run it was made of, so another name for the project does no harm.
    found = copy.copy(run) if isinstance(run, RuledRun) else RuledRun(run, Rules(settings.NameRules()))
    found.project_id = place_of(run.project_id, scope)
    return found
