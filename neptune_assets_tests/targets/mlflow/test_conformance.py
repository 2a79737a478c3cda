from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from types import MappingProxyType
from typing import Any, ClassVar

import pytest

from neptune_assets.targets.mlflow import TARGET
from neptune_assets_tests.conformance.targets import TargetContract
from neptune_assets_tests.support.mlflow_server import RunningServer, mlflow_server
from neptune_assets_tests.targets.mlflow.place import MlflowPlace
from neptune_assets_tests.targets.mlflow.server_place import SERVER, ServerPlace, announce

MODULE = "neptune_assets.targets.mlflow"


class _Mlflow(TargetContract):
    spec = TARGET

    def held_param(self, kind: str, value: Any) -> str:
        if isinstance(value, datetime):
            return value.strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"
        if kind == "string_set":
            return json.dumps(sorted(value))
        return str(value)


class TestDirectIntoSqlite(_Mlflow):
    place_class = MlflowPlace
    crash_points: ClassVar = [
        f"{MODULE}.artifacts:write_artifacts",
        f"{MODULE}.database:Transaction.delete",
        f"{MODULE}.database:Transaction.run",
        f"{MODULE}.artifacts:write_manifest",
        f"{MODULE}.database:DatabaseBackend._clear",
        f"{MODULE}.database:Transaction.texts",
        f"{MODULE}.database:Transaction.metrics",
    ]


class ClientPlace(MlflowPlace):
    """The same database through MLflow's client, as an untested schema is loaded."""

    options = MappingProxyType({"direct": False})


class TestThroughMlflowsClient(_Mlflow):
    place_class = ClientPlace
    crash_points: ClassVar = [
        f"{MODULE}.artifacts:write_artifacts",
        f"{MODULE}.api:ApiBackend._discard",
        f"{MODULE}.api:ClientApi.log_texts",
        f"{MODULE}.api:ClientApi.log_metrics",
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as server:
        yield server


class TestOverHttp(_Mlflow):
    """Real engine: an `mlflow server` over SQLite that also keeps the artifacts."""

    place_class = ServerPlace
    crash_points: ClassVar = [
        f"{MODULE}.api:HttpApi.create_run",
        f"{MODULE}.artifacts:write_artifacts",
        f"{MODULE}.api:ApiBackend._discard",
        f"{MODULE}.api:HttpApi.log_texts",
        f"{MODULE}.api:HttpApi.finish",
        f"{MODULE}.api:HttpApi.log_metrics",
    ]

    @pytest.fixture(autouse=True)
    def emptied(self, server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(SERVER, announce(server))
        server.empty()
