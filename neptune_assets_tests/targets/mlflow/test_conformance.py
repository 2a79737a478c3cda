from __future__ import annotations

import json
from datetime import datetime
from types import MappingProxyType
from typing import Any, ClassVar

from neptune_assets_tests.conformance.targets import TargetContract
from neptune_assets_tests.targets.mlflow.place import MlflowPlace

MODULE = "neptune_assets.targets.mlflow"


class _Mlflow(TargetContract):
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
        f"{MODULE}.direct:Direct._clear",
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
        f"{MODULE}.served:Served._discard",
        f"{MODULE}.rest:log_texts",
        f"{MODULE}.rest:log_metrics",
    ]
