"""Recordings of neptune-scale, made once by the real client and only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from neptune_assets_tests.support.scale_recorder import record


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("everything")
    record("everything", folder)
    return folder


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    record("family", folder)
    return folder
