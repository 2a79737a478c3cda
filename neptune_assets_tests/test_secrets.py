"""Secrets that settings name are found nowhere afterwards: not in Dagster's records, lakes, targets or errors."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from neptune_assets.build import build_defs
from neptune_assets.lake.storage import Storage
from neptune_assets.migration_settings import Settings
from neptune_assets.settings import StorageSettings
from neptune_assets_tests.support.http_listening import listening
from neptune_assets_tests.support.mlflow_server import mlflow_server
from neptune_assets_tests.support.s3 import s3_server
from neptune_assets_tests.support.wandb_stub import WandbStub

PROJECT = "bench/project"
HOME = Path(__file__).parent.parent / "dagster_home"

PLANTED = {
    "LAKE_SECRET": "planted-lake-5f1c7d",
    "EXPORT_SECRET": "planted-export-93ab02",
    "ARTIFACT_SECRET": "planted-artifact-d10c44",
    "MLFLOW_USER": "planted-user-77e0a1",
    "MLFLOW_PASSWORD": "planted-password-c4d9f8",
    "MLFLOW_TOKEN": "planted-bearer-e8b2c6",
    "WANDB_KEY": "p1antedwandb" + "0123456789abcdef" * 2,
}


@dataclass
class Place:
    """An instance of Dagster on disk, and everything a materialization said or left."""

    root: Path
    said: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    """Command lines of all children that were seen."""
    environments: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)

    def materialize(self, settings: Mapping[str, Any]) -> bool:
        """Materialize everything of one project; True if all went well."""
        definitions = build_defs(Settings.model_validate(settings), [PROJECT], prefix="s")
        with dg.DagsterInstance.from_config(str(self.root / "home")) as instance, self._watched():
            result = dg.materialize(
                list(definitions.assets or ()),  # type: ignore[arg-type]
                selection=dg.AssetSelection.all() - dg.AssetSelection.assets("s/summary/neptune_duckdb"),
                partition_key=PROJECT,
                instance=instance,
                resources=definitions.resources,
                raise_on_error=False,
            )
            self.said += [str(event) for event in instance.all_logs(result.run_id)]
            return result.success

    @contextmanager
    def _watched(self) -> Iterator[None]:
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.3):
                for child in psutil.Process().children(recursive=True):
                    try:
                        self.processes.append(" ".join(child.cmdline()))
                        self.environments.append((self.processes[-1], child.environ()))
                    except psutil.Error:
                        continue

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def findings(self, secrets: Mapping[str, str], captured: str = "") -> list[str]:
        """Names of secrets, each with where it was found, as it is or in base64."""
        texts = {"standard output and error": captured, "events": "\n".join(self.said)}
        texts |= {"a process list": "\n".join(self.processes)}
        content = {name: text.encode() for name, text in texts.items()}
        content |= {str(path): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        found = []
        for name, secret in secrets.items():
            forms = [secret.encode(), base64.b64encode(secret.encode()).rstrip(b"=")]
            found += [f"{name} in {where}" for where, data in content.items() if any(form in data for form in forms)]
        return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name, secret in PLANTED.items():
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("ACCESS_KEY", "an-identity-which-is-no-secret")
    (tmp_path / "home").mkdir()
    shutil.copy(HOME / "dagster.yaml", tmp_path / "home")
    return Place(tmp_path)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    command = [sys.executable, "-m", "neptune_assets_tests.benchmarks.generate", "--out", str(root)]
    subprocess.run([*command, "--runs", "2", "--points", "5"], check=True)
    return root


@pytest.fixture
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


def storage(endpoint: str, secret: str) -> dict[str, Any]:
    return {"options": {"endpoint_url": endpoint}, "secrets_env": {"key": "ACCESS_KEY", "secret": secret}}


def test_a_migration_that_works_leaves_no_secret_behind(
    place: Place, export: Path, s3: str, capfd: pytest.CaptureFixture[str]
) -> None:
    buckets = Storage("s3://secret-exports", StorageSettings(**storage(s3, "EXPORT_SECRET"))).filesystem
    for bucket in ("secret-exports", "secret-lake"):
        buckets.mkdir(bucket)
    buckets.put(str(export), "secret-exports/run", recursive=True)
    with WandbStub(PLANTED["WANDB_KEY"]) as wandb, mlflow_server(place.root) as mlflow:
        worked = place.materialize(
            {
                "source": {
                    "export": {
                        "data": "s3://secret-exports/run/data",
                        "files": "s3://secret-exports/run/files",
                        "storage": storage(s3, "EXPORT_SECRET"),
                    }
                },
                "lake": {"root": "s3://secret-lake/home", "storage": storage(s3, "LAKE_SECRET")},
                "summary": {"database": str(place.root / "neptune.duckdb")},
                "targets": {
                    "mlflow": {
                        "tracking_uri": mlflow.url,
                        "username_env": "MLFLOW_USER",
                        "password_env": "MLFLOW_PASSWORD",
                    },
                    "wandb": {
                        "staging": str(place.root / "staging"),
                        "base_url": wandb.url,
                        "api_key_env": "WANDB_KEY",
                        "entity": "team",
                    },
                },
            }
        )
        assert worked
        assert wandb.runs
        buckets.get("secret-lake/home", str(place.root / "what-is-in-the-lake"), recursive=True)
    assert place.findings(PLANTED, "".join(capfd.readouterr())) == []
    syncs = [environment for line, environment in place.environments if "sync" in line]
    assert syncs, "no `wandb sync` was seen"
    others = set(PLANTED) - {"WANDB_KEY"}
    assert not [name for environment in syncs for name, value in environment.items() if value in secrets_of(others)]


def secrets_of(names: set[str]) -> set[str]:
    return {PLANTED[name] for name in names}


class Echo(BaseHTTPRequestHandler):
    """A server that refuses everything and repeats in its answer what it was sent."""

    def _refuse(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode(errors="replace")
        answer = json.dumps({"message": f"{self.headers} {body}", "errors": [{"message": str(self.headers)}]}).encode()
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_PATCH = _refuse  # noqa: N815

    def log_message(self, *args: Any) -> None:
        """Keep the test's output clean."""


def _targets(url: str) -> dict[str, dict[str, Any]]:
    address = url.removeprefix("http://")
    return {
        "mlflow over HTTP with a password": {
            "mlflow": {"tracking_uri": url, "username_env": "MLFLOW_USER", "password_env": "MLFLOW_PASSWORD"}
        },
        "mlflow over HTTP with a token": {"mlflow": {"tracking_uri": url, "token_env": "MLFLOW_TOKEN"}},
        "mlflow with a password in the address": {
            "mlflow": {"tracking_uri": f"http://me:{PLANTED['MLFLOW_PASSWORD']}@{address}"}
        },
        "mlflow in PostgreSQL": {
            "mlflow": {
                "tracking_uri": f"postgresql+psycopg://{address}/mlflow?connect_timeout=2",
                "username_env": "MLFLOW_USER",
                "password_env": "MLFLOW_PASSWORD",
                "artifact_root": "artifacts",
            }
        },
        "wandb": {"wandb": {"base_url": url, "api_key_env": "WANDB_KEY", "entity": "team"}},
    }


@pytest.mark.parametrize("case", sorted(_targets("http://h")))
def test_a_load_that_is_refused_shows_no_secret(
    case: str, place: Place, export: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with listening(Echo) as url:
        worked = place.materialize(
            {
                "source": {"export": {"data": str(export / "data"), "files": str(export / "files")}},
                "lake": {"root": str(place.root / "lake")},
                "targets": _targets(url)[case],
            }
        )
    assert not worked
    assert place.findings(PLANTED, "".join(capfd.readouterr())) == []


@pytest.mark.parametrize("kind", ["neptune2", "neptune3"])
def test_a_server_that_refuses_a_token_shows_it_nowhere(
    kind: str, place: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(Echo) as url:
        content = {"api_address": url, "api_url": url, "api_key": "planted-neptune-key-2b9e11"}
        token = base64.b64encode(json.dumps(content).encode()).decode()
        monkeypatch.setenv("NEPTUNE_API_TOKEN", token)
        live: dict[str, Any] = {"projects": [PROJECT], "retry_seconds": 1}
        if kind == "neptune2":
            live["artifact_storage"] = storage(url, "ARTIFACT_SECRET")
        worked = place.materialize({"source": {kind: live}, "lake": {"root": str(place.root / "lake")}})
    assert not worked
    secrets = PLANTED | {"token": token.rstrip("="), "api key": content["api_key"]}
    assert place.findings(secrets, "".join(capfd.readouterr())) == []


def test_a_store_that_refuses_a_secret_shows_it_nowhere(
    place: Place, export: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with listening(Echo) as url:
        for secret, source, lake in (
            ("LAKE_SECRET", {"data": str(export / "data")}, "s3://lake/home"),
            ("EXPORT_SECRET", {"data": "s3://exports/data", "storage": storage(url, "EXPORT_SECRET")}, None),
        ):
            settings: dict[str, Any] = {
                "source": {"export": source},
                "lake": {"root": lake or str(place.root / "lake")},
            }
            if lake is not None:
                settings["lake"]["storage"] = storage(url, secret)
            assert not place.materialize(settings)
    assert place.findings(PLANTED, "".join(capfd.readouterr())) == []
