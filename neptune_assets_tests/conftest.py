"""What holds for all tests."""

from __future__ import annotations

from neptune_assets_tests.support import postgres


def pytest_sessionfinish() -> None:
    """Stop servers while there is time: what ends with the process is cut short where tests run in several."""
    postgres.stop_all()
