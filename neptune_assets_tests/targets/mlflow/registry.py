"""A lake with a model registry, loads of it, and what MLflow's own client sees afterwards."""

from __future__ import annotations

from typing import Any

from mlflow import MlflowClient

from neptune_assets.lake.reader import Lake
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import LoadReport, load_project
from neptune_assets.targets.mlflow.load import MlflowTarget as RunsTarget
from neptune_assets.targets.mlflow.models import ModelsTarget
from neptune_assets.targets.mlflow.settings import MlflowSettings
from neptune_assets_tests.conformance.targets import PROJECT, Rows
from neptune_assets_tests.support.lake_factory import make_lake
from neptune_assets_tests.support.model_rows import MODEL
from neptune_assets_tests.targets.mlflow.place import MlflowPlace


class Registry:
    """A lake with a model registry, and what MLflow's own client sees of it."""

    def __init__(self, place: MlflowPlace) -> None:
        self.place = place
        self.lake = LakeSettings(root=str(place.root / "lake"))
        self.settings = MlflowSettings(**place.options)
        self.client = MlflowClient(tracking_uri=self.settings.tracking_uri or f"sqlite:///{place.file}")

    def load(self, scope: Scope, things: dict[str, Rows], *, project: str = PROJECT, **options: Any) -> LoadReport:
        make_lake(self.lake.root, {project: things}, scope=scope)
        found = Lake(self.lake).project(project, scope)
        ledger = Ledger(self.lake, f"mlflow_{scope.value}", project)
        return load_project(
            found, lambda: ModelsTarget(self.settings, self.lake, scope), ledger, sleep=lambda _: None, **options
        )

    def models(self, things: dict[str, Rows] | None = None, **options: Any) -> LoadReport:
        report = self.load(Scope.MODELS, things or {"PRO-CLS": MODEL}, **options)
        assert not report.failed, report.failed
        return report

    def versions(self, things: dict[str, Rows], **options: Any) -> LoadReport:
        report = self.load(Scope.MODEL_VERSIONS, things, **options)
        assert not report.failed, report.failed
        return report

    def runs(self, things: dict[str, Rows]) -> LoadReport:
        make_lake(self.lake.root, {PROJECT: things})
        project = Lake(self.lake).project(PROJECT)
        ledger = Ledger(self.lake, "mlflow", PROJECT)
        return load_project(project, lambda: RunsTarget(self.settings, self.lake), ledger)

    def held(self, name: str = "PRO-CLS") -> list[Any]:
        return sorted(self.client.search_model_versions(f"name = '{name}'"), key=lambda item: int(item.version))

    def ids(self, name: str = "PRO-CLS") -> list[str]:
        """Neptune's ids in MLflow's order; MLflow never gives a number twice, so numbers may have gaps."""
        return [item.tags.get("neptune.version_id", "-") for item in self.held(name)]

    def aliases(self, name: str = "PRO-CLS") -> dict[str, str]:
        ids = {int(item.version): item.tags.get("neptune.version_id", "-") for item in self.held(name)}
        return {alias: ids[int(number)] for alias, number in self.client.get_registered_model(name).aliases.items()}

    def state(self) -> Any:
        tables = ("registered_models", "registered_model_tags", "registered_model_aliases", "model_versions")
        return [sorted(self.place.query(f"SELECT * FROM {name}"), key=repr) for name in (*tables, "model_version_tags")]
