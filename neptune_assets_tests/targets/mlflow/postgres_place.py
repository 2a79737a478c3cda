"""MLflow over a real PostgreSQL server as the conformance suite sees it: a database a test, copied from a template."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import psycopg

from neptune_assets_tests.support.postgres import PostgresServer, shared_server
from neptune_assets_tests.targets.mlflow.place import MlflowPlace

TEMPLATE = "mlflow_template"


@cache
def migrated_server() -> PostgresServer:
    """The shared server, with a database that MLflow itself created."""
    import os

    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    server = shared_server()
    server.create(TEMPLATE)
    client = MlflowClient(tracking_uri=server.url(TEMPLATE, "postgresql+psycopg"))
    client.search_experiments(max_results=1)
    # A database is only copied while nobody is connected to it.
    client._tracking_client.store.engine.dispose()
    return server


class PostgresPlace(MlflowPlace):
    """A database of its own, written directly; another process finds its address in the test's directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        address = root / "database.url"
        self.name = f"mlflow_{hashlib.sha256(str(root).encode()).hexdigest()[:16]}"
        if not address.exists():
            root.mkdir(parents=True, exist_ok=True)
            server = migrated_server()
            server.create(self.name, TEMPLATE)
            address.write_text(server.url(self.name))
        self.url = address.read_text()
        self.options = {
            "tracking_uri": self.url.replace("postgresql:", "postgresql+psycopg:"),
            "artifact_root": str(root / "lake" / "mlartifacts"),
        }

    def drop(self) -> None:
        migrated_server().drop(self.name)

    def query(self, sql: str, *values: Any) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(sql.replace("%", "%%").replace("?", "%s"), values)
            return cursor.fetchall() if cursor.description else []

    def damage(self, project_id: str, run_id: str) -> None:
        uuid = self.held(project_id)[run_id][0].target_id
        self.query("DELETE FROM metrics WHERE ctid = (SELECT max(ctid) FROM metrics WHERE run_uuid = ?)", uuid)
