from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from neptune_assets_tests.support.neptune2 import PROJECT, Http
from neptune_assets_tests.support.server import Served, server_in_thread


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with server_in_thread(tmp_path / "store") as running:
        yield running


@pytest.fixture
def http(served: Served) -> Iterator[Http]:
    with served.client() as client:
        made = Http(client)
        made.post("/api/backend/v1/projects", json={"organizationId": PROJECT.split("/")[0], "name": "vision"})
        yield made
