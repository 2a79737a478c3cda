from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from neptune_assets.errors import SettingsError
from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings, MlflowTarget
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.mlflow.load import MlflowTarget as Opened
from neptune_assets.targets.report import LoadReport
from neptune_assets_tests.conformance.targets import BORN_MS, PROJECT, born, ms, param, point, text
from neptune_assets_tests.support.lake_factory import make_lake
from neptune_assets_tests.targets.mlflow.place import MlflowPlace


@pytest.fixture
def place(tmp_path: Path) -> MlflowPlace:
    return MlflowPlace(tmp_path)


def load(place: MlflowPlace, runs: dict[str, Any], **options: Any) -> LoadReport:
    place.options = options
    lake = place.root / "lake"
    make_lake(lake, {PROJECT: runs})
    settings = LakeSettings(root=str(lake))
    return load_project(Lake(settings).project(PROJECT), place.open, Ledger(settings, "mlflow", PROJECT))


def only(place: MlflowPlace, sql: str) -> Any:
    rows = place.query(sql)
    assert len(rows) == 1
    return rows[0]


def test_metrics_as_mlflow_would_have_stored_them(place: MlflowPlace) -> None:
    rows = [
        point("m", 0, math.nan, ms(1)),
        point("m", 1, -0.0, ms(2)),
        point("m", 2, math.inf, ms(3)),
        point("m", 3, 2.5),
    ]
    report = load(place, {"R-1": born(*rows)})
    assert place.query("SELECT key, step, timestamp, value, is_nan FROM metrics ORDER BY step") == [
        ("m", 0, BORN_MS + 1000, 0.0, 1),
        ("m", 1, BORN_MS + 2000, 0.0, 0),
        ("m", 3, BORN_MS, 2.5, 0),
    ]
    assert only(place, "SELECT key, step, timestamp, value, is_nan FROM latest_metrics") == ("m", 3, BORN_MS, 2.5, 0)
    assert report.written["float_series"] == 3
    assert report.mapped["float_series"] == 1
    assert any("infinite" in note for note in report.notes)
    uri = only(place, "SELECT artifact_uri FROM runs")[0]
    kept = pq.read_table(f"{uri}/neptune/points_apart.parquet").to_pylist()
    assert [(row["step"], row["float_value"], row["reason"]) for row in kept] == [
        (Decimal(1), 0.0, "negative_zero"),
        (Decimal(2), math.inf, "infinite"),
    ]
    assert math.copysign(1, kept[0]["float_value"]) == -1


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


def test_steps_get_the_smallest_power_of_ten(place: MlflowPlace) -> None:
    parts = [point("m", "0.29", 1.0), point("m", "0.57", 2.0)]
    load(place, {"whole": born(point("m", 7, 1.0)), "parts": born(*parts)})
    found = dict(
        place.query("SELECT r.name, group_concat(m.step) FROM runs r JOIN metrics m USING (run_uuid) GROUP BY 1")
    )
    assert found["whole"] == "7"
    assert sorted(found["parts"].split(",")) == ["29", "57"]


def test_given_multiplier_never_puts_two_steps_onto_one(place: MlflowPlace) -> None:
    rows = [point("m", "1", 1.0), point("m", "1.25", 2.0), point("m", "1.5", 3.0)]
    report = load(place, {"R-1": born(*rows)}, step_multiplier=2)
    assert place.query("SELECT step, value FROM metrics ORDER BY step") == [(2, 1.0), (3, 3.0)]
    assert report.mapped["float_series"] == 1
    assert any("multiplier" in note for note in report.notes)


def test_given_multiplier_that_overflows_is_no_wrap_around(place: MlflowPlace) -> None:
    report = load(place, {"R-1": born(point("m", 10**11, 1.0), point("m", 1, 2.0))}, step_multiplier=10**9)
    assert not report.failed
    assert place.query("SELECT step, value FROM metrics") == [(10**9, 2.0)]


def test_missing_time_is_the_start_and_said(place: MlflowPlace) -> None:
    report = load(place, {"R-1": born(point("m", 0, 1.0, None))})
    assert only(place, "SELECT timestamp FROM metrics") == (BORN_MS,)
    assert report.notes == ["R-1: 1 points had no time and got the run's start time"]


def test_times_status_user_and_ids(place: MlflowPlace) -> None:
    rows = [
        param("sys/owner", "string", "ann"),
        param("sys/id", "string", "PRO-7"),
        param("sys/failed", "bool", True),
        param("sys/modification_time", "datetime", ms(9_999)),
        point("m", 0, 1.0, ms(60)),
    ]
    load(place, {"mine": born(*rows), "still": born(param("sys/modification_time", "datetime", ms(50)))})
    found = {row[0]: row[1:] for row in place.query("SELECT name, status, start_time, end_time, user_id FROM runs")}
    assert found == {
        "mine": ("FAILED", BORN_MS, BORN_MS + 60_000, "ann"),
        "still": ("FINISHED", BORN_MS, BORN_MS + 50_000, "unknown"),
    }
    assert place.query("SELECT value FROM tags WHERE key = 'neptune.id'") == [("PRO-7",)]


def test_keys_that_clean_to_one_stay_two(place: MlflowPlace) -> None:
    load(place, {"R-1": born(param("a[b", "int", 1), param("a]b", "int", 2), point("m[", 0, 1.0), point("m]", 0, 1.0))})
    assert len(place.query("SELECT * FROM params WHERE key LIKE 'a_b%'")) == 2
    assert len(place.query("SELECT DISTINCT key FROM metrics")) == 2


def test_long_params_are_whole_and_reported(place: MlflowPlace) -> None:
    report = load(place, {"R-1": born(param("p", "string", "ü" * 7_000))})
    uri = only(place, "SELECT artifact_uri FROM runs")[0]
    assert Path(uri, "params/p.txt").read_text(encoding="utf-8") == "ü" * 7_000
    assert report.mapped["string"] == 1
    assert any("params" in note for note in report.notes)


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


def test_forks_point_at_their_parent_even_if_it_comes_later(place: MlflowPlace) -> None:
    child = born(param("sys/forking/parent", "string", "P"), param("sys/forking/step", "float", 3.0))
    load(place, {"C": child})
    assert place.query("SELECT * FROM tags WHERE key = 'mlflow.parentRunId'") == []
    report = load(place, {"C": child, "P": born(point("m", 0, 1.0))})
    assert report.loaded == ["P"]
    parent = only(place, "SELECT run_uuid FROM runs WHERE name = 'P'")[0]
    assert place.query("SELECT value FROM tags WHERE key = 'mlflow.parentRunId'") == [(parent,)]
    assert place.query("SELECT value FROM tags WHERE key = 'neptune.fork_step'") == [("3",)]


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


def test_untested_schema_goes_through_mlflows_client(place: MlflowPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    from neptune_assets.targets.mlflow import direct as module

    monkeypatch.setattr(module, "TESTED_REVISIONS", frozenset())
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
        Opened(MlflowTarget(**options), LakeSettings(root=str(tmp_path)))


def test_passwords_are_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "hunter2")
    settings = MlflowTarget(tracking_uri="postgresql://u@127.0.0.1:1/d", artifact_root="/a", password_env="DB_PASSWORD")
    from neptune_assets.targets.mlflow.config import connection

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
