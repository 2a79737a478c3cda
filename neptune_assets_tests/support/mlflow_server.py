"""A real `mlflow server` on loopback, over a SQLite file and a directory of artifacts that tests can look into."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import requests

from neptune_assets.tempdirs import TempDirectory


@cache
def _template() -> TempDirectory:
    return TempDirectory("mlflow-template")


@cache
def migrated_database() -> Path:
    """A database that MLflow itself created, made once: its migrations take seconds."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    file = _template().path / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments(max_results=1)
    return file


@dataclass(frozen=True)
class RunningServer:
    """A server that answers. ``artifacts`` is where it keeps artifacts that go through it."""

    url: str
    database: Path
    artifacts: Path

    def empty(self) -> None:
        """Forget all runs, experiments but the default one, models and artifacts, behind the server's back."""
        with closing(sqlite3.connect(self.database)) as db, db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for table in (
                *("latest_metrics", "metrics", "params", "tags", "runs", "experiment_tags"),
                *("registered_model_aliases", "model_version_tags", "registered_model_tags"),
                *("model_versions", "registered_models"),
            ):
                assert table in tables
                db.execute(f"DELETE FROM {table}")
            db.execute("DELETE FROM experiments WHERE experiment_id != 0")
        shutil.rmtree(self.artifacts, ignore_errors=True)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(
    root: Path, *, workers: int = 1, options: Sequence[str] | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[RunningServer]:
    """Run a server in ``root`` until the block ends. ``options`` take the place of those about artifacts."""
    server = RunningServer(f"http://127.0.0.1:{free_port()}", root / "server.db", root / "artifacts")
    shutil.copy(migrated_database(), server.database)
    command = [sys.executable, "-m", "mlflow", "server", "--workers", str(workers), "--host", "127.0.0.1"]
    command += ["--port", server.url.rpartition(":")[2], "--backend-store-uri", f"sqlite:///{server.database}"]
    command += ["--artifacts-destination", str(server.artifacts)] if options is None else list(options)
    variables = {
        **{name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        **(environment or {}),
    }
    with (root / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, cwd=root, start_new_session=True)
        try:
            for _ in range(1500):
                if process.poll() is not None:
                    raise AssertionError((root / "server.log").read_text())
                try:
                    if requests.get(f"{server.url}/health", timeout=5).ok:
                        break
                except requests.RequestException:
                    time.sleep(0.2)
            else:
                raise AssertionError((root / "server.log").read_text())
            yield server
        finally:
            # The workers are this group too; nothing of the server is worth an orderly end.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
