"""From settings to the targets they name, and to what is loaded into each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from neptune_assets.migration_settings import Settings
from neptune_assets.plugins import TargetSpec
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings, Model
from neptune_assets.targets.protocol import Target
from neptune_assets.targets.rules import read_rules

_MODELS: Final = (Scope.MODELS, Scope.MODEL_VERSIONS)


@dataclass(frozen=True)
class Load:
    """What one asset loads into one target: runs, or models and then their versions.

    ``openers`` open the target anew at each call, for each kind of thing in the order of loading, and only then import
    its library; they raise SettingsError if that is not installed.
    """

    name: str
    """The asset: that of the target, or ``<target>_models``."""
    spec: TargetSpec
    things: str
    description: str
    openers: Mapping[Scope, Callable[[], Target]]

    def ledger_name(self, scope: Scope) -> str:
        """Return the name of the ledger for one kind of thing: models and versions have their own."""
        return self.spec.name if scope is Scope.RUNS else f"{self.spec.name}_{scope.value}"


def loads(settings: Settings) -> list[Load]:
    """Return the loads of all configured targets, runs first; of models wherever the target has a model registry.

    Raises SettingsError if the rules for names are wrong.
    """
    naming = read_rules(settings.targets.names).settings.naming
    runs: list[Load] = []
    models: list[Load] = []
    for spec, given in settings.targets.chosen:
        chosen = given
        if naming is not None and "naming" in type(given).model_fields:
            chosen = given.model_copy(update={"naming": naming})

        def openers(
            *scopes: Scope, spec: TargetSpec = spec, chosen: Model = chosen
        ) -> dict[Scope, Callable[[], Target]]:
            return {scope: partial(_open, spec, chosen, settings.lake, scope) for scope in scopes}

        runs.append(Load(spec.name, spec, "runs", spec.description, openers(Scope.RUNS)))
        if spec.models is not None:
            models.append(Load(f"{spec.name}_models", spec, "models and versions", spec.models, openers(*_MODELS)))
    return [*runs, *models]


def _open(spec: TargetSpec, settings: Model, lake: LakeSettings, scope: Scope) -> Target:
    spec.check_installed()
    return spec.open(settings, lake, scope)
