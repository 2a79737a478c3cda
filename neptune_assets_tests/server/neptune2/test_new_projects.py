"""The real 2.x client and a project that the server does not have: made by who writes, as settings say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from neptune_assets_tests.support.neptune2 import Http
from neptune_assets_tests.support.server import Served, server_in_thread

SYNC = "from neptune.cli.commands import sync; sync()"
FORKED = Path(__file__).parent / "forked_workers"
NEW_PROJECT = Path(__file__).parents[2] / "cases" / "own" / "new-project"
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
LOG = """
import neptune
run = neptune.init_run(project="team/new", capture_stdout=False, capture_stderr=False,
                       capture_hardware_metrics=False, source_files=[], git_ref=False)
run["x"] = 1
run["m"].append(2.5)
run.stop()
with neptune.init_project(project="team/other") as project:
    project["note"] = "n"
with neptune.init_model(project="team/models", key="MOD") as model:
    model["y"] = 2
"""
READ = """
import neptune
try:
    with neptune.init_project(project="team/none", mode="read-only") as project:
        print(len(project.fetch_runs_table(progress_bar=False).to_rows()))
except Exception as error:
    print(type(error).__name__)
"""


def python(served: Served, directory: Path, *arguments: str) -> str:
    environment = {**os.environ, "OAUTHLIB_INSECURE_TRANSPORT": "1", "NEPTUNE_API_TOKEN": served.token}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=directory,
        env={**environment, "HOME": str(directory)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def series(http: Http, run: str, path: str, call: str) -> list[tuple[float, object]]:
    found = http.call(call, experimentId=run, attribute=path, limit=1000, offset=0)
    return [(item["step"], item["value"]) for item in found["values"]]


def test_whoever_writes_makes_the_project(tmp_path: Path) -> None:
    with server_in_thread(tmp_path / "store") as served, served.client() as client:
        python(served, tmp_path, "-c", LOG)
        http = Http(client)
        listed = client.get("/api/backend/v1/projects").json()["entries"]
        assert [entry["name"] for entry in listed] == ["models", "new", "other"]
        values = http.attributes("team/new/NEW-1")
        assert (values["x"][1]["value"], values["m"][1]["last"]) == (1, 2.5)
        assert http.attributes("team/other")["note"][1]["value"] == "n"
        assert http.attributes("team/models/MODELS-MOD")["y"][1]["value"] == 2


def test_reading_makes_no_project(tmp_path: Path) -> None:
    with server_in_thread(tmp_path / "store") as served, served.client() as client:
        python(served, tmp_path, "-c", READ)
        assert client.get("/api/backend/v1/projects").json()["entries"] == []
        assert client.get("/api/backend/v1/projects/get", params={"projectIdentifier": "a/b/c"}).status_code == 404


def test_settings_may_refuse_new_projects(tmp_path: Path) -> None:
    with server_in_thread(tmp_path / "store", create_projects=False) as served, served.client() as client:
        answer = client.get("/api/backend/v1/projects/get", params={"projectIdentifier": "team/new"})
        assert (answer.status_code, answer.json()["errorType"]) == (404, "PROJECT_NOT_FOUND")
        wanted = {"projectIdentifier": "team/new", "parentId": "team/new", "type": "run"}
        assert Http(client).status("createExperiment", wanted) == 404


@pytest.mark.parametrize("batch", ["1000", "7", "23"])
def test_records_that_forked_workers_repeated_count_once(
    tmp_path: Path, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FORKED, tmp_path / ".neptune")
    # The client cuts its records into requests of so many.
    monkeypatch.setenv("NEPTUNE_ASYNC_BATCH_SIZE", batch)
    with server_in_thread(tmp_path / "store") as served, served.client() as client:
        python(served, tmp_path, "-c", SYNC, "--path", ".", "--project", "team/new")
        http, run = Http(client), "team/new/NEW-1"
        lr = [0.1] * 4 + [0.05] * 4 + [0.025] * 4
        assert series(http, run, "train/lr", "getFloatSeriesValues") == [*enumerate(lr)]
        assert series(http, run, "log", "getStringSeriesValues") == [(n, f"line {n}") for n in range(12)]
        assert series(http, run, "train/loss", "getFloatSeriesValues") == [(n, 1 / (n + 1)) for n in range(12)]
        assert series(http, run, "val/acc", "getFloatSeriesValues") == [(0, 0.5), (1, 0.6), (2, 0.7)]
        values = http.attributes(run)
        assert (values["params/lr"][1]["value"], values["result"][1]["value"]) == (0.1, "ok")


@pytest.mark.parametrize("release", ["0.16.19", "1.0.0", "1.8.6"])
def test_older_clients_make_the_project_they_log_and_synchronize_into(tmp_path: Path, release: str) -> None:
    """Their own requests, as served_recordings.py kept them; a run's uuid is that of the run made last."""
    with server_in_thread(tmp_path / "store") as served, served.client() as client:
        made: list[str] = []
        uuids: dict[str, str] = {}
        for line in (NEW_PROJECT / f"{release}.jsonl").read_text().splitlines():
            request = json.loads(line)
            for uuid in UUID.findall(request["path"]):
                request["path"] = request["path"].replace(uuid, uuids.setdefault(uuid, made[-1] if made else uuid))
            if "/signal" in request["path"]:  # a websocket, which this server does not have
                continue
            headers = {"Content-Type": request["type"]} if request["type"] else {}
            content = request["body"].encode()
            answer = client.request(request["method"], request["path"], content=content, headers=headers)
            assert answer.status_code == 200, (request["path"], answer.text)
            if request["path"].endswith("/experiments") and request["method"] == "POST":
                made.append(answer.json()["id"])
            elif "/operations" in request["path"]:
                assert answer.json() == []
        assert len(made) == 2
        listed = client.get("/api/backend/v1/projects").json()["entries"]
        assert [entry["name"] for entry in listed] == ["new", "synced"]
        http = Http(client)
        for run, name in (("team/new/NEW-1", "async"), ("team/synced/SYNCED-1", "offline")):
            values = http.attributes(run)
            assert (values["x"][1]["value"], values["sys/name"][1]["value"]) == (1, name)
            assert sorted(values["sys/tags"][1]["values"]) == ["a", "b"]
            assert values["note"][1]["size"] == len("a note")
            assert series(http, run, "m", "getFloatSeriesValues") == [(0, 0.0), (1, 0.5), (2, 1.0)]
            assert series(http, run, "log", "getStringSeriesValues") == [(0, "a line")]
