from __future__ import annotations

import base64
import json
import os
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from neptune_assets.server.__main__ import main
from neptune_assets_tests.support.ingest import Ingest, points, stored_points
from neptune_assets_tests.support.server import Served, ServerProcess, server_process


def test_token_is_the_same_every_time_and_its_key_is_private(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    assert main(["token", "--store", str(store), "--url", "http://localhost:9/"]) == 0
    assert main(["token", "--store", str(store), "--url", "http://localhost:9"]) == 0
    first, second = capsys.readouterr().out.split()
    assert first == second
    fields = json.loads(base64.b64decode(first))
    assert fields["api_url"] == fields["api_address"] == "http://localhost:9"
    assert len(fields["api_key"]) == 64
    assert stat.S_IMODE((store / "secrets.json").stat().st_mode) == 0o600
    monkeypatch.setenv("MY_KEY", "from outside")
    assert main(["token", "--store", str(store), "--api-key-env", "MY_KEY"]) == 1
    assert "too short" in capsys.readouterr().err
    monkeypatch.setenv("MY_KEY", "from outside" * 2)
    assert main(["token", "--store", str(store), "--api-key-env", "MY_KEY"]) == 0
    assert json.loads(base64.b64decode(capsys.readouterr().out))["api_key"] == "from outside" * 2
    monkeypatch.delenv("MY_KEY")
    assert main(["token", "--store", str(store), "--api-key-env", "MY_KEY"]) == 1
    assert "MY_KEY" in capsys.readouterr().err


def test_a_store_has_one_server_and_survives_it(tmp_path: Path) -> None:
    with server_process(tmp_path / "store") as server:
        second = subprocess.run(
            [sys.executable, "-m", "neptune_assets.server", "serve", "--store", str(server.store), "--port", "0"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == 11
        assert "is served by process" in second.stderr
        assert "Traceback" not in second.stderr
        with Served(server.url, server.token, server.store).client() as http:
            Ingest(http).create("r")
            Ingest(http).update("r", points(1, {"m": 1.0}))
        process = server.process
        server.stop()
        assert process is not None
        assert process.returncode == 0
        # Closed cleanly: nothing is left to be recovered.
        assert not list(server.store.rglob("*-wal"))
        served = server.start()
        with served.client() as http:
            assert Ingest(http).update("r", points(1, {"m": 1.0})) == {"SERIES_POINT_DUPLICATE": 1}
    assert stored_points(tmp_path / "store", "r") == {"m": [(1_000_000, 1.0)]}


def test_https_with_a_certificate_of_our_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certfile, keyfile = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["certificate", "--certfile", str(certfile), "--keyfile", str(keyfile)]
    assert main(command) == 0
    assert "127.0.0.1" in capsys.readouterr().out
    assert stat.S_IMODE(keyfile.stat().st_mode) == 0o600
    assert main(command) == 1
    assert "exists" in capsys.readouterr().err
    server = ServerProcess(
        tmp_path / "store", options=["--certfile", str(certfile), "--keyfile", str(keyfile)], scheme="https"
    )
    try:
        server.start()
        trusting = ssl.create_default_context(cafile=certfile)
        config = httpx.get(f"{server.url}/api/backend/v1/clients/config", verify=trusting).json()
        assert config["apiUrl"] == server.url
    finally:
        server.stop()


@pytest.mark.parametrize("arguments", [["--host", "0.0.0.0"], ["--host", "::"], ["--host", "example.org"]])
def test_other_machines_reach_the_server_by_https_only_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["serve", "--store", str(tmp_path / "store"), "--port", "0", *arguments]) == 1
    assert "--insecure" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_whoever_opens_the_server_to_other_machines_is_warned(tmp_path: Path) -> None:
    with server_process(tmp_path / "store", options=["--host", "0.0.0.0", "--insecure"]) as server:
        config = httpx.get(f"{server.url}/api/backend/v1/clients/config", headers={"Host": "evil.example:1"}).json()
        assert config["apiUrl"] == server.url
    assert "WITHOUT https" in (tmp_path / "store.log").read_text()


def test_whatever_the_server_makes_is_private_also_with_an_open_umask(tmp_path: Path) -> None:
    store, log = tmp_path / "store", tmp_path / "access.log"
    certfile, keyfile = tmp_path / "cert.pem", tmp_path / "key.pem"
    server = ServerProcess(store, options=["--access-log", str(log)])
    before = os.umask(0)
    try:
        assert main(["certificate", "--certfile", str(certfile), "--keyfile", str(keyfile)]) == 0
        served = server.start()
        with served.client() as http:
            Ingest(http).create("r")
            Ingest(http).update("r", points(1, {"m": 1.0}))
            file = {"project_identifier": "team/vision", "path": "k", "permission": "write", "size": 3}
            (signed,) = http.post("/api/storagebridge/v1/signedUrl", json={"files": [file]}).json()["files"]
            http.put(signed["url"], content=b"abc").raise_for_status()
    finally:
        os.umask(before)
        server.stop()
    made = [store, log, certfile, keyfile, *store.rglob("*")]
    assert len(made) > 12
    assert {str(path): oct(path.stat().st_mode) for path in made if path.stat().st_mode & 0o077} == {}


def test_a_store_that_others_can_write_to_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    store.mkdir()
    store.chmod(0o770)
    assert main(["serve", "--store", str(store), "--port", "0"]) == 1
    assert f"chmod 700 {store}" in capsys.readouterr().err
    store.chmod(0o700)
    assert main(["token", "--store", str(store)]) == 0
    (store / "secrets.json").chmod(0o644)
    assert main(["token", "--store", str(store)]) == 1
    assert "chmod 600" in capsys.readouterr().err


def test_what_killed_servers_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    with server_process(tmp_path / "store", options=["--scratch", str(scratch)]) as server:
        for _ in range(2):
            (left,) = scratch.iterdir()
            server.kill()
            assert left.exists()
            server.start()
            assert not left.exists()
    assert list(scratch.iterdir()) == []


def test_help_names_every_command() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "neptune_assets.server", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert {"serve", "token", "certificate"} <= set(shown.replace("|", " ").split())
