"""What neptune-exporter loses on the way into MLflow arrives: a test for each row of the list of its losses.

1. Whole numbers become ``10.0``, keys that clean to one merge, texts of more than 6000 characters are cut.
2. Decimal steps land one too low, or on each other. 3. NaN is dropped, infinities become large numbers, a missing time
fails the run. 4. A later part's series overwrite the first's; histograms are text, and cut. 5. ``'`` in a name doubles
the run. 6. Times are those of the load; tags, description, the failed state, forks are lost. 7. An upload that failed
half-way is skipped for ever. 8. The exit status is 0 when no run was loaded.
Real lake, real SQLite database; each test fails where the loss happens. Read with SQL, not with the target.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from neptune_assets.settings import LakeSettings
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.mlflow.artifacts import Artifacts
from neptune_assets_tests.assets.test_loads import command, loaded
from neptune_assets_tests.conformance.targets import BORN_MS, PROJECT, born, ms, param, point
from neptune_assets_tests.support.lake_factory import histograms, make_lake, texts
from neptune_assets_tests.support.mlflow_server import migrated_database
from neptune_assets_tests.targets.mlflow.place import MlflowPlace, load, only


@pytest.fixture
def place(tmp_path: Path) -> MlflowPlace:
    return MlflowPlace(tmp_path)


def lines(place: MlflowPlace, artifact: str) -> list[Any]:
    folder = place.folder(only(place, "SELECT artifact_uri FROM runs")[0])
    # Lines end with \n and nothing else: a text may hold whatever else ends lines somewhere.
    return [json.loads(line) for line in (folder / artifact).read_bytes().decode().split("\n")[:-1]]


@pytest.mark.parametrize("number", [10, -3, 0, 597721999265, 2**53 + 1, 2**63 - 1, -(2**63)])
def test_row_1_whole_numbers_stay_whole(number: int, place: MlflowPlace) -> None:
    load(place, {"R-1": born(param("n", "int", number), param("x", "float", 10.0), param("y", "float", 1e300))})
    assert dict(place.query("SELECT key, value FROM params WHERE length(key) = 1")) == {
        "n": str(number),
        "x": "10.0",
        "y": "1e+300",
    }


def test_row_1_keys_that_clean_to_one_stay_two(place: MlflowPlace) -> None:
    load(place, {"R-1": born(param("a[b", "int", 1), param("a]b", "int", 2), point("m[", 0, 1.0), point("m]", 0, 1.0))})
    assert len(place.query("SELECT * FROM params WHERE key LIKE 'a_b%'")) == 2
    assert len(place.query("SELECT DISTINCT key FROM metrics")) == 2


def test_row_1_long_params_are_whole_and_reported(place: MlflowPlace) -> None:
    report = load(place, {"R-1": born(param("p", "string", "ü" * 7_000))})
    uri = only(place, "SELECT artifact_uri FROM runs")[0]
    assert Path(uri, "params/p.txt").read_text(encoding="utf-8") == "ü" * 7_000
    assert report.mapped["string"] == 1
    assert any("params" in note for note in report.notes)


def test_row_2_hundredths_keep_their_place(place: MlflowPlace) -> None:
    steps = [Decimal(number) / 100 for number in range(1_000)]
    load(place, {"R-1": born(*(point("m", str(step), float(step)) for step in steps))})
    assert place.query("SELECT step, value FROM metrics ORDER BY step") == [
        (number, float(step)) for number, step in enumerate(steps)
    ]
    assert only(place, "SELECT value FROM tags WHERE key = 'neptune.step_multiplier'") == ("100",)


def test_row_2_steps_get_the_smallest_power_of_ten(place: MlflowPlace) -> None:
    parts = [point("m", "0.29", 1.0), point("m", "0.57", 2.0)]
    load(place, {"whole": born(point("m", 7, 1.0)), "parts": born(*parts)})
    found = dict(
        place.query("SELECT r.name, group_concat(m.step) FROM runs r JOIN metrics m USING (run_uuid) GROUP BY 1")
    )
    assert found["whole"] == "7"
    assert sorted(found["parts"].split(",")) == ["29", "57"]


def test_row_2_a_given_multiplier_never_puts_two_steps_onto_one(place: MlflowPlace) -> None:
    rows = [point("m", "1", 1.0), point("m", "1.25", 2.0), point("m", "1.5", 3.0)]
    report = load(place, {"R-1": born(*rows)}, step_multiplier=2)
    assert place.query("SELECT step, value FROM metrics ORDER BY step") == [(2, 1.0), (3, 3.0)]
    assert report.mapped["float_series"] == 1
    assert any("multiplier" in note for note in report.notes)


def test_row_2_a_given_multiplier_that_overflows_is_no_wrap_around(place: MlflowPlace) -> None:
    report = load(place, {"R-1": born(point("m", 10**11, 1.0), point("m", 1, 2.0))}, step_multiplier=10**9)
    assert not report.failed
    assert place.query("SELECT step, value FROM metrics") == [(10**9, 2.0)]


def test_row_3_nan_is_kept_and_infinities_are_exact_beside_the_metrics(place: MlflowPlace) -> None:
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


def test_row_3_a_missing_time_is_the_start_and_said(place: MlflowPlace) -> None:
    report = load(place, {"R-1": born(point("m", 0, 1.0, None))})
    assert only(place, "SELECT timestamp FROM metrics") == (BORN_MS,)
    assert report.notes == ["R-1: 1 points had no time and got the run's start time"]


def test_row_4_a_series_over_many_parts_is_one_artifact(place: MlflowPlace) -> None:
    logged = [f"{number} {secrets.token_hex(8)}" for number in range(135_000)]
    lake = place.root / "lake"
    settings = LakeSettings(root=str(lake), rows_in_memory=10_000, sort_memory_mb=64, part_mb=1)
    project = make_lake(lake, {PROJECT: {"R-1": born(*texts("log", logged))}}, settings=settings).project(PROJECT)
    assert len(project.run("R-1").record.parts) > 1
    report = load_project(project, place.open, Ledger(settings, "mlflow", PROJECT))
    assert not report.failed, report.failed
    assert [row["value"] for row in lines(place, "series/log.jsonl")] == logged
    assert report.mapped["string_series"] == 135_000


def test_row_4_histograms_are_numbers_and_whole(place: MlflowPlace) -> None:
    shapes = [([i / 7 for i in range(1_501)], [float(i * step) for i in range(1_500)]) for step in range(20)]
    load(place, {"R-1": born(*histograms("h", shapes))})
    found = lines(place, "histograms/h.jsonl")
    assert [row["step"] for row in found] == list(range(20))
    assert [(row["histogram"]["edges"], row["histogram"]["values"]) for row in found] == shapes


@pytest.mark.parametrize("name", ["it's", "''", "a' OR '1'='1", 'double "quotes"', "100% ü 漢"])
def test_row_5_a_name_with_quotes_is_one_run_for_ever(name: str, place: MlflowPlace) -> None:
    assert load(place, {name: born(point("m", 0, 1.0))}).loaded == [name]
    assert load(place, {name: born(point("m", 0, 1.0))}).skipped == [name]
    assert load(place, {name: born(point("m", 0, 2.0))}).loaded == [name]
    assert place.query("SELECT name FROM runs") == [(name,)]
    assert place.query("SELECT value FROM metrics") == [(2.0,)]


def test_row_6_times_status_user_and_ids_are_those_of_the_run(place: MlflowPlace) -> None:
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


def test_row_6_tags_and_description_are_where_mlflow_shows_them(place: MlflowPlace) -> None:
    rows = [
        param("sys/tags", "string_set", ["best", "a, b", "it's"]),
        param("sys/group_tags", "string_set", ["best"]),
        param("sys/description", "string", "what I tried\nand why"),
    ]
    load(place, {"R-1": born(*rows)})
    tags = dict(place.query("SELECT key, value FROM tags"))
    assert {value for key, value in tags.items() if key.startswith("neptune.tag.")} == {"best", "a, b", "it's"}
    assert {value for key, value in tags.items() if key.startswith("neptune.group_tag.")} == {"best"}
    assert tags["mlflow.note.content"] == "what I tried\nand why"
    assert tags["mlflow.runName"] == "R-1"


def test_row_6_forks_point_at_their_parent_even_if_it_comes_later(place: MlflowPlace) -> None:
    child = born(param("sys/forking/parent", "string", "P"), param("sys/forking/step", "float", 3.0))
    load(place, {"C": child})
    assert place.query("SELECT * FROM tags WHERE key = 'mlflow.parentRunId'") == []
    report = load(place, {"C": child, "P": born(point("m", 0, 1.0))})
    assert report.loaded == ["P"]
    parent = only(place, "SELECT run_uuid FROM runs WHERE name = 'P'")[0]
    assert place.query("SELECT value FROM tags WHERE key = 'mlflow.parentRunId'") == [(parent,)]
    assert place.query("SELECT value FROM tags WHERE key = 'neptune.fork_step'") == [("3",)]


@pytest.mark.parametrize("writes", range(4))
def test_row_7_an_upload_that_fails_half_way_is_healed(
    writes: int, place: MlflowPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {"R-1": born(*texts("log", ["a", "b"]), *histograms("h", [([0.0, 1.0], [1.0])]), point("m", 0, math.inf))}
    write, left = Artifacts.write, writes

    def fails(store: Artifacts, path: str, blocks: Iterable[bytes]) -> None:
        nonlocal left
        if not left:
            raise OSError("no space left on device")
        left -= 1
        write(store, path, blocks)

    with monkeypatch.context() as patch:
        patch.setattr(Artifacts, "write", fails)
        report = load(place, runs)
    assert "no space left" in report.failed["R-1"]
    assert place.query("SELECT name FROM runs") == []
    assert not [item for item in (place.root / "lake" / "mlartifacts").rglob("*") if item.is_file()]
    assert load(place, runs).loaded == ["R-1"]
    assert [row["value"] for row in lines(place, "series/log.jsonl")] == ["a", "b"]
    assert load(place, runs).skipped == ["R-1"]


def test_row_8_the_exit_status_tells_whether_every_run_was_loaded(tmp_path: Path) -> None:
    file, artifacts = tmp_path / "mlflow.db", tmp_path / "artifacts"
    shutil.copy(migrated_database(), file)
    options = {"tracking_uri": f"sqlite:///{file}", "artifact_root": str(artifacts)}
    migration = loaded(tmp_path, ("a", "b"), mlflow=options)
    artifacts.write_text("no directory")
    none = command(tmp_path, migration, "targets/mlflow")
    assert none.returncode != 0
    assert "2 of 2 runs were not loaded and verified; the first is 'a'" in none.stderr
    artifacts.unlink()
    good = command(tmp_path, migration, "targets/mlflow")
    assert good.returncode == 0, good.stderr
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("SELECT name FROM runs ORDER BY 1").fetchall() == [("a",), ("b",)]
