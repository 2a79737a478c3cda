"""A pytest plugin for the tests of Neptune's own 2.x client: what differs between this server and the hosted service.

- It has one user: members and service accounts, which the fixtures add to the project that they make, do not exist.
- Its tables are right at once: tests wait a minute for the hosted service's index, here only where a run is to become
  inactive.

Loaded into the client's own environment, so it imports nothing of ours.
"""

from typing import Any

import neptune.management
import pytest


def _nobody(*_: Any, **__: Any) -> None:
    """Add nobody."""


# Before the tests' conftest imports them by name.
neptune.management.add_project_member = _nobody
neptune.management.add_project_service_account = _nobody


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Say how long a test waits."""
    module = getattr(item, "module", None)
    if hasattr(module, "WAIT_DURATION"):
        module.WAIT_DURATION = 60 if "by_state" in item.name else 2
