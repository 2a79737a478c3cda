"""Recordings of both clients, made once by the real ones and only read; `real` and `copied` give copies to be changed.

Of neptune-client: `folder`, and in it `both` runs, the first of which is `run`. Of neptune-scale: `killed`, and
`everything` and `family`, which other sources read too, each a folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from neptune_assets_tests.support import client_recorder as recorded
from neptune_assets_tests.support.client_reading import Read, read_all
from neptune_assets_tests.support.scale_reading import database_of
from neptune_assets_tests.support.scale_recorder import record


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


@pytest.fixture(scope="session")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    record("killed", folder)
    return folder


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path, str], tuple[Path, Path]]:
    """Copies a recorded tree; gives the copy and the database of one run in it."""

    def copy(folder: Path, run_id: str) -> tuple[Path, Path]:
        target = tmp_path / "copy"
        shutil.copytree(folder, target)
        return target, database_of(target, run_id)

    return copy
