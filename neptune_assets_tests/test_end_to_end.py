"""What the real client logged, compared value by value with every place it ends up in, by readers that are not ours.

Real neptune-scale recording, real Dagster, real MLflow store and wandb files; read back with raw pyarrow, sqlite3 and
wandb's protobuf classes.
"""

from __future__ import annotations

import math
from datetime import timedelta
from decimal import Decimal

import pytest

from neptune_assets_tests.support import scale_recorder as logged
from neptune_assets_tests.support.home import Home, bits, bring_home
from neptune_assets_tests.support.wandb_files import read_wandb

STEPS = [Decimal(step) for step in logged.STEPS]
TIMES = [logged.BASE + timedelta(milliseconds=1001 * number) for number in range(len(STEPS))]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("everything")
    (folder / "recordings").mkdir()
    logged.record("everything", folder / "recordings")
    return bring_home(folder, {"paths": [str(folder / "recordings")]}, logged.PROJECT)


def test_points_are_exact_in_the_lake(home: Home) -> None:
    rows = [row for row in home.lake("everything") if row["attribute_path"] == "m/loss"]
    assert [row["step"] for row in rows] == sorted(STEPS)
    assert [bits(row["float_value"]) for row in rows] == [bits(value) for value in logged.VALUES]
    assert [row["timestamp"] for row in rows] == TIMES


def test_parameters_are_exact_in_the_lake(home: Home) -> None:
    found = {row["attribute_path"]: row for row in home.lake("everything") if row["step"] is None}
    columns = {bool: "bool_value", int: "int_value", float: "float_value", str: "string_value"}
    for path, value in logged.CONFIGS.items():
        row = found[path]
        if isinstance(value, list):
            assert sorted(row["string_set_value"]) == sorted(set(value) - {"b"})  # "b" was removed afterwards
        elif isinstance(value, float):
            assert bits(row["float_value"]) == bits(value)
        elif type(value) in columns:
            assert row[columns[type(value)]] == value
        else:
            assert row["datetime_value"] == value
    assert sorted(found["sys/tags"]["string_set_value"]) == ["", "one", "three"]


def test_texts_histograms_and_files_are_exact_in_the_lake(home: Home) -> None:
    rows = home.lake("everything")
    assert [row["string_value"] for row in rows if row["attribute_path"] == "logs/text"] == logged.TEXTS
    (counts,) = [row["histogram_value"] for row in rows if row["attribute_path"] == "h/c"]
    assert (counts["type"], counts["edges"]) == ("COUNTING", logged.COUNTS[0])
    assert counts["values"] == [float(count) for count in logged.COUNTS[1]]
    content = {row["attribute_path"]: home.file(row).read_bytes() for row in rows if row["attribute_type"] == "file"}
    assert content["f/bytes"] == logged.BYTES
    assert content["f/empty"] == b""
    assert content["f/path"] == logged.TEXT_FILE.encode()
    series = {row["step"]: home.file(row).read_bytes() for row in rows if row["attribute_type"] == "file_series"}
    assert series == {Decimal(index): f"file {index}".encode() for index in (1, 2, 3)}


def test_the_summary_says_the_same(home: Home) -> None:
    (metric,) = [row for row in home.summary("metrics", "everything") if row["attribute_path"] == "m/loss"]
    finite = [value for value in logged.VALUES if math.isfinite(value)]
    assert metric["count"] == len(logged.VALUES)
    assert metric["nan_count"] == 1
    assert (metric["min_value"], metric["max_value"]) == (min(finite), max(finite))
    assert (metric["first_value"], metric["last_value"]) == (logged.VALUES[0], logged.VALUES[-1])
    params = {row["attribute_path"]: row for row in home.summary("params", "everything")}
    assert params["params/big"]["int_value"] == 2**63 - 1
    assert bits(params["params/minus_zero"]["float_value"]) == bits(-0.0)
    assert params["params/odd"]["string_value"] == logged.CONFIGS["params/odd"]


def test_mlflow_holds_the_same(home: Home) -> None:
    held = home.mlflow("everything")
    assert [step for step, _, _ in held.points["m/loss"]] == sorted(STEPS)
    assert [bits(value) for _, value, _ in held.points["m/loss"]] == [bits(value) for value in logged.VALUES]
    assert [when for _, _, when in held.points["m/loss"]] == [round(time.timestamp() * 1000) for time in TIMES]
    assert held.params["params/big"] == str(2**63 - 1)
    assert held.params["params/small"] == str(-(2**63))
    assert held.params["params/odd"] == logged.CONFIGS["params/odd"]
    assert (held.params["Case"], held.params["case"], held.params["a.b"], held.params["a_b"]) == ("1", "2", "3", "4")
    assert [text for _, text in held.texts["logs/text"]] == logged.TEXTS
    assert [(edges, values) for _, edges, values in held.histograms["h/d"]] == [logged.DENSITIES]
    assert held.files["f/bytes"] == {"": logged.BYTES}
    assert set(held.files["f/series"].values()) == {f"file {index}".encode() for index in (1, 2, 3)}


def test_wandb_files_hold_the_same(home: Home) -> None:
    found = {}
    for path in (home.root / "wandb").rglob("*.wandb"):
        file = read_wandb(path)
        found[file.run.display_name] = file
    file = found["everything"]
    rows = [row for row in file.history if "m/loss" in row]
    spelled = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
    values = [spelled.get(str(row["m/loss"]), row["m/loss"]) for row in rows]
    assert [bits(float(value)) for value in values] == [bits(value) for value in logged.VALUES]
    texts = [row for row in file.texts if "m/loss" in row]
    assert [Decimal(row["neptune_step"]) for row in texts] == sorted(STEPS)
    assert file.metrics["m/loss"] == "neptune_step"
    assert not file.run.host, "the migrating machine has no place in the run"
