"""Forks in W&B: what their ancestors logged stands in front, once and marked. Real lake, real files."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

from neptune_assets.settings import LakeSettings
from neptune_assets.targets.wandb.load import WandbTarget
from neptune_assets.targets.wandb.settings import WandbSettings
from neptune_assets.testing.targets import load
from neptune_assets_tests.support.lake_factory import START, histograms, make_lake, metric, param, texts
from neptune_assets_tests.support.wandb_files import WandbFile, read_wandb

PROJECT = "ws/proj"


class ForkPlace:
    def __init__(self, root: Path, **options: Any) -> None:
        self.root, self.options = root, options

    def open(self) -> WandbTarget:
        return WandbTarget(WandbSettings(**self.options), LakeSettings(root=str(self.root / "lake")))

    def runs(self) -> dict[str, WandbFile]:
        found = [read_wandb(log) for log in (self.root / "lake/wandb").glob("*/offline-run-*/*.wandb")]
        return {run.config["neptune_assets"]["run_id"]: run for run in found}


def fork(parent: str, step: float, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    return [param("sys/forking/parent", parent), param("sys/forking/step", step), *rows]


def series(run: WandbFile, key: str) -> list[tuple[Decimal, Any]]:
    scale = run.config["neptune_assets"]["step_multiplier"]
    return [(Decimal(row["_step"]) / scale, row[key]) for row in run.history if key in row]


def lake(root: Path, parent_value: float = 0.0) -> None:
    shape = [0.0, 1.0]
    runs = {
        "parent": [
            *metric("loss", [parent_value + n for n in range(10)]),
            *metric("only/parent", [7.0, 8.0, 9.0], ["0.5", "2.5", "4"]),
            *histograms("h", [(shape, [float(n)]) for n in range(6)]),
            *texts("log", ["of the parent"]),
        ],
        "child": fork(
            "parent", 4.0, *metric("loss", [104.0, 105.0, 106.0], [4, 5, 6]), *histograms("h", [(shape, [50.0])], [5])
        ),
        "grandchild": fork("child", 5.0, *metric("loss", [206.0, 207.0], [6, 7]), *texts("log", ["mine"])),
        "early": fork("child", 1.0, *metric("loss", [302.0], [2])),
        "orphan": fork("gone", 3.0, *metric("loss", [4.0], [4])),
        "a": fork("b", 3.0, *metric("loss", [1.0], [5])),
        "b": fork("a", 3.0, *metric("loss", [2.0], [2])),
    }
    make_lake(root / "lake", {PROJECT: runs})


def test_a_fork_begins_with_what_its_ancestors_logged(tmp_path: Path) -> None:
    lake(tmp_path)
    place = ForkPlace(tmp_path)
    report = load(place, tmp_path)  # type: ignore[arg-type]
    assert report.failed == {}
    runs = place.runs()
    assert series(runs["parent"], "loss") == [(n, float(n)) for n in range(10)]
    assert series(runs["child"], "loss") == [*((n, float(n)) for n in range(4)), (4, 104.0), (5, 105.0), (6, 106.0)]
    assert series(runs["child"], "only/parent") == [(Decimal("0.5"), 7.0), (Decimal("2.5"), 8.0), (4, 9.0)]
    assert [(step, value["values"]) for step, value in series(runs["child"], "h")] == [
        *((n, [float(n)]) for n in range(5)),
        (5, [50.0]),
    ]
    assert series(runs["grandchild"], "loss") == [
        *((n, float(n)) for n in range(4)),
        *[(4, 104.0), (5, 105.0), (6, 206.0), (7, 207.0)],
    ]
    assert [step for step, _ in series(runs["grandchild"], "only/parent")] == [Decimal("0.5"), Decimal("2.5"), 4]
    assert len(series(runs["grandchild"], "log")) == 1
    assert series(runs["early"], "loss") == [(0, 0.0), (1, 1.0), (2, 302.0)]
    assert series(runs["early"], "only/parent") == [(Decimal("0.5"), 7.0)]
    assert series(runs["orphan"], "loss") == [(4, 4.0)]
    assert series(runs["a"], "loss") == [(2, 2.0), (5, 1.0)]
    assert series(runs["b"], "loss") == [(2, 2.0)]
    assert {name: list(run.run.tags) for name, run in runs.items() if run.run.tags} == {
        name: ["stitched fork"] for name in ("child", "grandchild", "early", "a")
    }
    assert runs["grandchild"].config["neptune_assets"]["stitched"] == [
        {"run_id": "child", "until": "5"},
        {"run_id": "parent", "until": "4"},
    ]
    assert runs["child"].summary["loss"] == 106.0
    assert runs["child"].history[0]["_timestamp"] == START.timestamp()
    receipt = next(receipt for receipt in report.receipts if receipt.run_id == "child")
    assert receipt.written["float_series"] + receipt.mapped.get("float_series", 0) == 3
    assert any("ancestors" in note for note in receipt.notes)


def test_a_fork_follows_its_parent(tmp_path: Path) -> None:
    lake(tmp_path)
    place = ForkPlace(tmp_path)
    load(place, tmp_path)  # type: ignore[arg-type]
    again = load(place, tmp_path)  # type: ignore[arg-type]
    assert (again.loaded, again.ok) == ([], True)
    lake(tmp_path, parent_value=0.5)
    report = load(place, tmp_path)  # type: ignore[arg-type]
    assert set(report.loaded) == {"parent", "child", "grandchild", "early"}
    assert series(place.runs()["grandchild"], "loss")[0] == (0, 0.5)


def test_forks_with_their_own_points_only(tmp_path: Path) -> None:
    lake(tmp_path)
    place = ForkPlace(tmp_path, forks="own")
    assert load(place, tmp_path).ok  # type: ignore[arg-type]
    child = place.runs()["child"]
    assert series(child, "loss") == [(4, 104.0), (5, 105.0), (6, 106.0)]
    assert list(child.run.tags) == []
    stitched = load(ForkPlace(tmp_path), tmp_path)  # type: ignore[arg-type]
    assert set(stitched.loaded) == {"child", "grandchild", "early", "a", "b"}


def test_a_point_of_the_parent_that_is_gone_is_found(tmp_path: Path) -> None:
    lake(tmp_path)
    place = ForkPlace(tmp_path)
    assert load(place, tmp_path).ok  # type: ignore[arg-type]
    from neptune_assets.lake.reader import Lake

    lake(tmp_path, parent_value=0.25)  # the lake's parent is no longer what was staged
    run = Lake(LakeSettings(root=str(tmp_path / "lake"))).project(PROJECT).run("early")
    target = place.open()
    (directory,) = [
        item.parent
        for item in (tmp_path / "lake/wandb").glob("*/*/*.wandb")
        if read_wandb(item).config["neptune_assets"]["run_id"] == "early"
    ]
    from neptune_assets.targets.wandb.staged_runs import read_marker

    marker = read_marker(directory)
    assert marker is not None
    verdict = target.verify(run, marker.as_receipt())
    assert any("loss" in line for line in verdict.differences)
