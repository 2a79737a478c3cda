"""What neptune-exporter loses on the way into W&B arrives: a test for each row of the list of its losses.

1. String series arrive as files of 0 bytes. 2. No histogram arrives, as they are logged after metrics of higher steps.
3. Of a run's second part only the points after the first part's last step arrive. 4. Fractional steps collapse.
5. Times are those of the load; host, program and console are the migrating machine's. 6. ``/`` becomes ``_``. 7. A name
of more than 128 characters fails the run. 8. Tags, notes, the failed state and nesting are lost, media are plain files.
Real lake, real files; each test fails where the loss happens. Read with a decoder that is not the target's.
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
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neptune_assets.schema import SCHEMA, STEP_TYPE, TIME_TYPE
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.wandb.load import WandbTarget
from neptune_assets.targets.wandb.settings import WandbSettings
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
from neptune_assets_tests.support.wandb_files import read_wandb
from neptune_assets_tests.support.wandb_staged import PROJECT, picture, stage


def test_row_1_string_series_arrive_whole(tmp_path: Path) -> None:
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


def test_row_2_histograms_stand_in_the_rows_of_their_steps(tmp_path: Path) -> None:
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


def test_row_2_more_than_512_bins_are_joined_and_reported(tmp_path: Path) -> None:
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


def long_run(series: int, steps: int) -> pa.Table:
    """One run of many points, which rows as dictionaries would make slowly."""
    rows = series * steps
    step = pa.array([Decimal(number) for number in range(steps)], STEP_TYPE)
    names = np.repeat([f"metrics/group{number % 4}/m{number:03d}" for number in range(series)], steps)
    columns = {
        "project_id": pa.repeat(pa.scalar(PROJECT), rows),
        "run_id": pa.repeat(pa.scalar("RUN-1"), rows),
        "attribute_path": pa.array(names),
        "attribute_type": pa.repeat(pa.scalar("float_series"), rows),
        "step": pa.chunked_array([step] * series).combine_chunks(),
        "timestamp": pa.array(np.tile(1_700_000_000_000 + np.arange(steps) * 1_000, series)).cast(TIME_TYPE),
        "float_value": pa.array(np.random.default_rng(2).standard_normal(rows)),
    }
    arrays = [columns.get(field.name, pa.nulls(rows, field.type)) for field in SCHEMA]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def test_row_3_many_parts_are_one_history(tmp_path: Path) -> None:
    table = long_run(10, 30_000)
    settings = LakeSettings(root=str(tmp_path / "lake"), rows_in_memory=20_000, sort_memory_mb=64, part_mb=1)
    project = make_lake(tmp_path / "lake", {PROJECT: {"RUN-1": table}}, settings=settings).project(PROJECT)
    assert len(project.run("RUN-1").record.parts) > 1
    target = WandbTarget(WandbSettings(), settings)
    target.replace(project.run("RUN-1"), target.plan(project.run("RUN-1")))
    (log,) = (tmp_path / "lake/wandb").glob("*/*/*.wandb")
    found = read_wandb(log)
    assert [row["_step"] for row in found.history] == list(range(30_000))
    logged = table["float_value"].to_numpy()
    for key in range(10):
        held = [row[f"metrics/group{key % 4}/m{key:03d}"] for row in found.history]
        assert held == logged[key * 30_000 : (key + 1) * 30_000].tolist()


def test_row_4_fractional_steps_do_not_meet(tmp_path: Path) -> None:
    steps = [Decimal(number) / 100 for number in range(200)]
    staged = stage(tmp_path, [*metric("a/loss", [float(n) for n in range(200)], steps), *metric("b", [5.0], ["0.29"])])
    assert staged.series("a/loss") == [(number, float(number)) for number in range(200)]
    assert [Decimal(row["neptune_step"]) for row in staged.found.texts] == steps
    assert staged.series("b") == [(29, 5.0)]
    assert staged.found.metrics == {"neptune_step": "", "a/loss": "neptune_step", "b": "neptune_step"}


def test_row_5_times_are_those_of_the_run(tmp_path: Path) -> None:
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


def test_row_5_nothing_of_this_machine_is_in_the_run(tmp_path: Path) -> None:
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


def test_row_6_slashes_stay_and_names_do_not_meet(tmp_path: Path) -> None:
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


def test_row_7_long_names_fail_nothing(tmp_path: Path) -> None:
    long = "folder/" + "x" * 300
    rows = [
        *metric("m", [1.0]),
        file(long + "1", b"one", "a.bin"),
        file(long + "2", b"two", "a.bin"),
        file_set(long + "3", {"y" * 250 + ".txt": b"three", "z/" + "y" * 240 + ".txt": b"four"}),
        *files("p" * 400, [picture("red")], [0], extension="png"),
        param("sys/name", "n" * 300),
    ]
    staged = stage(tmp_path, rows)
    index = json.loads(staged.file("neptune_assets/index.json"))["files"]
    held = {(item["attribute_path"], item["member"]): staged.file(item["path"]) for item in index}
    assert held[long + "1", None] == b"one"
    assert held[long + "2", None] == b"two"
    assert {data for (path, _), data in held.items() if path == long + "3"} == {b"three", b"four"}
    assert held["p" * 400, None] == picture("red")
    assert len({item["path"] for item in index}) == len(index) == 5
    for item in index:
        assert item["path"] in staged.found.files
        assert all(len(part.encode()) <= 255 for part in item["path"].split("/"))
    assert len(staged.found.run.run_group) == 128
    assert staged.found.run.run_group.startswith("nnn")


def test_row_8_tags_notes_state_and_nested_config(tmp_path: Path) -> None:
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


def test_row_8_media_are_native_and_other_files_are_files(tmp_path: Path) -> None:
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
