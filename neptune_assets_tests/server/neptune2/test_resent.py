"""Points without steps that a killed client sent, and `neptune sync` sends once more in other requests."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.server.tokens import api_token, load_secrets
from neptune_assets_tests.support.faulty_proxy import Fault, FaultyProxy
from neptune_assets_tests.support.neptune2 import PROJECT, Http, points
from neptune_assets_tests.support.server import Served, server_in_thread

SYNC = "from neptune.cli.commands import sync; sync()"
SCRIPT = """
import os, sys, time, warnings
warnings.simplefilter("ignore")
import neptune
run = neptune.init_run(
    project="team/vision", custom_run_id="mine", capture_stdout=False, capture_stderr=False,
    capture_hardware_metrics=False, source_files=[], git_ref=False, flush_period=0.2,
)
for number in range(100):
    run["floats"].append(number)
    run["lines"].append(f"line {number}")
    time.sleep(0.005)
run.wait(disk_only=True)
print("kept", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(served: Served, http: Http) -> Iterator[Http]:
    """Another session, as another process has one."""
    with served.client() as client:
        yield Http(client)


def values(http: Http, run: str, path: str) -> list[tuple[float, float]]:
    found = http.call("getFloatSeriesValues", experimentId=run, attribute=path, limit=1000, offset=0)
    return [(item["step"], item["value"]) for item in found["values"]]


def log(http: Http, run: str, numbers: range, path: str = "m") -> None:
    assert http.apply(run, (path, "logFloats", points(*numbers, time=1_000 + 10 * numbers[0]))) == []


def test_what_another_session_begins_with_counts_once(http: Http, other: Http) -> None:
    run = http.create()["id"]
    body = {"entries": [{"value": float(n), "step": None, "timestampMilliseconds": 10 * n} for n in range(6)]}
    first, rest = ({"entries": part} for part in (body["entries"][:4], body["entries"][1:]))
    assert http.apply(run, ("m", "logFloats", first)) == []
    assert other.apply(run, ("m", "logFloats", rest), ("m", "logFloats", points(9.0, time=90))) == []
    assert values(http, run, "m") == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 9)]


def test_texts_and_images_count_once_as_well(http: Http, other: Http) -> None:
    run = http.create()["id"]
    images = [{"data": base64.b64encode(f"image {n}".encode()).decode(), "name": None} for n in range(3)]
    assert http.apply(run, ("s", "logStrings", points("a", "b")), ("i", "logImages", points(*images[:2]))) == []
    assert other.apply(run, ("s", "logStrings", points("a", "b", "c")), ("i", "logImages", points(*images))) == []
    for call, path in (("getStringSeriesValues", "s"), ("getImageSeriesValues", "i")):
        assert http.call(call, experimentId=run, attribute=path, limit=100, offset=0)["totalItemCount"] == 3


def test_many_requests_may_come_again_and_others_may_have_gone_on(http: Http, other: Http, served: Served) -> None:
    run = http.create()["id"]
    tens = [{"value": float(n), "step": None, "timestampMilliseconds": 10 * n} for n in range(30)]
    for start in range(0, 20, 5):
        assert http.apply(run, ("m", "logFloats", {"entries": tens[start : start + 5]})) == []
    with served.client() as client:
        assert Http(client).apply(run, ("m", "logFloats", points(100.0, 101.0, time=9_000))) == []
    for part in (tens[3:9], tens[9:17], tens[17:24], tens[24:]):
        assert other.apply(run, ("m", "logFloats", {"entries": part})) == []
    found = [value for _, value in values(http, run, "m")]
    assert found == [*range(20), 100, 101, *range(20, 30)]


def test_a_session_may_log_the_same_at_the_same_time(http: Http, other: Http) -> None:
    run = http.create()["id"]
    for count in (1, 2, 3):
        same: dict[str, Any] = {"entries": [{"value": 0.5, "step": None, "timestampMilliseconds": 7}] * count}
        assert http.apply(run, ("m", "logFloats", same)) == []
    assert len(values(http, run, "m")) == 6
    assert other.apply(run, ("m", "logFloats", points(0.5, time=8))) == []
    assert len(values(http, run, "m")) == 7


def test_a_client_that_was_killed_in_the_midst_of_a_request_doubles_nothing(tmp_path: Path) -> None:
    with server_in_thread(tmp_path / "store") as served, FaultyProxy(served.url).running() as proxy:
        with served.client() as client:
            Http(client).post("/api/backend/v1/projects", json={"organizationId": "team", "name": "vision"})
        # The server carries them out, and the client never hears of it.
        proxy.faults.append(Fault("/attributes/operations", "lose", times=-1, holding=b"logFloats"))
        token = api_token(load_secrets(served.store, None).api_key, proxy.url)
        environment = {**os.environ, "OAUTHLIB_INSECURE_TRANSPORT": "1", "HOME": str(tmp_path)}
        script = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            cwd=tmp_path,
            env={**environment, "NEPTUNE_API_TOKEN": token},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert script.stdout is not None
        assert any("kept" in line for line in script.stdout)
        deadline = time.monotonic() + 60
        while not any(b"logFloats" in body for *_, body in proxy.seen.requests):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        script.kill()
        script.wait()
        with served.client() as client:
            http = Http(client)
            assert 0 < len(values(http, f"{PROJECT}/VISION-1", "floats")) < 100
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", SYNC, "--path", ".", "--project", PROJECT],
                cwd=tmp_path,
                env={**environment, "NEPTUNE_API_TOKEN": served.token},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert values(http, f"{PROJECT}/VISION-1", "floats") == [(n, n) for n in range(100)]
            found = http.call(
                "getStringSeriesValues", experimentId=f"{PROJECT}/VISION-1", attribute="lines", limit=1000, offset=0
            )
            assert [item["value"] for item in found["values"]] == [f"line {n}" for n in range(100)]
