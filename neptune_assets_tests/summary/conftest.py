from __future__ import annotations

import pytest

from neptune_assets.lake.reader import LakeProject


@pytest.fixture(params=["statistics", "scan"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test of the summary, with what the lake's writer found out and by scanning the rows."""
    if request.param == "scan":
        monkeypatch.setattr(LakeProject, "statistics", lambda self: None)
    return str(request.param)
