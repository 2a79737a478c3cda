"""Staging keeps every value, name and byte. Real lake, real files, a decoder that is not the target's."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from neptune_assets.errors import TargetError
from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.wandb import codec, history
from neptune_assets.targets.wandb.load import WandbTarget
from neptune_assets.targets.wandb.settings import WandbSettings
from neptune_assets_tests.support.lake_factory import (
    file,
    histograms,
    make_lake,
    metric,
    param,
    params,
    texts,
)
from neptune_assets_tests.support.wandb_staged import PROJECT, picture, stage


def test_many_histograms_are_sorted_on_disk(tmp_path: Path) -> None:
    rows = [
        row
        for key in range(4)
        for row in histograms(f"h{key}", [([0.0, 1.0, 2.0], [float(n), float(key)]) for n in range(600)])
    ]
    staged = stage(tmp_path, rows, {"rows_in_memory": 1_000, "sort_memory_mb": 32})
    for key in range(4):
        assert [(step, value["values"]) for step, value in staged.series(f"h{key}")] == [
            (n, [float(n), float(key)]) for n in range(600)
        ]


def test_whole_steps_need_no_axis_of_ours(tmp_path: Path) -> None:
    staged = stage(tmp_path, metric("m", [1.0, 2.0], [3, 1_000_000]))
    assert staged.series("m") == [(3, 1.0), (1_000_000, 2.0)]
    assert staged.found.metrics == {}
    assert not any("neptune_step" in row for row in staged.found.history)


def test_names_as_the_exporter_makes_them(tmp_path: Path) -> None:
    rows = [*metric("train/loss", [1.0]), *metric("a.b", [2.0]), *metric("a:b", [3.0]), *params({"opt/lr": 0.1})]
    staged = stage(tmp_path, rows, naming="neptune-exporter", project_prefix="team")
    (row,) = staged.found.history
    assert row["train_loss"] == 1.0
    assert "a_b" not in row  # two names meet here, so both carry a digest
    assert sorted(value for key, value in row.items() if key.startswith("a_b-")) == [2.0, 3.0]
    assert staged.found.run.project == "team_ws_proj"
    assert staged.found.config["opt_lr"] == 0.1


def test_forks_name_their_parent(tmp_path: Path) -> None:
    rows = [param("sys/forking/parent", "RUN-0"), param("sys/forking/step", 2.5), *metric("m", [1.0], [3])]
    origin = stage(tmp_path, rows).found.config["neptune_assets"]
    assert (origin["parent"], origin["fork_step"]) == ("RUN-0", "2.5")
    assert origin["parent_run"].startswith("np")


def test_files_of_a_run_without_any_series(tmp_path: Path) -> None:
    staged = stage(tmp_path, [param("p", 1), file("chart", picture("red"), "c.png")])
    (row,) = staged.found.history
    assert row["chart"]["_type"] == "image-file"


def test_odd_numbers_keep_their_bits(tmp_path: Path) -> None:
    values = [math.nan, math.inf, -math.inf, -0.0, 0.0, 5e-324, 1.7976931348623157e308, 0.1, 1e22, 123456789.125, 1e16]
    staged = stage(tmp_path, metric("m", values))
    held = [value for _, value in staged.series("m")]
    assert [value.hex() if value == value else "nan" for value in map(float, held)] == [
        value.hex() if value == value else "nan" for value in values
    ]
    assert [row["m"] for row in staged.found.texts[:4]] == ["NaN", "Infinity", "-Infinity", "-0.0"]


def test_rows_never_grow_beyond_what_wandb_takes(tmp_path: Path) -> None:
    edges = [number / 3 for number in range(513)]
    counts = [number / 7 for number in range(512)]
    keys = [f"layer/{number:03d}" for number in range(680)]
    rows = [row for key in keys for row in histograms(key, [(edges, counts)])]
    staged = stage(tmp_path, [*rows, *metric("m", [1.0, 2.0])])
    sizes = [sum(len(key) + len(value) for key, value in row.items()) for row in staged.found.texts]
    assert max(sizes) < 10 * 2**20 - 100 * 2**10 < sum(sizes)
    assert [row["_step"] for row in staged.found.history] == list(range(len(sizes)))
    assert [row["neptune_step"] for row in staged.found.history] == [*[0] * (len(sizes) - 1), 1]
    assert sorted(key for row in staged.found.history for key in row if key in keys) == keys


def test_staging_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = [
        *params({"a": 1, "b/c": "x"}),
        *metric("m", [1.0, math.nan]),
        *texts("t", ["x", "y"]),
        file("f", b"1", "f.bin"),
    ]
    one, two = stage(tmp_path / "1", rows), stage(tmp_path / "2", rows)
    assert one.directory.name == two.directory.name
    held = [
        {str(path.relative_to(s.directory)): path.read_bytes() for path in s.directory.rglob("*") if path.is_file()}
        for s in (one, two)
    ]
    assert held[0] == held[1]


def test_projects_of_two_workspaces_stay_apart(tmp_path: Path) -> None:
    settings = LakeSettings(root=str(tmp_path / "lake"))
    lake = make_lake(tmp_path / "lake", {"one/p": {"R": metric("m", [1.0])}, "two/p": {"R": metric("m", [2.0])}})
    seen = set()
    for name in ("one/p", "two/p"):
        run = lake.project(name).run("R")
        target = WandbTarget(WandbSettings(), settings)
        receipt = target.replace(run, target.plan(run))
        assert target.verify(run, receipt).ok
        seen.add((receipt.checks["wandb_project"], receipt.target_id))
    assert len({project for project, _ in seen}) == 2
    assert len({run for _, run in seen}) == 2


def test_a_project_keeps_its_name_when_another_arrives(tmp_path: Path) -> None:
    settings = LakeSettings(root=str(tmp_path / "lake"))
    run = make_lake(tmp_path / "lake", {"one/p": {"R": metric("m", [1.0])}}).project("one/p").run("R")
    target = WandbTarget(WandbSettings(), settings)
    assert target.replace(run, target.plan(run)).checks["wandb_project"] == "p"
    make_lake(tmp_path / "lake", {"two/p": {"R": metric("m", [1.0])}})
    assert Lake(settings).projects() == ["one/p", "two/p"]
    assert WandbTarget(WandbSettings(), settings).find("one/p", "R") == target.find("one/p", "R")
    other = Lake(settings).project("two/p").run("R")
    later = WandbTarget(WandbSettings(), settings)
    assert later.replace(other, later.plan(other)).checks["wandb_project"].startswith("p-")


@pytest.mark.parametrize("what", ["flip", "cut", "media", "index"])
def test_verify_finds_damage(tmp_path: Path, what: str) -> None:
    settings = LakeSettings(root=str(tmp_path / "lake"))
    rows = [*metric("m", [float(n) for n in range(5_000)]), *texts("t", ["x"]), file("f", picture("red"), "f.png")]
    run = make_lake(tmp_path / "lake", {PROJECT: {"R": rows}}).project(PROJECT).run("R")
    target = WandbTarget(WandbSettings(), settings)
    receipt = target.replace(run, target.plan(run))
    (log,) = (tmp_path / "lake").rglob("*.wandb")
    data = bytearray(log.read_bytes())
    if what == "flip":
        data[len(data) // 2] ^= 1
        log.write_bytes(data)
    elif what == "cut":
        log.write_bytes(data[:-1])
    elif what == "media":
        (image,) = (tmp_path / "lake").rglob("media/images/*")
        image.write_bytes(image.read_bytes()[:-1] + b"\x00")
    else:
        (table,) = (tmp_path / "lake").rglob("media/table/*")
        table.unlink()
    try:
        verdict = WandbTarget(WandbSettings(), settings).verify(run, receipt)
    except TargetError as error:
        assert what in {"flip", "cut"}
        assert "damaged" in str(error) or "ends within" in str(error)  # noqa: PT017
    else:
        assert not verdict.ok


MISUNDERSTANDINGS = {
    "keys and values change places": lambda f: replace(
        f, items=replace(f.items, key=f.items.value_json, value_json=f.items.key)
    ),
    "the step is another field": lambda f: replace(f, step_num=f.step_num + 1),
    "a row is another kind of record": lambda f: replace(f, history=f.history + 1_000),
}


@pytest.mark.parametrize("what", MISUNDERSTANDINGS)
def test_a_misunderstanding_that_encoder_and_decoder_share_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    run = make_lake(tmp_path / "lake", {PROJECT: {"RUN-1": metric("m", [n / 7 for n in range(100)])}})
    lake_run = run.project(PROJECT).run("RUN-1")
    target = WandbTarget(WandbSettings(staging=str(tmp_path / "staged")), LakeSettings(root=str(tmp_path / "lake")))
    fields = MISUNDERSTANDINGS[what](codec.history_fields())
    for module in (codec, history):
        monkeypatch.setattr(module, "history_fields", lambda: fields)
    verdict = target.verify(lake_run, target.replace(lake_run, target.plan(lake_run)))
    (difference,) = verdict.differences
    assert re.fullmatch(r"history row \d+ is not what wandb's own classes read", difference)


def test_a_remote_lake_needs_a_place_to_stage() -> None:
    from neptune_assets.errors import SettingsError

    with pytest.raises(SettingsError, match=r"targets\.wandb\.staging"):
        WandbTarget(WandbSettings(), LakeSettings(root="s3://bucket/lake"))
