"""Recordings of neptune-client, made once by the real engine and only read; `real` is a copy to be changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from neptune_assets_tests.support import client_recorder as recorded
from neptune_assets_tests.support.client_reading import Read, read_all


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("client")
    recorded.record("everything", path)
    return path


@pytest.fixture(scope="session")
def both(folder: Path) -> dict[str, Read]:
    return {read.value("sys/name"): read for read in read_all(folder).values()}


@pytest.fixture
def run(both: dict[str, Read]) -> Read:
    return both["first"]


@pytest.fixture
def offline(tmp_path: Path) -> Path:
    return tmp_path / ".neptune" / "offline"


@pytest.fixture
def real(folder: Path, tmp_path: Path) -> Path:
    """A copy of the first run's folder, free to be damaged."""
    for path in (folder / ".neptune" / "offline").iterdir():
        if '"first"' in (path / "data-1.log").read_text()[:400]:
            return Path(shutil.copytree(path, tmp_path / ".neptune" / "offline" / path.name))
    raise AssertionError("the first run is not there")
