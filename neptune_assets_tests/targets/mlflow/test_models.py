"""Real engine: MLflow's own registry over a SQLite file, and over HTTP with a real `mlflow server`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.artifacts import download_artifacts

from neptune_assets.lake.reader import Lake
from neptune_assets.schema import Scope
from neptune_assets.targets.mlflow import models
from neptune_assets.targets.mlflow.load import MlflowTarget as RunsTarget
from neptune_assets.targets.mlflow.models import ModelsTarget
from neptune_assets_tests.conformance.targets import PROJECT, born, dying, ms, param, point, text
from neptune_assets_tests.support.lake_factory import file, file_set, make_lake
from neptune_assets_tests.support.mlflow_server import mlflow_server
from neptune_assets_tests.support.model_rows import MODEL, version
from neptune_assets_tests.targets.mlflow.place import MlflowPlace
from neptune_assets_tests.targets.mlflow.registry import Registry
from neptune_assets_tests.targets.mlflow.server_place import SERVER, ServerPlace, announce


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(params=["database", "server"])
def registry(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    if request.param == "database":
        return Registry(MlflowPlace(tmp_path))
    server = request.getfixturevalue("server")
    server.empty()
    monkeypatch.setenv(SERVER, announce(server))
    return Registry(ServerPlace(tmp_path))


@pytest.fixture
def local(tmp_path: Path) -> Registry:
    return Registry(MlflowPlace(tmp_path))


def test_a_model_and_its_versions_arrive(registry: Registry, tmp_path: Path) -> None:
    registry.runs({"PRO-7": born(point("loss", 0, 1.0))})
    registry.models()
    things = {
        f"PRO-CLS-{n}": version(n, stage)
        for n, stage in ((1, "archived"), (2, "production"), (3, "production"), (4, "staging"), (12, "none"))
    }
    things["PRO-CLS-4"] += [
        param("sys/description", "string", "the fourth"),
        param("run/id", "string", "PRO-7"),
        param("empty", "string", ""),
        param("long", "string", "x" * 7_000),
        point("acc", "0.5", 0.9, ms(1)),
        text("log", 0, "line"),
        file("weights", b"\x00\x01", "weights.pt"),
        file_set("all", {"a/x.bin": b"x"}),
    ]
    report = registry.versions(things)
    assert report.loaded == ["PRO-CLS-1", "PRO-CLS-2", "PRO-CLS-3", "PRO-CLS-4", "PRO-CLS-12"]
    model = registry.client.get_registered_model("PRO-CLS")
    assert model.description == "tells cats from dogs"
    assert model.tags["neptune.model_id"] == "PRO-CLS"
    assert model.tags["neptune.name"] == "Classifier of it's"
    assert (model.tags["neptune/threshold"], model.tags["neptune.project"]) == ("0.5", PROJECT)
    assert [int(item.version) for item in registry.held()] == [1, 2, 3, 4, 5]
    assert registry.ids() == [f"PRO-CLS-{n}" for n in (1, 2, 3, 4, 12)]
    assert registry.aliases() == {"archived": "PRO-CLS-1", "production": "PRO-CLS-3", "staging": "PRO-CLS-4"}
    fourth = registry.held()[3]
    assert fourth.description == "the fourth"
    assert (fourth.tags["neptune.stage"], fourth.tags["neptune/number"]) == ("staging", "4")
    assert (fourth.tags["neptune/empty"], len(fourth.tags["neptune/long"])) == ("", 5_000)
    (trained,) = registry.place.query("SELECT run_uuid, experiment_id FROM runs WHERE name = 'PRO-7'")
    assert (fourth.tags["neptune.run_id"], fourth.tags["neptune.run"]) == ("PRO-7", trained[0])
    assert fourth.run_link == f"#/experiments/{trained[1]}/runs/{trained[0]}"
    # The run behind the version has everything, exactly.
    behind = registry.client.get_run(fourth.run_id)
    assert behind.data.params["long"].startswith("(whole in artifact")
    history = registry.client.get_metric_history(fourth.run_id, "acc")
    assert [(item.step, item.value) for item in history] == [(5, 0.9)]
    os.environ["MLFLOW_TRACKING_URI"] = registry.client.tracking_uri
    try:
        to = tmp_path / "downloaded"
        to.mkdir()
        address = registry.client.tracking_uri
        got = Path(download_artifacts("models:/PRO-CLS@staging", dst_path=str(to), tracking_uri=address))
        assert (got / "files/weights.pt").read_bytes() == b"\x00\x01"
        assert [item.read_bytes() for item in (got / "file_sets").rglob("*.bin")] == [b"x"]
        assert (got / "params/long.txt").read_text() == "x" * 7_000
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]


def test_the_same_again_writes_nothing_and_a_change_replaces(registry: Registry) -> None:
    registry.models()
    things = {f"PRO-CLS-{n}": version(n, "none" if n < 3 else "production") for n in (1, 2, 3)}
    registry.versions(things)
    state = registry.state()
    assert registry.models().loaded == []
    assert registry.versions(things).loaded == []
    assert registry.state() == state
    # Two is promoted and gets other files, three is demoted: numbers stay, stages and content follow.
    things["PRO-CLS-2"] = version(2, "production", file("weights", b"new", "w.bin"))
    things["PRO-CLS-3"] = version(3, "archived")
    assert registry.versions(things).loaded == ["PRO-CLS-2", "PRO-CLS-3"]
    assert registry.ids() == ["PRO-CLS-1", "PRO-CLS-2", "PRO-CLS-3"]
    if not isinstance(registry.place, ServerPlace):
        # In a database the run behind a version keeps its address, and the version its number.
        assert [int(item.version) for item in registry.held()] == [1, 2, 3]
    assert registry.aliases() == {"production": "PRO-CLS-2", "archived": "PRO-CLS-3"}
    second = registry.held()[1]
    assert second.tags["neptune.stage"] == "production"
    paths = [item.path for item in registry.client.list_artifacts(second.run_id, "files")]
    assert paths == ["files/weights.bin"]
    assert registry.models({"PRO-CLS": [*MODEL, param("new", "int", 1)]}).loaded == ["PRO-CLS"]
    tags = registry.client.get_registered_model("PRO-CLS").tags
    assert tags["neptune/new"] == "1"
    assert registry.models({"PRO-CLS": MODEL}).loaded == ["PRO-CLS"]
    assert "neptune/new" not in registry.client.get_registered_model("PRO-CLS").tags


def test_a_version_that_comes_late_takes_its_place(registry: Registry) -> None:
    registry.models()
    registry.versions({"PRO-CLS-1": version(1), "PRO-CLS-3": version(3, "staging"), "PRO-CLS-10": version(10)})
    registry.client.set_model_version_tag("PRO-CLS", "2", "mine", "kept")
    registry.client.set_registered_model_alias("PRO-CLS", "champion", "2")
    things = {f"PRO-CLS-{n}": version(n, "staging" if n == 3 else "none") for n in (1, 2, 3, 10)}
    assert registry.versions(things).loaded == ["PRO-CLS-2"]
    assert registry.ids() == ["PRO-CLS-1", "PRO-CLS-2", "PRO-CLS-3", "PRO-CLS-10"]
    assert registry.aliases() == {"staging": "PRO-CLS-3", "champion": "PRO-CLS-3"}
    assert registry.held()[2].tags["mine"] == "kept"
    state = registry.state()
    assert registry.versions(things).loaded == []
    assert registry.state() == state


def test_nothing_of_others_is_touched(local: Registry) -> None:
    client = local.client
    client.create_registered_model("PRO-CLS", {"owner": "them"}, "theirs")
    local.models()
    local.versions({"PRO-CLS-1": version(1, "production")})
    assert (client.get_registered_model("PRO-CLS").tags, local.held()) == ({"owner": "them"}, [])
    (ours,) = [model.name for model in client.search_registered_models() if model.name != "PRO-CLS"]
    assert ours.startswith("PRO-CLS-")
    # Somebody adds a version of their own, moves an alias to it, and tags one of ours.
    theirs = client.create_model_version(ours, "s3://bucket/x", await_creation_for=0)
    client.set_registered_model_alias(ours, "production", str(theirs.version))
    client.set_model_version_tag(ours, "1", "mine", "kept")
    local.versions({"PRO-CLS-1": version(1, "production", param("p", "int", 1)), "PRO-CLS-2": version(2, "production")})
    assert local.ids(ours) == ["PRO-CLS-1", "-", "PRO-CLS-2"]
    assert local.aliases(ours) == {"production": "-"}
    assert local.held(ours)[0].tags["mine"] == "kept"
    target = ModelsTarget(local.settings, local.lake, Scope.MODEL_VERSIONS)
    target.remove(PROJECT, "PRO-CLS-2")
    target.close()
    assert local.ids(ours) == ["PRO-CLS-1", "-"]
    target = ModelsTarget(local.settings, local.lake, Scope.MODELS)
    target.remove(PROJECT, "PRO-CLS")
    target.close()
    assert len(local.held(ours)) == 2
    assert local.place.query("SELECT count(*) FROM runs WHERE name = 'PRO-CLS'") == [(0,)]


def test_two_projects_with_models_of_one_id(local: Registry) -> None:
    for project in ("ws/one", "ws/two"):
        local.models({"PRO-CLS": [*MODEL, param("of", "string", project)]}, project=project)
        local.versions({"PRO-CLS-1": version(1, "staging", param("of", "string", project))}, project=project)
    found = {model.tags["neptune/of"]: model.name for model in local.client.search_registered_models()}
    assert sorted(found) == ["ws/one", "ws/two"]
    for project, name in found.items():
        assert [item.tags["neptune/of"] for item in local.held(name)] == [project]


def test_versions_without_their_model_and_a_run_that_comes_later(registry: Registry) -> None:
    things = {"PRO-CLS-1": version(1, "none", param("run/id", "string", "PRO-7")), "PRO-CLS-2": version(2)}
    make_lake(registry.lake.root, {PROJECT: {"PRO-7": born(point("m", 0, 1.0))}})
    registry.versions(things)
    assert registry.ids() == ["PRO-CLS-1", "PRO-CLS-2"]
    assert registry.held()[0].tags["neptune.run_id"] == "PRO-7"
    assert "neptune.run" not in registry.held()[0].tags
    assert registry.models().loaded == ["PRO-CLS"]
    assert len(registry.client.search_registered_models()) == 1
    registry.runs({"PRO-7": born(point("m", 0, 1.0))})
    # The link is new, the content is not: the version is registered again in its place.
    assert registry.versions(things).loaded == ["PRO-CLS-1"]
    assert registry.ids() == ["PRO-CLS-1", "PRO-CLS-2"]
    assert (registry.held()[0].run_link or "").startswith("#/experiments/")
    assert registry.versions(things).loaded == []


def test_reading_back_finds_what_was_changed(local: Registry) -> None:
    local.models()
    report = local.versions({"PRO-CLS-1": version(1, "production")})
    run = Lake(local.lake).project(PROJECT, Scope.MODEL_VERSIONS).run("PRO-CLS-1")

    def differences() -> str:
        target = ModelsTarget(local.settings, local.lake, Scope.MODEL_VERSIONS)
        try:
            return "\n".join(target.verify(run, report.receipts[0]).differences)
        finally:
            target.close()

    assert differences() == ""
    local.client.set_model_version_tag("PRO-CLS", "1", "neptune/number", "7")
    local.client.update_model_version("PRO-CLS", "1", "another")
    local.client.delete_registered_model_alias("PRO-CLS", "production")
    found = differences()
    for words in ("neptune/number", "description", "alias 'production' is missing"):
        assert words in found
    local.client.delete_model_version("PRO-CLS", "1")
    assert "0 times" in differences()
    # What somebody deleted is brought back by the next load.
    assert local.versions({"PRO-CLS-1": version(1, "production")}).loaded == ["PRO-CLS-1"]
    assert differences() == ""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "point_of_death",
    ["ModelRegistry.place", "ModelRegistry._create", "ModelRegistry._settle_aliases", "ModelRegistry._change"],
)
def test_dying_anywhere_is_repaired(local: Registry, point_of_death: str, when: str) -> None:
    local.models()
    local.versions({"PRO-CLS-1": version(1), "PRO-CLS-3": version(3, "production")})
    things = {
        "PRO-CLS-1": version(1, "staging"),
        "PRO-CLS-2": version(2, "staging"),
        "PRO-CLS-3": version(3, "production"),
    }
    with dying(f"{models.__name__}:{point_of_death}", when):
        local.versions(things)
    local.versions(things)
    assert local.ids() == ["PRO-CLS-1", "PRO-CLS-2", "PRO-CLS-3"]
    assert local.aliases() == {"staging": "PRO-CLS-2", "production": "PRO-CLS-3"}
    assert all(item.tags["neptune_assets.digest"] for item in local.held())


def test_lost_ledgers_are_rebuilt_from_the_registry(local: Registry) -> None:
    local.models()
    things = {"PRO-CLS-1": version(1), "PRO-CLS-2": version(2)}
    local.versions(things)
    for item in (local.place.root / "lake" / "targets").rglob("*.jsonl"):
        item.unlink()
    state = local.state()
    assert local.versions(things).loaded == []
    assert local.models().loaded == []
    assert local.state() == state


def test_runs_of_models_are_no_runs_of_the_project(local: Registry) -> None:
    local.runs({"PRO-7": born(point("loss", 0, 1.0))})
    local.models()
    local.versions({"PRO-CLS-1": version(1)})
    target = RunsTarget(local.settings, local.lake)
    try:
        assert [run.run_id for run in target.runs(PROJECT)] == ["PRO-7"]
    finally:
        target.close()
    names = {row[0] for row in local.place.query("SELECT name FROM experiments")}
    assert names == {"Default", PROJECT, f"{PROJECT}/models", f"{PROJECT}/model_versions"}
