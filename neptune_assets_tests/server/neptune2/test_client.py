"""The real neptune-client: what it logs comes back as it went; tables beyond 10,000 rows are whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.lake.reader import Lake
from neptune_assets.server.store.runs import NewRun
from neptune_assets.settings import LakeSettings
from neptune_assets.testing.lakes import file, file_set, files, make_lake, metric, params, texts
from neptune_assets_tests.support.neptune2 import PROJECT
from neptune_assets_tests.support.server import Served, ServerProcess, server_in_thread, server_process

HEADER = """
import json, logging, os, sys, warnings, zipfile
from datetime import datetime, timezone
from pathlib import Path
warnings.simplefilter("ignore")
import neptune
import numpy
from neptune import management
from neptune.types import File, FloatSeries
PROJECT, result = "team/vision", {}
QUIET = dict(capture_stdout=False, capture_stderr=False, capture_hardware_metrics=False, source_files=[], git_ref=False)
"""
FOOTER = """
Path(sys.argv[1]).write_text(json.dumps(result, default=str))
"""
EVERYTHING = """
run = neptune.init_run(project=PROJECT, custom_run_id="mine", name="nm", description="d", tags=["b", "a"], **QUIET)
moment = datetime(2024, 1, 31, 12, 0, 0, 123000, tzinfo=timezone.utc)
values = {"f": -0.1, "i": -(2**31), "b": True, "s": "line\\n\\u00e9 ", "d": moment}
for name, value in values.items():
    run[f"atoms/{name}"] = value
run["copy"] = run["atoms/f"]
for step in range(2500):
    run["loss"].append(1 / (step + 1))
run["steps"].extend([1.0, 2.0, 3.0], steps=[0.5, 10, 10.25], timestamps=[1e9, 1e9 + 1, 1e9 + 2.5])
run["log"].extend(["a", "", "c"], steps=[1, 2, 3])
run["assigned"] = FloatSeries([4.0, 5.0])
run["file"].upload(File.from_content("hello", extension="txt"))
run["large"].upload(File.from_content(bytes(range(256)) * 45_000, extension="bin"))
os.makedirs("set/sub")
for name, text in (("set/1.txt", "1"), ("set/sub/2.txt", "22")):
    Path(name).write_text(text)
run["set"].upload_files("set")
run["one"].upload_files("set/1.txt")
run["artifact"].track_files("set")
for shade in (0, 255):
    run["image"].append(File.as_image(numpy.full((2, 2, 3), shade, dtype="uint8")))
run.sync()
result["equal"] = {name: run[f"atoms/{name}"].fetch() == value for name, value in values.items()}
result["copy"] = run["copy"].fetch()
loss = run["loss"].fetch_values(progress_bar=False)
result["loss"] = [list(loss["value"]) == [1 / (n + 1) for n in range(2500)], list(loss["step"]) == list(range(2500))]
steps = run["steps"].fetch_values(progress_bar=False)
result["steps"] = [list(steps["step"]), list(steps["value"]), [t.timestamp() for t in steps["timestamp"]]]
result["log"] = list(run["log"].fetch_values(progress_bar=False)["value"])
result["assigned"] = [run["assigned"].fetch_last(), run["log"].fetch_last()]
run["file"].download("file.out", progress_bar=False)
run["large"].download(progress_bar=False)
result["files"] = [Path("file.out").read_text(), Path("large.bin").read_bytes() == bytes(range(256)) * 45_000]
result["extension"] = run["file"].fetch_extension()
for name in ("set", "one"):
    run[name].download(f"{name}.zip", progress_bar=False)
    result[name] = sorted(zipfile.ZipFile(f"{name}.zip").namelist())
result["listed"] = [(item.name, item.file_type, item.size) for item in run["set"].list_fileset_files("set")]
tracked = run["artifact"].fetch_files_list()
result["artifact"] = [run["artifact"].fetch_hash(), [(item.file_path, item.size) for item in tracked]]
run["image"].download("images", progress_bar=False)
result["images"] = sorted(os.listdir("images"))
run["sys/tags"].remove("b")
del run["atoms/f"]
run["atoms"]["i"] = 7
run.sync()
result["tags"] = sorted(run["sys/tags"].fetch())
result["gone"] = run.exists("atoms/f")
result["sys"] = {name: run[f"sys/{name}"].fetch() for name in ("id", "name", "description", "custom_run_id", "owner")}
run.stop()

again = neptune.init_run(project=PROJECT, with_id="VISION-1", mode="read-only")
result["again"] = again["atoms/i"].fetch()
model = neptune.init_model(project=PROJECT, key="MOD")
try:
    neptune.init_model(project=PROJECT, key="MOD")
except neptune.exceptions.NeptuneModelKeyAlreadyExistsError:
    result["collision"] = True
version = neptune.init_model_version(project=PROJECT, model="VISION-MOD")
version.change_stage("production")
version.sync()
result["version"] = [version["sys/id"].fetch(), version["sys/stage"].fetch()]
rows = model.fetch_model_versions_table(progress_bar=False).to_pandas()
result["versions"] = list(rows["sys/id"])
version.stop(); model.stop()
with neptune.init_project(project=PROJECT) as project:
    project["note"] = "n"
    project.sync()
    result["project"] = [project["note"].fetch(), sorted(project.get_structure())]
with neptune.init_run(project=PROJECT, mode="debug") as run:
    pass
with neptune.init_project(project=PROJECT, mode="read-only") as project:
    table = lambda **asked: len(project.fetch_runs_table(progress_bar=False, **asked).to_rows())
    result["tables"] = [table(), table(tag="a"), table(tag="b"), table(query="(atoms/i: int = 7)"), table(owner="no")]
    management.trash_objects(PROJECT, "VISION-1")
    result["trash"] = [table(), table(trashed=True), table(trashed=None)]
management.clear_trash(PROJECT)
result["projects"] = management.get_project_list()
management.delete_project(PROJECT)
result["projects after"] = management.get_project_list()
"""
TABLES = """
with neptune.init_project(project=PROJECT, mode="read-only") as project:
    for asked in ({}, {"ascending": True}, {"sort_by": "sys/id"}, {"trashed": None}, {"query": "sys/trashed = false"}):
        rows = project.fetch_runs_table(columns=["sys/id"], progress_bar=False, **asked)
        result[json.dumps(asked)] = [row.get_attribute_value("sys/id") for row in rows]
"""
LAKE = """
with neptune.init_run(project=PROJECT, with_id="VIS-7", mode="read-only") as run:
    result["atoms"] = [run["lr"].fetch(), sorted(run["sys/tags"].fetch()), run["sys/creation_time"].fetch().isoformat()]
    result["series"] = list(run["loss"].fetch_values(progress_bar=False)["value"])
    result["log"] = list(run["log"].fetch_values(progress_bar=False)["value"])
    run["file"].download("f", progress_bar=False)
    run["set"].download("s.zip", progress_bar=False)
    run["images"].download("i", progress_bar=False)
    result["files"] = [Path("f").read_text(), sorted(zipfile.ZipFile("s.zip").namelist()), sorted(os.listdir("i"))]
with neptune.init_run(project=PROJECT, with_id="VIS-7", **QUIET) as run:
    run["loss"].append(9.0)
    run["new"] = 1
    run.sync()
    result["resumed"] = list(run["loss"].fetch_values(progress_bar=False)["value"])
    run["set"].download("s2.zip", progress_bar=False)
    result["set"] = sorted(zipfile.ZipFile("s2.zip").namelist())
with neptune.init_project(project=PROJECT, mode="read-only") as project:
    rows = project.fetch_runs_table(progress_bar=False, ascending=True).to_pandas()
    result["table"] = [list(rows["sys/id"]), list(rows["loss"])]
"""
WRITER = """
run = neptune.init_run(project=PROJECT, custom_run_id="mine", **QUIET)
print("ready", flush=True)
for step in range(600):
    run["plain"].append(step)
    run["numbered"].append(step, step=step)
    run["text"].append(str(step))
    if step % 100 == 0:
        run[f"files/{step}"].upload(File.from_content(str(step)))
        sys.stdin.readline()
run.stop()
print("done", flush=True)
"""


def environment(served: Served | ServerProcess, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NEPTUNE")}
    return {**kept, "NEPTUNE_API_TOKEN": served.token, "OAUTHLIB_INSECURE_TRANSPORT": "1", **more}


def client(served: Served, folder: Path, script: str, **more: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "script.py").write_text(HEADER + script + FOOTER)
    finished = subprocess.run(
        [sys.executable, "script.py", "result.json"],
        cwd=folder,
        env=environment(served, HOME=str(folder), **more),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-5000:] + finished.stderr[-5000:]
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def test_everything_comes_back_as_it_went(tmp_path: Path) -> None:
    with server_in_thread(tmp_path / "store") as served, served.client() as http:
        http.post("/api/backend/v1/projects", json={"organizationId": "team", "name": "vision"}).raise_for_status()
        found = client(served, tmp_path / "work", EVERYTHING)
    assert found["equal"] == dict.fromkeys("fibsd", True)
    assert found["copy"] == -0.1
    assert found["loss"] == [True, True]
    assert found["steps"][:2] == [[0.5, 10.0, 10.25], [1.0, 2.0, 3.0]]
    assert found["steps"][2] == [1e9, 1e9 + 1, 1e9 + 2.5]
    assert found["log"] == ["a", "", "c"]
    assert found["assigned"] == [5.0, "c"]
    assert found["files"] == ["hello", True]
    assert found["extension"] == "txt"
    assert found["set"] == ["/", "set/", "set/1.txt", "set/sub/", "set/sub/2.txt"]
    assert found["one"] == ["/", "set/", "set/1.txt"]
    assert found["listed"] == [["sub", "directory", 2], ["1.txt", "file", 1]]
    assert found["artifact"][1] == [["1.txt", 1], ["sub/2.txt", 2]]
    assert len(found["artifact"][0]) == 64
    assert found["images"] == ["0.png", "1.png"]
    assert found["tags"] == ["a"]
    assert found["gone"] is False
    assert found["sys"] == {
        **{"id": "VISION-1", "name": "nm", "description": "d", "custom_run_id": "mine", "owner": "neptune"},
    }
    assert found["again"] == 7
    assert found["collision"] is True
    assert found["version"] == ["VISION-MOD-1", "production"]
    assert found["versions"] == ["VISION-MOD-1"]
    assert found["project"] == ["n", ["note", "sys"]]
    assert found["tables"] == [1, 1, 0, 1, 0]
    assert found["trash"] == [0, 1, 1]
    assert found["projects"] == [PROJECT]
    assert found["projects after"] == []


@pytest.mark.slow
def test_tables_beyond_10_000_rows_hold_every_run_once_in_both_directions(tmp_path: Path) -> None:
    count, ties = 20_300, 9_000
    with server_in_thread(tmp_path / "store") as served:
        assert served.service is not None
        with served.service.store.project(PROJECT, create=True).write() as writing:
            for number in range(count):
                # Thousands of runs share a time: one boundary lies inside of a tie, another inside of the next one.
                writing.create_run(NewRun(None, generation="2", created_at=1_700_000_000_000 + number // ties))
        found = client(served, tmp_path / "work", TABLES, NEPTUNE_FETCH_TABLE_STEP_SIZE="5000")
    times = {f"VISION-{number + 1}": number // ties for number in range(count)}
    assert len(found) == 5
    for asked, ids in found.items():
        assert len(ids) == count, asked
        assert set(ids) == set(times), asked
        if "sort_by" in asked:
            assert ids == sorted(ids, reverse=True)
        else:
            shown = [times[name] for name in ids]
            assert shown == sorted(shown, reverse="ascending" not in asked)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    created = datetime(2024, 1, 31, 12, tzinfo=UTC)
    run = [
        *params(
            {"sys/id": "VIS-7", "sys/name": "old", "sys/tags": ["b", "a"], "sys/creation_time": created, "lr": 0.5}
        ),
        *metric("loss", [3.0, 2.0, 1.0]),
        *texts("log", ["x", "y"]),
        file("file", b"bytes", "f.txt"),
        *files("images", [b"\x89PNG\r\n\x1a\n1", b"\x89PNG\r\n\x1a\n2"], extension="png"),
        file_set("set", {"a.txt": b"a", "sub/b.txt": b"bb"}),
    ]
    other = [
        *params({"sys/id": "VIS-8", "sys/creation_time": datetime(2024, 2, 1, tzinfo=UTC)}),
        *metric("loss", [7.0]),
    ]
    return make_lake(tmp_path / "lake", {PROJECT: {"VIS-7": run, "VIS-8": other}})


def test_runs_that_only_the_lake_has_are_read_and_resumed(lake: Lake, tmp_path: Path) -> None:
    with server_in_thread(tmp_path / "store", lake=LakeSettings(root=str(lake.settings.root))) as served:
        found = client(served, tmp_path / "work", LAKE)
    assert found["atoms"] == [0.5, ["a", "b"], "2024-01-31T12:00:00+00:00"]
    assert found["series"] == [3.0, 2.0, 1.0]
    assert found["log"] == ["x", "y"]
    assert found["files"] == ["bytes", ["/", "a.txt", "sub/", "sub/b.txt"], ["0.png", "1.png"]]
    assert found["resumed"] == [3.0, 2.0, 1.0, 9.0]
    assert found["set"] == ["/", "a.txt", "sub/", "sub/b.txt"]
    assert found["table"] == [["VIS-7", "VIS-8"], [9.0, 7.0]]


@pytest.mark.slow
def test_a_server_that_is_killed_while_it_is_written_to_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    with server_process(tmp_path / "store") as server:
        served = Served(server.url, server.token, server.store)
        with served.client() as http:
            http.post("/api/backend/v1/projects", json={"organizationId": "team", "name": "vision"}).raise_for_status()
        (tmp_path / "writer.py").write_text(HEADER + WRITER)
        writer = subprocess.Popen(
            [sys.executable, "writer.py"],
            cwd=tmp_path,
            env=environment(served, HOME=str(tmp_path)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert writer.stdin is not None
        assert writer.stdout is not None
        lines = iter(writer.stdout)
        while "ready" not in next(lines):
            pass
        for turn in range(6):
            if turn % 2:
                server.kill()
            writer.stdin.write("\n")
            writer.stdin.flush()
            if turn % 2:
                server.start()
        writer.stdin.close()
        assert any("done" in line for line in lines)
        assert writer.wait(300) == 0
        server.kill()
        server.start()
        with served.client() as http:
            named = {"experimentId": f"{PROJECT}/VISION-1", "limit": 10_000, "offset": 0}
            for series, kind in (("plain", "float"), ("numbered", "float"), ("text", "string")):
                answer = http.get(
                    f"/api/leaderboard/v1/attributes/series/{kind}", params={**named, "attribute": series}
                )
                values = [float(item["value"]) for item in answer.raise_for_status().json()["values"]]
                assert values == list(range(600)), series
            for step in range(0, 600, 100):
                answer = http.get(
                    "/api/leaderboard/v1/attributes/download", params={**named, "attribute": f"files/{step}"}
                )
                assert answer.content == str(step).encode()
