"""What holds for all tests."""

from __future__ import annotations

import pytest

from neptune_assets_tests.support import postgres
from neptune_assets_tests.tiers import tier


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test the marker of its file's tier."""
    for item in items:
        item.add_marker(tier(item.path))


def pytest_sessionfinish() -> None:
    """Stop servers while there is time: what ends with the process is cut short where tests run in several."""
    postgres.stop_all()
