"""Tables of the summary as plain Python, and rows of `sys` attributes."""

from __future__ import annotations

from typing import Any

from neptune_assets.lake.reader import Lake
from neptune_assets.settings import SummarySettings
from neptune_assets.summary.tables import summarize
from neptune_assets_tests.support import lake_factory as make

SETTINGS = SummarySettings(memory_mb=128)


def tables(lake: Lake, project_id: str = "ws/p") -> dict[str, list[dict[str, Any]]]:
    with summarize(lake.project(project_id), SETTINGS, lake.settings) as summary:
        return {name: reader.read_all().to_pylist() for name, reader in summary.tables()}


def system(**values: Any) -> list[dict[str, Any]]:
    return make.params({f"sys/{name}": value for name, value in values.items()})
