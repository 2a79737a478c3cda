"""MLflow behind its own server, as the conformance suite sees it: the server's database and artifact directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from neptune_assets_tests.support.mlflow_server import RunningServer
from neptune_assets_tests.targets.mlflow.place import MlflowPlace

SERVER: Final = "NEPTUNE_ASSETS_TEST_MLFLOW_SERVER"
"""Environment variable with address, database and artifacts of the running server, for child processes too."""


def announce(server: RunningServer) -> str:
    """Return what :data:`SERVER` must hold for this server to be used."""
    return "\n".join([server.url, str(server.database), str(server.artifacts)])


class ServerPlace(MlflowPlace):
    """The server that the environment variable names; ``root`` holds the lake only."""

    def __init__(self, root: Path) -> None:
        url, database, artifacts = os.environ[SERVER].split("\n")
        self.root = root
        self.file = Path(database)
        self.artifacts = Path(artifacts)
        self.options = {"tracking_uri": url}

    def folder(self, uri: str) -> Path:
        return self.artifacts / uri.removeprefix("mlflow-artifacts:/").lstrip("/")

    def state(self) -> Any:
        rows, _ = super().state()
        files = sorted((str(file), file.stat().st_mtime_ns) for file in self.artifacts.rglob("*") if file.is_file())
        return rows, files
