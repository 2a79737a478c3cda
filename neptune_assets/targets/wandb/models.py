"""Neptune's models and model versions as W&B targets: each a run that holds everything, and a version of a collection.

Metadata of a W&B artifact are small, and it has no series. So all that a model or version has is loaded as a run, with
the same guarantees as any other run, and that run's log has the version, too: ``wandb sync`` uploads both.

| Neptune | W&B |
|-|-|
| model ``PRJ-MOD`` | a run of job type ``model``; the collection ``PRJ-MOD`` of type ``model``, with its description |
| version ``PRJ-MOD-3`` | a run of job type ``model_version``; the collection's next version, in Neptune's order |
| files | the version's files, but for series and texts, which are the run's |
| sys/stage | the last version of a stage has it as its alias; each has its Neptune id as one |
| sys/tags, sys/description, parameters | tags, description, metadata |
| a text that is the id of a run of the project | the version is an output of that run, if it was loaded before |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from neptune_assets.lake.reader import LakeRun
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.filing import filed, place_of
from neptune_assets.targets.protocol import Plan, Receipt, TargetRun, Unfit, Verdict
from neptune_assets.targets.survey import ValueCounts
from neptune_assets.targets.wandb.model_runs import NO_ENTITY, ModelRuns
from neptune_assets.targets.wandb.settings import WandbSettings


class ModelsTarget:
    """One connection to W&B and its models, for models or for model versions. Not shared between threads."""

    def __init__(self, target: WandbSettings, lake: LakeSettings, scope: Scope) -> None:
        self.scope = scope
        self._runs = ModelRuns(target, lake, scope)

    @property
    def name(self) -> str:
        """The word that ledgers and reports use for this target."""
        return f"wandb_{self.scope.value}"

    def check(self) -> None:
        """Raise TargetError with the next action if runs cannot be staged or the server refuses the key."""
        self._runs.check()

    def is_new(self) -> bool:
        """True if nothing was ever staged and nothing will be uploaded."""
        return self._runs.is_new()

    def plan(self, run: LakeRun) -> Plan:
        """Say what loading the model or version will do. Writes nothing."""
        plan = self._runs.plan(filed(run, self.scope))
        if self.scope is Scope.MODELS or self._runs.has_entity:
            return plan
        return replace(plan, notes=(*plan.notes, NO_ENTITY))

    def unfit(self, values: ValueCounts, plan: Plan) -> Sequence[Unfit]:
        """Say which values W&B cannot hold, and what becomes of them."""
        return self._runs.unfit(values, plan)

    def find(self, project_id: str, run_id: str) -> TargetRun | None:
        """Find a model or version: it is finished if its run is, and its entry in W&B too, and its link up to date."""
        held = self._runs.find(place_of(project_id, self.scope), run_id)
        return None if held is None else replace(held, project_id=project_id)

    def replace(self, run: LakeRun, plan: Plan) -> Receipt:
        """Stage exactly this model or version; where a key is configured upload it, and bring its entry up to date."""
        receipt = self._runs.replace(filed(run, self.scope), plan)
        notes = self._runs.settle(filed(run, self.scope))
        return replace(receipt, project_id=run.project_id, notes=(*receipt.notes, *notes))

    def verify(self, run: LakeRun, receipt: Receipt) -> Verdict:
        """Read back the staged run and, where it is uploaded, the entry, and compare them with the lake."""
        verdict = self._runs.verify(filed(run, self.scope), receipt)
        if not verdict.ok:
            return verdict
        return Verdict(run.run_id, tuple(self._runs.entry_differences(filed(run, self.scope))))

    def remove(self, project_id: str, run_id: str) -> None:
        """Remove the staged model or version. Raises TargetError if it was uploaded."""
        self._runs.remove(place_of(project_id, self.scope), run_id)

    def runs(self, project_id: str) -> Iterator[TargetRun]:
        """Yield every staged model or version of the project."""
        self._runs.forget()
        for held in self._runs.runs(place_of(project_id, self.scope)):
            yield replace(held, project_id=project_id)

    def close(self) -> None:
        """Forget what was read."""
        self._runs.close()
