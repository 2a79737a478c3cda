"""Models and versions that the real neptune-client logged to our server, in MLflow's registry and in W&B's models.

Real client, real server, real Dagster, real MLflow store and wandb files; read back with MLflow's own client and with
wandb's protobuf classes. The second way goes through an export: the first one's lake has neptune-exporter's layout,
with ``model_data`` and ``model_files`` as ``export-models`` writes them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from neptune_assets.build import build_defs, discover_projects
from neptune_assets.migration_settings import Settings
from neptune_assets_tests.support import client_live as logged
from neptune_assets_tests.support.server import server_in_thread
from neptune_assets_tests.support.wandb_files import WandbFile, read_wandb
from neptune_assets_tests.support.wandb_models import files_of
from neptune_assets_tests.targets.mlflow.place import MlflowPlace

FIRST, SECOND = logged.VERSIONS


@dataclass
class Arrived:
    """Where everything came to."""

    root: Path

    @property
    def mlflow(self) -> MlflowClient:
        return MlflowClient(tracking_uri=f"sqlite:///{self.root}/lake/mlflow.db")

    def staged(self) -> dict[str, WandbFile]:
        """Staged W&B runs by Neptune's id."""
        found = [read_wandb(log) for log in (self.root / "lake/wandb").rglob("*.wandb")]
        return {item.config["neptune_assets"]["run_id"]: item for item in found}


def bring(root: Path, source: dict[str, Any]) -> Arrived:
    """Materialize lake and targets, models among them, and compare targets with the lake; everything must pass."""
    root.mkdir()
    MlflowPlace(root)  # puts a migrated database there: MLflow's migrations take long
    targets = {"mlflow": {}, "wandb": {"entity": "team"}}
    settings = Settings.model_validate({"source": source, "lake": {"root": str(root / "lake")}, "targets": targets})
    assert discover_projects(settings) == [logged.PROJECT]
    defs = build_defs(settings, [logged.PROJECT], prefix="m")
    names = ["mlflow", "mlflow_models", "wandb", "wandb_models"]
    keys = [f"lake/{scope}" for scope in ("runs", "models", "model_versions")]
    keys += [f"targets/{name}{suffix}" for name in names for suffix in ("", "_reconciled")]
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            list(defs.assets or ()),  # type: ignore[arg-type]
            selection=dg.AssetSelection.assets(*(f"m/{key}" for key in keys)),
            partition_key=logged.PROJECT,
            instance=instance,
            resources=defs.resources,
        )
        assert result.success
        assert all(check.passed for check in result.get_asset_check_evaluations())
    return Arrived(root)


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Arrived]:
    folder = tmp_path_factory.mktemp("models")
    before = os.environ.get("NEPTUNE_API_TOKEN")
    with server_in_thread(folder / "store") as served:
        logged.log_live(served, folder / "work")
        os.environ["NEPTUNE_API_TOKEN"] = served.token
        try:
            live = bring(folder / "live", {"neptune2": {}})
        finally:
            os.environ.pop("NEPTUNE_API_TOKEN")
            if before is not None:
                os.environ["NEPTUNE_API_TOKEN"] = before
    lake = live.root / "lake"
    places = {name: str(lake / name) for name in ("data", "files", "model_data", "model_files")}
    return {"live": live, "export": bring(folder / "exported", {"export": places})}


@pytest.fixture(params=["live", "export"])
def arrived(request: pytest.FixtureRequest, ways: dict[str, Arrived]) -> Arrived:
    return ways[request.param]


def test_versions_are_in_mlflows_registry_as_they_were_logged(
    arrived: Arrived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = arrived.mlflow
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)  # what models: addresses are looked up in
    model = client.get_registered_model(logged.MODEL)
    assert model.tags["neptune.name"] == "forest"
    versions = sorted(client.search_model_versions(f"name = '{logged.MODEL}'"), key=lambda item: int(item.version))
    assert [item.tags["neptune.version_id"] for item in versions] == [FIRST, SECOND]
    assert dict(model.aliases) == {"production": versions[0].version}
    assert [item.tags["neptune.stage"] for item in versions] == [logged.STAGES[FIRST], logged.STAGES[SECOND]]
    (run,) = [
        item
        for experiment in client.search_experiments()
        for item in client.search_runs([experiment.experiment_id])
        if item.info.run_name == logged.FIRST
    ]
    for number, item in enumerate(versions, start=1):
        assert item.tags["neptune/validation/accuracy"] == str(number / 4)
        assert (item.tags["neptune.run_id"], item.tags["neptune.run"]) == (logged.FIRST, run.info.run_id)
        assert str(item.run_link).endswith(f"/runs/{run.info.run_id}")
        (point,) = client.get_metric_history(item.run_id, "m/points")
        assert (point.value, point.step) == (float(number), 1)
        assert point.timestamp == round(logged.NEW_YORK_TWICE[1].timestamp() * 1000)
        to = tmp_path / str(number)
        to.mkdir()
        uri = f"models:/{logged.MODEL}/{item.version}"
        got = Path(download_artifacts(uri, dst_path=str(to), tracking_uri=client.tracking_uri))
        assert (got / "files/model/binary.bin").read_bytes() == f"weights {number}".encode()


def test_versions_are_in_wandbs_models_as_they_were_logged(arrived: Arrived) -> None:
    staged = arrived.staged()
    assert set(staged) == {logged.FIRST, logged.SECOND, logged.MODEL, FIRST, SECOND}
    run, model = staged[logged.FIRST], staged[logged.MODEL]
    assert (model.run.job_type, model.config["sys"]["name"], model.artifacts) == ("model", "forest", [])
    assert any(path.endswith("signature.txt") for path in model.files)
    for number, version_id in enumerate(logged.VERSIONS, start=1):
        version = staged[version_id]
        assert (version.run.job_type, version.run.project) == ("model_version", run.run.project)
        assert version.config["validation"]["accuracy"] == number / 4
        (row,) = [row for row in version.history if "m/points" in row]
        assert (row["_step"], row["m/points"]) == (1, float(number))
        assert row["_timestamp"] == logged.NEW_YORK_TWICE[1].timestamp()
        (request,) = version.artifacts
        artifact = request.artifact
        assert (artifact.type, artifact.name, artifact.entity) == ("model", logged.MODEL, "team")
        # Our client's word for "made by this run", as W&B's page shows it.
        assert artifact.run_id == run.run.run_id
        stage = logged.STAGES[version_id]
        assert list(artifact.aliases) == ["latest", *([] if stage == "none" else [stage]), version_id]
        metadata = json.loads(artifact.metadata)
        assert (metadata["neptune_project"], metadata["neptune_model"]) == (logged.PROJECT, logged.MODEL)
        assert (metadata["neptune_version"], metadata["neptune_stage"]) == (version_id, stage)
        assert metadata["neptune_run"] == logged.FIRST
        assert metadata["fields"]["validation/accuracy"] == number / 4
        assert files_of(artifact) == {"model/binary.bin": f"weights {number}".encode()}


def test_directories_of_versions_are_named_in_neptunes_order(arrived: Arrived) -> None:
    logs = sorted((arrived.root / "lake/wandb").rglob("*.wandb"))
    ids = [read_wandb(log).config["neptune_assets"]["run_id"] for log in logs]
    assert [name for name in ids if name in logged.VERSIONS] == [FIRST, SECOND]
