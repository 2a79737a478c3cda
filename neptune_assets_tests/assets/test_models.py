"""The assets of model registries, materialized by Dagster itself from an export with a model registry."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from neptune_assets.plan import plans_of, print_pages
from neptune_assets_tests.assets.test_stages import ONE, TWO, Migration
from neptune_assets_tests.support.export_factory import parameter, run_v2, system_rows_v2
from neptune_assets_tests.support.mlflow_server import migrated_database
from neptune_assets_tests.support.wandb_files import read_wandb

KEYS = ("lake/runs", "lake/models", "lake/model_versions", "targets/mlflow", "targets/mlflow_models")
LOAD = "targets/mlflow_models"
RECONCILED = "targets/mlflow_models_reconciled"
WANDB = "targets/wandb_models"


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
    plan = outcome.checks[f"{LOAD}:plan"]
    assert plan.passed
    assert plan.metadata["models_and_versions_to_create"].value == 4
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


def test_what_the_rules_refuse_is_told_before_anything_is_written(migration: Migration) -> None:
    names = {"rename": [{"prefix": "left/", "to": "right/"}], "collisions": "refuse"}
    strict = made(migration.lake.parent, targets={"mlflow": {}, "names": names})
    both = [parameter(f"{side}/x", "int", 1) for side in ("left", "right")]
    strict.export.run(ONE, "ONE-MOD-3", [[*system_rows_v2("ONE-MOD-3"), *both]], scope="model_versions")
    outcome = strict.materialize(*KEYS)
    strict.instance.dispose()
    assert not outcome.success
    check = outcome.checks[f"{LOAD}:plan"]
    assert not check.passed
    assert "ONE-MOD-3" in str(check.description)
    assert check.metadata["models_and_versions_to_refuse"].value == 1
    assert [item.tags["neptune.version_id"] for item in held(migration)] == ["ONE-MOD-1", "ONE-MOD-2", "ONE-MOD-10"]


def test_what_somebody_changes_in_the_registry_later_is_found(migration: Migration) -> None:
    from mlflow import MlflowClient

    assert migration.materialize(*KEYS).success
    outcome = migration.materialize(RECONCILED)
    assert outcome.success, outcome.errors
    assert outcome.checks[f"{RECONCILED}:reconciled"].passed
    assert (outcome.metadata[RECONCILED]["models_equal"], outcome.metadata[RECONCILED]["model_versions_equal"]) == (
        1,
        3,
    )
    client = MlflowClient(tracking_uri=f"sqlite:///{migration.lake}/mlflow.db")
    numbers = {item.tags["neptune.version_id"]: item.version for item in held(migration)}
    client.update_registered_model("ONE-MOD", description="of somebody else")
    client.delete_model_version("ONE-MOD", numbers["ONE-MOD-1"])
    client.set_registered_model_alias("ONE-MOD", "production", numbers["ONE-MOD-10"])
    client.delete_model_version_tag("ONE-MOD", numbers["ONE-MOD-10"], "neptune_assets.digest")
    outcome = migration.materialize(RECONCILED)
    assert not outcome.success
    assert not outcome.checks[f"{RECONCILED}:reconciled"].passed
    rows = pq.read_table(next((migration.lake / "targets" / "mlflow_models_reconciled").glob("*.parquet"))).to_pylist()
    found = {row["run_id"]: (row["kind"], row["verdict"], row["difference"]) for row in rows}
    assert {run_id: found[run_id][:2] for run_id in found} == {
        "ONE-MOD": ("models", "differs"),
        "ONE-MOD-1": ("model_versions", "differs"),
        "ONE-MOD-2": ("model_versions", "differs"),
        "ONE-MOD-10": ("model_versions", "differs"),
    }
    assert "description" in found["ONE-MOD"][2]
    assert "0 times" in found["ONE-MOD-1"][2]
    assert "alias 'production' names ONE-MOD-10 instead of ONE-MOD-2" in found["ONE-MOD-2"][2]
    assert "neptune_assets.digest" in found["ONE-MOD-10"][2]


def test_an_entry_whose_run_is_gone_and_one_that_the_lake_does_not_have_are_found(
    migration: Migration,
) -> None:
    from mlflow import MlflowClient

    assert migration.materialize(*KEYS).success
    client = MlflowClient(tracking_uri=f"sqlite:///{migration.lake}/mlflow.db")
    runs = {item.tags["neptune.version_id"]: item.run_id for item in held(migration)}
    client.delete_run(runs["ONE-MOD-2"])
    client.create_registered_model("other", {"neptune_assets.key": "k", "neptune_assets.project_key": "p"})
    place = client.get_registered_model("ONE-MOD").tags["neptune_assets.project_key"]
    tags = {"neptune_assets.key": "k", "neptune.version_id": "ONE-MOD-77", "neptune_assets.project_key": place}
    client.create_model_version("ONE-MOD", "somewhere", tags=tags)
    outcome = migration.materialize(RECONCILED)
    assert not outcome.success
    rows = pq.read_table(next((migration.lake / "targets" / "mlflow_models_reconciled").glob("*.parquet"))).to_pylist()
    verdicts = {row["run_id"]: row["verdict"] for row in rows}
    assert verdicts["ONE-MOD-77"] == "unknown"
    assert verdicts["ONE-MOD-2"] == "differs"
    assert verdicts["ONE-MOD"] == "equal"


def test_a_dry_run_from_a_shell_plans_the_registry_too(
    migration: Migration, capsys: pytest.CaptureFixture[str]
) -> None:
    assert migration.materialize("lake/runs", "lake/models", "lake/model_versions").success
    assert print_pages(plans_of(migration.settings, targets=["mlflow_models"])) == 0
    said = capsys.readouterr().out
    assert "into mlflow_models" in said
    assert "into mlflow_model_versions" in said
    assert "ONE-MOD-10" in said


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
    assert keys(targets={"wandb": {}}) & {LOAD, "targets/wandb_models"} == {"targets/wandb_models"}
    assert LOAD not in keys(source={"export": export})
    assert LOAD not in keys(targets={})
    assert LOAD not in keys(filters={"model_registry": False})
    graph = made(tmp_path).defs().resolve_asset_graph()
    parents = {"/".join(key.path[1:]) for key in graph.get(dg.AssetKey(["m", *LOAD.split("/")])).parent_keys}
    assert parents == {"lake/models", "lake/model_versions", "targets/mlflow"}


def test_models_are_loaded_into_wandb_after_the_runs_they_link_to(migration: Migration) -> None:
    wandb = made(migration.lake.parent, targets={"wandb": {"entity": "team"}})
    outcome = wandb.materialize("lake/runs", "lake/models", "lake/model_versions", "targets/wandb", WANDB)
    assert outcome.success, outcome.errors
    for check in ("plan", "load_verified", "rows_accounted_for"):
        assert outcome.checks[f"{WANDB}:{check}"].passed
    metadata = outcome.metadata[WANDB]
    assert (metadata["models_loaded"], metadata["model_versions_loaded"]) == (1, 3)
    staged = {}
    for log in (migration.lake / "wandb").rglob("*.wandb"):
        found = read_wandb(log)
        staged[found.config["neptune_assets"]["run_id"]] = found
    assert set(staged) == {"ONE-1", "ONE-MOD", "ONE-MOD-1", "ONE-MOD-2", "ONE-MOD-10"}
    (request,) = staged["ONE-MOD-2"].artifacts
    assert request.artifact.run_id == staged["ONE-1"].run.run_id
    assert list(request.artifact.aliases) == ["latest", "production", "ONE-MOD-2"]
    again = wandb.materialize(WANDB)
    assert (again.metadata[WANDB]["models_skipped"], again.metadata[WANDB]["model_versions_skipped"]) == (1, 3)
    reconciled = wandb.materialize(f"{WANDB}_reconciled")
    assert reconciled.checks[f"{WANDB}_reconciled:reconciled"].passed
    wandb.instance.dispose()
