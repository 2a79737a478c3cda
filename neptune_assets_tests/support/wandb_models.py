"""A lake with a model registry and its loads into W&B: staged only, or uploaded to the local stub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neptune_assets.lake.reader import Lake
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import LoadReport, load_project
from neptune_assets.targets.reconcile import Comparison, reconcile
from neptune_assets.targets.wandb.load import WandbTarget
from neptune_assets.targets.wandb.models import ModelsTarget
from neptune_assets.targets.wandb.settings import WandbSettings
from neptune_assets_tests.conformance.targets import Rows
from neptune_assets_tests.support.lake_factory import file, make_lake
from neptune_assets_tests.support.model_rows import MODEL
from neptune_assets_tests.support.wandb_files import WandbFile, read_wandb
from neptune_assets_tests.support.wandb_stub import WandbStub

PROJECT = "ws/proj"
KEY = "k3y" + "0123456789abcdef" * 4


def weights(content: bytes) -> Any:
    return file("weights", content, "weights.pt")


class Models:
    """Loads, and what is staged afterwards as wandb's own protobuf classes read it."""

    def __init__(self, root: Path, stub: WandbStub | None = None, **options: Any) -> None:
        self.root = root
        self.lake = LakeSettings(root=str(root / "lake"))
        given = {"entity": "team", **options}
        if stub is not None:
            given |= {"api_key_env": "MY_WANDB_KEY", "base_url": stub.url}
        self.settings = WandbSettings.model_validate(given)

    def target(self, scope: Scope) -> ModelsTarget:
        return ModelsTarget(self.settings, self.lake, scope)

    def _ledger(self, scope: Scope, project: str) -> Ledger:
        return Ledger(self.lake, f"wandb_{scope.value}", project)

    def load(self, scope: Scope, things: dict[str, Rows], *, project: str = PROJECT, **options: Any) -> LoadReport:
        make_lake(self.lake.root, {project: things}, scope=scope)
        found = Lake(self.lake).project(project, scope)
        ledger = self._ledger(scope, project)
        return load_project(found, lambda: self.target(scope), ledger, sleep=lambda _: None, **options)

    def models(self, things: dict[str, Rows] | None = None, **options: Any) -> LoadReport:
        report = self.load(Scope.MODELS, things or {"PRO-CLS": MODEL}, **options)
        assert not report.failed, report.failed
        return report

    def versions(self, things: dict[str, Rows], **options: Any) -> LoadReport:
        report = self.load(Scope.MODEL_VERSIONS, things, **options)
        assert not report.failed, report.failed
        assert all(receipt.unbalanced() == {} for receipt in report.receipts)
        return report

    def runs(self, things: dict[str, Rows]) -> LoadReport:
        make_lake(self.lake.root, {PROJECT: things})
        project = Lake(self.lake).project(PROJECT)
        report = load_project(
            project, lambda: WandbTarget(self.settings, self.lake), Ledger(self.lake, "wandb", PROJECT)
        )
        assert not report.failed, report.failed
        return report

    def reconciled(self, scope: Scope = Scope.MODEL_VERSIONS) -> Comparison:
        project = Lake(self.lake).project(PROJECT, scope)
        return reconcile(project, lambda: self.target(scope), self._ledger(scope, PROJECT))

    def wrong(self, scope: Scope = Scope.MODEL_VERSIONS) -> dict[str, str]:
        return {item.run_id: "; ".join(item.differences) or item.word for item in self.reconciled(scope).wrong}

    def directories(self) -> list[Path]:
        return sorted((self.root / "lake/wandb").glob("*/offline-run-*"))

    def staged(self) -> dict[str, WandbFile]:
        """Staged models and versions by Neptune's id."""
        found: dict[str, WandbFile] = {}
        for directory in self.directories():
            (log,) = directory.glob("*.wandb")
            read = read_wandb(log)
            assert read.config["neptune_assets"]["run_id"] not in found
            found[read.config["neptune_assets"]["run_id"]] = read
        return found

    def logged(self, version_id: str) -> Any:
        """The one artifact that a staged version logs."""
        (request,) = self.staged()[version_id].artifacts
        return request.artifact


def files_of(artifact: Any) -> dict[str, bytes]:
    """The files of a logged artifact without ours, by their path in it."""
    found = {item.path: Path(item.local_path).read_bytes() for item in artifact.manifest.contents}
    identity = json.loads(found.pop("neptune_assets/version.json"))
    assert set(identity) == {"project_id", "version_id"}
    return found
