"""One real server for all tests of this folder; each test logs to projects of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from neptune_assets.settings import Filters
from neptune_assets.sources.neptune3.settings import Neptune3Source
from neptune_assets.sources.neptune3.source import Neptune3
from neptune_assets_tests.support.server import Served, server_in_thread

Open = Callable[..., Neptune3]


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with server_in_thread(tmp_path_factory.mktemp("neptune3") / "store") as server:
        yield server


@pytest.fixture
def token(served: Served, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("DISABLE_NEPTUNE_LOGGING", raising=False)
    monkeypatch.setenv("NEPTUNE_API_TOKEN", served.token)
    return served.token


@pytest.fixture
def open_source(token: str) -> Open:
    """Opens the source on the server of these tests."""

    def open_(filters: Filters | None = None, **settings: Any) -> Neptune3:
        settings.setdefault("retry_seconds", 20)
        return Neptune3(Neptune3Source(**settings), filters or Filters())

    return open_
