from __future__ import annotations

from pathlib import Path

import pytest

from neptune_assets.errors import SettingsError
from neptune_assets.lake.reader import Lake, LakeRun
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.mlflow.load import MlflowTarget as Opened
from neptune_assets.targets.mlflow.mapping import MlflowPlan
from neptune_assets.targets.mlflow.settings import MlflowSettings
from neptune_assets.targets.plan import plan_project
from neptune_assets.targets.protocol import Plan
from neptune_assets_tests.conformance.targets import PROJECT, born, ms, param, point, text
from neptune_assets_tests.support.lake_factory import make_lake
from neptune_assets_tests.targets.mlflow.place import MlflowPlace, load, only


@pytest.fixture
def place(tmp_path: Path) -> MlflowPlace:
    return MlflowPlace(tmp_path)


def test_mlflow_reads_what_was_written_directly(place: MlflowPlace) -> None:
    from mlflow import MlflowClient

    rows = born(*(point("a/b", i, i / 3, ms(i)) for i in range(5)), param("lr", "float", 0.1), text("t", 0, "x"))
    load(place, {"R-1": rows})
    client = MlflowClient(tracking_uri=f"sqlite:///{place.file}")
    (run,) = client.search_runs([client.get_experiment_by_name(PROJECT).experiment_id], "params.lr = '0.1'")
    assert run.data.metrics == {"a/b": 4 / 3}
    assert [item.value for item in client.get_metric_history(run.info.run_id, "a/b")] == [i / 3 for i in range(5)]
    assert [item.path for item in client.list_artifacts(run.info.run_id, "series")] == ["series/t.jsonl"]
    assert run.info.run_name == "R-1"


def test_names_of_neptune_exporter(place: MlflowPlace) -> None:
    rows = [param("sys/name", "string", "exp"), param("sys/custom_run_id", "string", "mine"), param("a:b", "int", 1)]
    load(place, {"R-1": born(*rows)}, naming="neptune-exporter", experiment_prefix="old")
    assert ("old/ws/proj/exp",) in place.query("SELECT name FROM experiments")
    assert only(place, "SELECT name FROM runs") == ("mine",)
    assert place.query("SELECT value FROM params WHERE key = 'a_b'") == [("1",)]


def test_other_naming_loads_again_and_leaves_one(place: MlflowPlace) -> None:
    runs = {"R-1": born(param("sys/name", "string", "exp"), point("m", 0, 1.0))}
    load(place, runs)
    assert load(place, runs, naming="neptune-exporter").loaded == ["R-1"]
    assert len(place.query("SELECT * FROM runs")) == 1
    assert len(place.query("SELECT * FROM metrics")) == 1
    folders = [path for path in (place.root / "lake" / "mlartifacts").glob("*/*/*") if path.is_dir()]
    assert [str(path) for path in folders] == [only(place, "SELECT artifact_uri FROM runs")[0]]


def test_address_stays_when_a_run_is_replaced(place: MlflowPlace) -> None:
    load(place, {"R-1": born(point("m", 0, 1.0))})
    before = only(place, "SELECT run_uuid FROM runs")
    load(place, {"R-1": born(point("m", 0, 2.0))})
    assert only(place, "SELECT run_uuid FROM runs") == before


def test_nothing_lands_in_the_default_experiment(place: MlflowPlace) -> None:
    load(place, {"R-1": born(point("m", 0, 1.0))})
    assert place.query("SELECT count(*) FROM runs WHERE experiment_id = 0") == [(0,)]


def test_two_finished_runs_are_doubt_not_a_choice(place: MlflowPlace) -> None:
    runs = {"R-1": born(point("m", 0, 1.0))}
    load(place, runs)
    place.query(
        "INSERT INTO runs SELECT 'copy', name, source_type, source_name, entry_point_name, user_id, status, "
        "start_time, end_time, source_version, lifecycle_stage, artifact_uri, experiment_id, deleted_time "
        "FROM runs"
    )
    place.query("INSERT INTO tags (key, value, run_uuid) SELECT key, value, 'copy' FROM tags")
    report = load(place, runs)
    assert "2 times" in report.failed["R-1"]


def test_untested_schema_goes_through_mlflows_client(place: MlflowPlace) -> None:
    place.arguments = {"tested_revisions": frozenset()}
    load(place, {"R-1": born(point("m", 0, 1.0))})
    assert only(place, "SELECT length(run_uuid), value FROM metrics JOIN runs USING (run_uuid)") == (32, 1.0)
    key = place.query("SELECT value FROM tags WHERE key = 'neptune_assets.key'")
    assert key != place.query("SELECT run_uuid FROM runs")


def test_deleted_experiment_says_what_to_do(place: MlflowPlace) -> None:
    load(place, {"R-1": born()})
    place.query("UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = ?", PROJECT)
    place.query("DELETE FROM runs")
    assert "mlflow experiments restore" in load(place, {"R-1": born()}).failed["R-1"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tracking_uri": "file:///tmp/mlruns"}, "neither a database nor a server"),
        ({"tracking_uri": "./mlruns"}, "neither a database nor a server"),
        ({"tracking_uri": "sqlite://"}, "in memory"),
        ({"tracking_uri": "postgresql://u@h/d"}, "artifact_root"),
        ({"tracking_uri": "http://h", "token_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Opened(MlflowSettings(**options), LakeSettings(root=str(tmp_path)))


def test_passwords_are_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "hunter2")
    settings = MlflowSettings(
        tracking_uri="postgresql://u@127.0.0.1:1/d", artifact_root="/a", password_env="DB_PASSWORD"
    )
    from neptune_assets.targets.mlflow.connection import connection

    made = connection(settings, LakeSettings(root=str(tmp_path)))
    assert "hunter2" in made.uri
    assert "hunter2" not in repr(made)


def test_verify_names_what_was_changed(place: MlflowPlace) -> None:
    runs = {"R-1": born(point("m", 0, 1.0), param("p", "int", 1), text("t", 0, "x"))}
    report = load(place, runs)
    run = Lake(LakeSettings(root=str(place.root / "lake"))).project(PROJECT).run("R-1")
    uri = only(place, "SELECT artifact_uri FROM runs")[0]
    place.query("UPDATE params SET value = '2' WHERE key = 'p'")
    place.query("UPDATE metrics SET value = 1.5")
    place.query("UPDATE runs SET start_time = 5")
    Path(uri, "series/t.jsonl").write_text("y" * Path(uri, "series/t.jsonl").stat().st_size)
    found = "\n".join(place.open().verify(run, report.receipts[0]).differences)
    for words in ("param 'p'", "metric 'm'", "start_time", "series/t.jsonl"):
        assert words in found


def test_a_load_reads_names_and_steps_once_for_plan_load_and_verification(place: MlflowPlace) -> None:
    seen: list[Plan] = []

    class Recording(Opened):
        def plan(self, run: LakeRun) -> MlflowPlan:
            seen.append(super().plan(run))
            return seen[-1]

    lake = LakeSettings(root=str(place.root / "lake"))
    project = make_lake(lake.root, {PROJECT: {"R-1": born(point("m", 0, 1.0))}}).project(PROJECT)

    def opened() -> Recording:
        return Recording(MlflowSettings(), lake)

    planned = plan_project(project, opened, Ledger(lake, "mlflow", PROJECT))
    report = load_project(project, opened, Ledger(lake, "mlflow", PROJECT), derived=planned.derived)
    assert report.loaded == ["R-1"]
    assert len(seen) == 3
    assert len({id(plan) for plan in seen}) == 1
