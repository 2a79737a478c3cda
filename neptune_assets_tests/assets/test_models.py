"""The asset of MLflow's Model Registry, materialized by Dagster itself from an export with a model registry."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from neptune_assets_tests.assets.test_stages import ONE, TWO, Migration
from neptune_assets_tests.support.export_factory import parameter, run_v2, system_rows_v2
from neptune_assets_tests.support.mlflow_server import migrated_database

KEYS = ("lake/runs", "lake/models", "lake/model_versions", "targets/mlflow", "targets/mlflow_models")
LOAD = "targets/mlflow_models"


def version(number: int, stage: str) -> list[Any]:
    rows = system_rows_v2(f"ONE-MOD-{number}")
    rows += [parameter("sys/model_id", "string", "ONE-MOD"), parameter("sys/stage", "string", stage)]
    return [[*rows, parameter("run/id", "string", "ONE-1")]]


def made(root: Path, **changes: Any) -> Migration:
    exports = root / "exports"
    places = {name: str(exports / name) for name in ("data", "files", "model_data", "model_files")}
    return Migration(root, **{"source": {"export": places}, "targets": {"mlflow": {}}, **changes})


@pytest.fixture
def migration(tmp_path: Path) -> Iterator[Migration]:
    migration = made(tmp_path)
    for project in (ONE, TWO):
        migration.export.run(project, "ONE-1", run_v2("ONE-1"))
    migration.export.run(ONE, "ONE-MOD", [system_rows_v2("ONE-MOD")], scope="models")
    for number, stage in ((2, "production"), (10, "staging"), (1, "none")):
        migration.export.run(ONE, f"ONE-MOD-{number}", version(number, stage), scope="model_versions")
    migration.lake.mkdir()
    shutil.copy(migrated_database(), migration.lake / "mlflow.db")
    yield migration
    migration.instance.dispose()


def held(migration: Migration) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{migration.lake}/mlflow.db")
    return sorted(client.search_model_versions("name = 'ONE-MOD'"), key=lambda item: int(item.version))


def test_models_and_versions_are_loaded_after_the_runs_they_link_to(migration: Migration) -> None:
    outcome = migration.materialize(*KEYS)
    assert outcome.success, outcome.errors
    assert outcome.checks[f"{LOAD}:load_verified"].passed
    assert outcome.checks[f"{LOAD}:rows_accounted_for"].passed
    metadata = outcome.metadata[LOAD]
    assert (metadata["models_loaded"], metadata["model_versions_loaded"]) == (1, 3)
    found = held(migration)
    assert [item.tags["neptune.version_id"] for item in found] == ["ONE-MOD-1", "ONE-MOD-2", "ONE-MOD-10"]
    assert all(item.tags["neptune.run"] and item.run_link for item in found)
    rows = pq.read_table(next((migration.lake / "targets" / "mlflow_models").glob("*.parquet"))).to_pylist()
    assert [(row["kind"], row["run_id"], row["outcome"]) for row in rows] == [
        ("models", "ONE-MOD", "loaded"),
        ("model_versions", "ONE-MOD-1", "loaded"),
        ("model_versions", "ONE-MOD-10", "loaded"),
        ("model_versions", "ONE-MOD-2", "loaded"),
    ]
    again = migration.materialize(LOAD)
    assert again.success, again.errors
    assert (again.metadata[LOAD]["models_skipped"], again.metadata[LOAD]["model_versions_skipped"]) == (1, 3)


def test_a_project_without_models_loads_none(migration: Migration) -> None:
    outcome = migration.materialize(*KEYS, project=TWO)
    assert outcome.success, outcome.errors
    assert outcome.metadata[LOAD]["model_versions_loaded"] == 0


def test_it_is_there_only_where_models_and_mlflow_are(tmp_path: Path) -> None:
    export = {"data": str(tmp_path / "exports" / "data")}

    def keys(**changes: Any) -> set[str]:
        migration = made(tmp_path, **changes)
        migration.export.run(ONE, "ONE-1", run_v2("ONE-1"))
        migration.export.run(ONE, "ONE-MOD", [system_rows_v2("ONE-MOD")], scope="models")
        graph = migration.defs().resolve_asset_graph()
        migration.instance.dispose()
        return {"/".join(key.path[1:]) for key in graph.get_all_asset_keys()}

    assert LOAD in keys()
    assert LOAD not in keys(source={"export": export})
    assert LOAD not in keys(targets={})
    assert LOAD not in keys(filters={"model_registry": False})
    graph = made(tmp_path).defs().resolve_asset_graph()
    parents = {"/".join(key.path[1:]) for key in graph.get(dg.AssetKey(["m", *LOAD.split("/")])).parent_keys}
    assert parents == {"lake/models", "lake/model_versions", "targets/mlflow"}
