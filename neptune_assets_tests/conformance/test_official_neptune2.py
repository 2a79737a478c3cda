"""Runs the end-to-end tests of Neptune's own 2.x client against our server, as they are.

NEPTUNE_CLIENT_SRC is a checkout of neptune-client's branch dev/1.x, which tracks its remote; NEPTUNE_CLIENT_PYTHON a
Python inside of that checkout (tests look for the git repository of the program that runs) with the client and what
its tests need. Their objects in S3 are in a server of moto's on loopback. Nothing is fetched. Tests that cannot pass
here are named below with the reason; any other failure fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from neptune_assets_tests.support.server import ServerProcess, free_port, server_process

pytestmark = [pytest.mark.official, pytest.mark.timeout(4 * 3600)]

WORKSPACE = "neptune"
BUCKET = "bucket"
LEAST = 240
"""How many tests must pass at the very least: a suite that is not collected is no success."""
ALLOWED = {
    "TestLegacyClient": "speaks the protocol of before 1.0 (neptune.legacy), which this server does not",
    "test_matplotlib_figure": "fails inside of plotly, before anything is sent, with matplotlib 3.8 and later",
}
"""Part of a test's name, and why tests with it may fail."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with server_process(tmp_path / "store") as running:
        yield running


@pytest.fixture
def s3() -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.put(f"{url}/{BUCKET}").raise_for_status()
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline, "moto did not answer"
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def test_neptune_client(server: ServerProcess, s3: str, tmp_path: Path) -> None:
    source, python = (os.environ.get(name) for name in ("NEPTUNE_CLIENT_SRC", "NEPTUNE_CLIENT_PYTHON"))
    if not source or not python:
        pytest.fail("Set NEPTUNE_CLIENT_SRC to a checkout and NEPTUNE_CLIENT_PYTHON to a Python inside of it.")
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    shutil.copy(Path(__file__).parents[1] / "support" / "official_neptune2.py", plugins)
    report = tmp_path / "report.xml"
    # The script, not the module: otherwise the client takes pytest's own file for the user's program.
    command = [str(Path(python).with_name("pytest")), "tests/e2e/standard", "-p", "official_neptune2", "-q"]
    command += ["-p", "no:cacheprovider", "--timeout=600", f"--junitxml={report}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NEPTUNE", "AWS"))}
    finished = subprocess.run(
        command,
        cwd=source,
        env={
            **environment,
            "HOME": str(tmp_path),
            "PYTHONPATH": str(plugins),
            "OAUTHLIB_INSECURE_TRANSPORT": "1",
            "NEPTUNE_API_TOKEN": server.token,
            "ADMIN_NEPTUNE_API_TOKEN": server.token,
            "ADMIN_USERNAME": WORKSPACE,
            "USER_USERNAME": WORKSPACE,
            "SERVICE_ACCOUNT_NAME": "none",
            "WORKSPACE_NAME": WORKSPACE,
            "BUCKET_NAME": BUCKET,
            "S3_ENDPOINT_URL": s3,
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": "us-east-1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.exists(), finished.stdout + finished.stderr
    passed, failed = [], []
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif case.find("skipped") is None:
            passed.append(name)
    print(f"{len(passed)} passed, {len(failed)} failed")
    wrong = [name for name in failed if not any(part in name for part in ALLOWED)]
    assert not wrong, "\n".join([*wrong, finished.stdout[-20_000:]])
    assert len(passed) >= LEAST
