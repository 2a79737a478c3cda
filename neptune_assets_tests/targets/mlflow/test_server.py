"""Real engine: an `mlflow server` with one worker on loopback, over a SQLite file that is read with raw SQL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.errors import TargetUnavailableError
from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.mlflow.load import MlflowTarget as Opened
from neptune_assets.targets.mlflow.settings import MlflowSettings
from neptune_assets.targets.report import LoadReport
from neptune_assets_tests.conformance.targets import PROJECT, born, ms, param, point, text
from neptune_assets_tests.support.lake_factory import file, make_lake
from neptune_assets_tests.support.mlflow_server import free_port, mlflow_server
from neptune_assets_tests.targets.mlflow.server_place import SERVER, ServerPlace, announce


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPlace]:
    root = tmp_path_factory.mktemp("server")
    with mlflow_server(root) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv(SERVER, announce(server))
        yield ServerPlace(root)


def load(place: ServerPlace) -> LoadReport:
    settings = LakeSettings(root=str(place.root / "lake"))
    report = load_project(Lake(settings).project(PROJECT), place.open, Ledger(settings, "mlflow", PROJECT))
    assert not report.failed, report.failed
    return report


def test_over_http(place: ServerPlace) -> None:
    rows: list[dict[str, Any]] = born(
        *(point("train/loss", f"{i / 100:.2f}", i / 7, ms(i)) for i in range(1, 60)),
        *(point(f"many/{k}", i, float(i * k), ms(i)) for k in range(30) for i in range(50)),
        point("odd/nan", 0, float("nan")),
        point("odd/inf", 0, float("inf")),
        param("empty", "string", ""),
        param("big", "int", 2**53 + 1),
        text("log", 0, "line\nbreak"),
        file("f/model", b"\x00\x01", "m.bin"),
        param("sys/failed", "bool", True),
        param("sys/description", "string", "why"),
    )
    other = {"it's 100%": born(point("m", 0, 1.0))}
    lake = place.root / "lake"
    make_lake(lake, {PROJECT: {"R-1": rows, **other}})
    report = load(place)
    assert sorted(report.loaded) == ["R-1", "it's 100%"]
    held = place.held(PROJECT)["R-1"]
    assert len(held) == 1
    got = held[0]
    assert [(float(step), value) for step, value, _ in got.points["train/loss"]] == [
        (i / 100, i / 7) for i in range(1, 60)
    ]
    assert sum(len(got.points[f"many/{k}"]) for k in range(30)) == 1_500
    assert got.points["odd/nan"][0][1] != got.points["odd/nan"][0][1]
    assert got.points["odd/inf"][0][1] == float("inf")
    assert (got.params["empty"], got.params["big"]) == ("", "9007199254740993")
    assert got.texts["log"][0][1] == "line\nbreak"
    assert got.files["f/model"] == {"": b"\x00\x01"}
    assert (got.failed, got.description, got.start_ms) == (True, "why", 1_709_294_400_000)

    # The same again writes nothing; a changed run takes the place of the old one.
    metrics = place.query("SELECT count(*), sum(value) FROM metrics")
    assert load(place).loaded == []
    assert place.query("SELECT count(*), sum(value) FROM metrics") == metrics
    make_lake(lake, {PROJECT: {"R-1": born(point("m", 0, 5.0)), **other}})
    assert load(place).loaded == ["R-1"]
    held = place.held(PROJECT)["R-1"]
    assert [run.points for run in held] == [{"m": [(0, 5.0, 1_709_294_400_000)]}]

    # A row that disappears is found by reading back.
    project = Lake(LakeSettings(root=str(lake))).project(PROJECT)
    receipt = (Ledger(LakeSettings(root=str(lake)), "mlflow", PROJECT).entries() or {})["R-1"].receipt
    assert receipt is not None
    assert place.open().verify(project.run("R-1"), receipt).ok
    place.damage(PROJECT, "R-1")
    assert not place.open().verify(project.run("R-1"), receipt).ok


def test_no_server_is_said_at_once(tmp_path: Path) -> None:
    settings = MlflowSettings(tracking_uri=f"http://127.0.0.1:{free_port()}")
    target = Opened(settings, LakeSettings(root=str(tmp_path)))
    before = time.monotonic()
    with pytest.raises(TargetUnavailableError, match=r"No MLflow server answers at http://127\.0\.0\.1"):
        target.check()
    assert time.monotonic() - before < 20
