"""Nothing is lost or doubled on the way into W&B. Real lake, real files, a decoder that is not the target's.

Each test names a loss that loading Neptune runs into W&B used to have, and fails where it happens.
"""

from __future__ import annotations

import getpass
import hashlib
import io
import json
import math
import platform
import socket
import wave
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from neptune_assets.errors import TargetError
from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings
from neptune_assets.settings import WandbTarget as WandbSettings
from neptune_assets.targets.protocol import Receipt
from neptune_assets.targets.wandb.load import WandbTarget
from neptune_assets_tests.support.lake_factory import (
    START,
    file,
    file_set,
    files,
    histograms,
    make_lake,
    metric,
    param,
    params,
    texts,
)
from neptune_assets_tests.support.wandb_files import WandbFile, read_wandb

PROJECT = "ws/proj"


class Staged:
    def __init__(self, directory: Path, receipt: Receipt) -> None:
        (log,) = directory.glob("*.wandb")
        self.directory, self.receipt, self.log = directory, receipt, log
        self.found: WandbFile = read_wandb(log)

    def series(self, key: str) -> list[tuple[Any, Any]]:
        return [(row["_step"], row[key]) for row in self.found.history if key in row]

    def file(self, path: str) -> bytes:
        return (self.directory / "files" / path).read_bytes()


def stage(root: Path, rows: Sequence[dict[str, Any]], lake: dict[str, Any] | None = None, **options: Any) -> Staged:
    settings = LakeSettings(root=str(root / "lake"), **(lake or {}))
    project = make_lake(root / "lake", {PROJECT: {"RUN-1": list(rows)}}, settings=settings).project(PROJECT)
    target = WandbTarget(WandbSettings(staging=str(root / "staged"), **options), settings)
    target.check()
    run = project.run("RUN-1")
    receipt = target.replace(run, target.plan(run))
    verdict = target.verify(run, receipt)
    assert verdict.ok, verdict.differences
    assert receipt.unbalanced() == {}
    assert dict(receipt.rows_in) == dict(run.record.rows)
    (directory,) = (root / "staged").glob("*/offline-run-*")
    return Staged(directory, receipt)


def picture(color: str, size: tuple[int, int] = (4, 3)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, "PNG")
    return data.getvalue()


def test_every_line_of_a_string_series_arrives(tmp_path: Path) -> None:
    lines = [f"line {number} ü\n\x00'\"" for number in range(25_000)]
    staged = stage(tmp_path, texts("logs/out", lines, [Decimal(number) / 4 for number in range(25_000)]))
    found = [row["logs/out"] for row in staged.found.history if "logs/out" in row]
    assert [table["nrows"] for table in found] == [10_000, 10_000, 5_000]
    rows: list[list[Any]] = []
    for table in found:
        data = staged.file(table["path"])
        assert (len(data), hashlib.sha256(data).hexdigest()) == (table["size"], table["sha256"])
        assert table["path"] in staged.found.files
        rows += json.loads(data)["data"]
    assert [row[2] for row in rows] == lines
    assert [row[0] for row in rows] == [number / 4 for number in range(25_000)]
    assert [row[1] for row in rows[:3]] == [START.timestamp() + number for number in range(3)]
    assert staged.receipt.mapped == {"string_series": 25_000}


def test_histograms_stand_in_the_rows_of_their_steps(tmp_path: Path) -> None:
    shapes = [([0.0, 0.5, 1.0], [float(number), 2.0]) for number in range(10)]
    rows = [*metric("zz/later", [1.0] * 2_000), *histograms("h", shapes, [number * 7 for number in range(10)])]
    staged = stage(tmp_path, rows)
    assert staged.series("h") == [
        (number * 7, {"_type": "histogram", "values": [float(number), 2.0], "bins": [0.0, 0.5, 1.0]})
        for number in range(10)
    ]
    steps = [row["_step"] for row in staged.found.history]
    assert steps == list(range(2_000))
    assert all("zz/later" in row for row in staged.found.history)


def test_more_than_512_bins_are_joined_and_reported(tmp_path: Path) -> None:
    edges, counts = [float(number) for number in range(1_001)], [float(number % 7) for number in range(1_000)]
    wide = [float(number) ** 2 for number in range(1_001)]
    density = [1.0 + number % 3 for number in range(1_000)]
    rows = [*histograms("h", [(edges, counts)]), *histograms("d", [(wide, density)], kind="DENSITY")]
    staged = stage(tmp_path, rows)
    (_, held), (_, dense) = staged.series("h")[0], staged.series("d")[0]
    for made, source in ((held, edges), (dense, wide)):
        assert len(made["values"]) == 512
        assert len(made["bins"]) == 513
        assert (made["bins"][0], made["bins"][-1]) == (source[0], source[-1])
        assert set(made["bins"]) <= set(source)
    assert sum(held["values"]) == sum(counts)
    for begin, end, value in zip(held["bins"], held["bins"][1:], held["values"], strict=False):
        assert value == sum(counts[int(begin) : int(end)])
    mass = sum((b - a) * v for a, b, v in zip(dense["bins"], dense["bins"][1:], dense["values"], strict=False))
    assert mass == pytest.approx(sum((wide[i + 1] - wide[i]) * density[i] for i in range(1_000)))
    assert staged.receipt.mapped["histogram_series"] == 2
    assert any("512 bins" in note for note in staged.receipt.notes)
    exact = {
        row["attribute_path"]: row
        for row in pq.read_table(staged.directory / "files/neptune_assets/series.parquet").to_pylist()
    }
    assert exact["h"]["histogram_value"]["values"] == counts
    assert exact["d"]["histogram_value"]["edges"] == wide


def test_a_run_in_many_parts_is_one_history(tmp_path: Path) -> None:
    rows = [row for key in range(10) for row in metric(f"m/{key:02d}", [key + n / 1_000 for n in range(1_500)])]
    staged = stage(tmp_path, rows, {"rows_in_memory": 1_000, "sort_memory_mb": 32})
    assert [row["_step"] for row in staged.found.history] == list(range(1_500))
    for key in range(10):
        assert staged.series(f"m/{key:02d}") == [(n, key + n / 1_000) for n in range(1_500)]


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


def test_fractional_steps_do_not_meet(tmp_path: Path) -> None:
    steps = [Decimal(number) / 100 for number in range(200)]
    staged = stage(tmp_path, [*metric("a/loss", [float(n) for n in range(200)], steps), *metric("b", [5.0], ["0.29"])])
    assert staged.series("a/loss") == [(number, float(number)) for number in range(200)]
    assert [Decimal(row["neptune_step"]) for row in staged.found.texts] == steps
    assert staged.series("b") == [(29, 5.0)]
    assert staged.found.metrics == {"neptune_step": "", "a/loss": "neptune_step", "b": "neptune_step"}


def test_whole_steps_need_no_axis_of_ours(tmp_path: Path) -> None:
    staged = stage(tmp_path, metric("m", [1.0, 2.0], [3, 1_000_000]))
    assert staged.series("m") == [(3, 1.0), (1_000_000, 2.0)]
    assert staged.found.metrics == {}
    assert not any("neptune_step" in row for row in staged.found.history)


def test_times_are_those_of_the_run(tmp_path: Path) -> None:
    rows = [
        param("sys/creation_time", START - timedelta(seconds=10)),
        *metric("a", [1.0, 2.0, 3.0]),
        *metric("b", [1.0, 2.0], [0, 1], START + timedelta(milliseconds=5)),
        *metric("c", [7.0], [9], None),
    ]
    staged = stage(tmp_path, rows)
    t = START.timestamp()
    assert [row["_timestamp"] for row in staged.found.history] == [t, t + 1, t + 2, t + 2]
    assert [row["_runtime"] for row in staged.found.history] == [10, 11, 12, 12]
    assert staged.found.run.start_time.seconds == t - 10
    assert staged.receipt.written["float_series"] == 3
    assert staged.receipt.mapped["float_series"] == 3
    exact = pq.read_table(staged.directory / "files/neptune_assets/series.parquet").to_pylist()
    times = {(row["attribute_path"], int(row["step"])): row["timestamp"] for row in exact}
    assert times["b", 1] == START + timedelta(seconds=1, milliseconds=5)
    assert times["c", 9] is None


def test_nothing_of_this_machine_is_in_the_run(tmp_path: Path) -> None:
    staged = stage(tmp_path, [*params({"lr": 0.1}), *metric("m", [1.0]), *texts("t", ["x"])])
    assert set(staged.found.kinds) == {"header", "run", "history", "files", "summary", "exit"}
    run = staged.found.run
    assert (run.host, run.HasField("telemetry"), run.HasField("git"), run.HasField("settings")) == (
        "",
        False,
        False,
        False,
    )
    data = staged.log.read_bytes()
    for mine in (socket.gethostname(), platform.platform(), str(tmp_path), str(Path.cwd())):
        if len(mine) > 3:
            assert mine.encode() not in data
    names = {path.name for path in staged.directory.rglob("*") if path.is_file()}
    assert not names & {"wandb-metadata.json", "requirements.txt", "output.log", "debug.log", "conda-environment.yaml"}
    assert f'"{getpass.getuser()}"'.encode() not in data


def test_slashes_stay_and_names_do_not_meet(tmp_path: Path) -> None:
    names = ["a/b", "a_b", "A/b", "_step", "_timestamp", "_runtime", "_wandb", "neptune_step", "x" * 2_000, "x" * 2_001]
    staged = stage(tmp_path, [row for n, name in enumerate(names) for row in metric(name, [float(n)])])
    (row,) = staged.found.history
    assert (row["a/b"], row["a_b"], row["A/b"]) == (0.0, 1.0, 2.0)
    index = json.loads(staged.file("neptune_assets/index.json"))
    keys = {item["path"]: item["key"] for item in index["names"]}
    assert len(set(keys.values())) == len(names)
    for number, name in enumerate(names):
        assert row[keys[name]] == float(number)
        assert (keys[name] == name) == (number < 3)
        assert len(keys[name]) <= 512
    assert (row["_step"], row["_timestamp"]) == (0, START.timestamp())


def test_names_as_the_exporter_makes_them(tmp_path: Path) -> None:
    rows = [*metric("train/loss", [1.0]), *metric("a.b", [2.0]), *metric("a:b", [3.0]), *params({"opt/lr": 0.1})]
    staged = stage(tmp_path, rows, naming="neptune-exporter", project_prefix="team")
    (row,) = staged.found.history
    assert row["train_loss"] == 1.0
    assert "a_b" not in row  # two names meet here, so both carry a digest
    assert sorted(value for key, value in row.items() if key.startswith("a_b-")) == [2.0, 3.0]
    assert staged.found.run.project == "team_ws_proj"
    assert staged.found.config["opt_lr"] == 0.1


def test_tags_notes_state_and_nested_config(tmp_path: Path) -> None:
    rows = [
        *params(
            {
                "sys/tags": ["best", "it's", "x" * 100],
                "sys/group_tags": ["g"],
                "sys/description": "what\nfor",
                "sys/failed": True,
                "sys/name": "exp-1",
                "model/optimizer/lr": 0.1,
                "model/optimizer/name": "adam",
                "model/depth": 2**53 + 1,
                "model": "resnet",
                "_wandb": "mine",
                "neptune_assets/digest": "mine too",
                "empty//segment": 1,
                "flag": False,
            }
        ),
        param("model/nan", math.nan),
        param("model/inf", -math.inf),
    ]
    staged = stage(tmp_path, rows)
    run, config = staged.found.run, staged.found.config
    assert (run.project, run.run_group, run.display_name, run.notes) == ("proj", "exp-1", "RUN-1", "what\nfor")
    assert {"best", "it's", "group:g"} < set(run.tags)
    assert all(len(tag) <= 64 for tag in run.tags)
    assert len(run.tags) == 4
    assert staged.found.exit_code == 1
    assert config["model"] == {
        "optimizer": {"lr": 0.1, "name": "adam"},
        "depth": 2**53 + 1,
        "nan": "NaN",
        "inf": "-Infinity",
    }
    assert config["sys"]["tags"] == ["best", "it's", "x" * 100]
    assert config["flag"] is False
    assert config["empty//segment"] == 1
    (renamed,) = [value for key, value in config.items() if key.startswith("model-")]
    assert renamed == "resnet"
    assert "_wandb" not in config
    (mine,) = [value for key, value in config.items() if key.startswith("_wandb-")]
    assert mine == "mine"
    assert config["neptune_assets"]["run_id"] == "RUN-1"
    assert staged.receipt.mapped["float"] == 2


def test_forks_name_their_parent(tmp_path: Path) -> None:
    rows = [param("sys/forking/parent", "RUN-0"), param("sys/forking/step", 2.5), *metric("m", [1.0], [3])]
    origin = stage(tmp_path, rows).found.config["neptune_assets"]
    assert (origin["parent"], origin["fork_step"]) == ("RUN-0", "2.5")
    assert origin["parent_run"].startswith("np")


def test_media_are_native_and_other_files_are_files(tmp_path: Path) -> None:
    sound = io.BytesIO()
    with wave.open(sound, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8_000)
        out.writeframes(bytes(200))
    pictures = [picture(color) for color in ("red", "green", "blue")]
    rows = [
        *metric("m", [1.0, 2.0, 3.0, 4.0]),
        *files("pred/img", pictures, [0, 2, 3], extension="png"),
        *files("dumps", [b"one", b"two"], [0, 1]),
        file("page", b"<b>hi</b>", "page.html"),
        file("sound", sound.getvalue(), "a.wav"),
        file("nameless", picture("black", (9, 5))),
        file("model/weights", b"\x00\x01\x02", "weights.pt"),
        file("notpicture", b"no picture at all", "x.png"),
        file_set("source", {"a.py": b"print(1)", "sub/b.py": b"", "sub/c.png": pictures[0]}),
    ]
    staged = stage(tmp_path, rows)
    found = staged.series("pred/img")
    assert [step for step, _ in found] == [0, 2, 3]
    for (_, facts), data in zip(found, pictures, strict=True):
        assert (facts["_type"], facts["format"], facts["width"], facts["height"]) == ("image-file", "png", 4, 3)
        assert staged.file(facts["path"]) == data
        assert facts["sha256"] == hashlib.sha256(data).hexdigest()
        assert facts["size"] == len(data)
        assert facts["path"] in staged.found.files
    last = staged.found.history[-1]
    assert [last[key]["_type"] for key in ("page", "sound", "nameless")] == ["html-file", "audio-file", "image-file"]
    assert (last["nameless"]["width"], last["nameless"]["height"]) == (9, 5)
    assert staged.found.summary["page"]["_type"] == "html-file"
    index = json.loads(staged.file("neptune_assets/index.json"))["files"]
    where = {(item["attribute_path"], item["step"], item["member"]): item["path"] for item in index}
    assert staged.file(where["dumps", 0, None]) == b"one"
    assert staged.file(where["dumps", 1_000_000, None]) == b"two"
    assert where["model/weights", None, None] == "neptune/model/weights.pt"
    assert where["notpicture", None, None] == "neptune/notpicture.png"
    assert where["source", None, "sub/b.py"] == "neptune/source/sub/b.py"
    assert staged.file(where["source", None, "sub/c.png"]) == pictures[0]
    assert set(where.values()) <= set(staged.found.files)
    assert staged.receipt.written["file_set"] == 1
    assert "notpicture" not in last


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


def test_a_remote_lake_needs_a_place_to_stage() -> None:
    from neptune_assets.errors import SettingsError

    with pytest.raises(SettingsError, match=r"targets\.wandb\.staging"):
        WandbTarget(WandbSettings(), LakeSettings(root="s3://bucket/lake"))
