from __future__ import annotations

from pathlib import Path

import pytest

from neptune_assets.settings import Filters
from neptune_assets.sources.neptune3 import SOURCE
from neptune_assets.sources.neptune3.source import Neptune3
from neptune_assets_tests.conformance.sources import SourceCase, SourceContract
from neptune_assets_tests.sources.neptune3.conftest import Open
from neptune_assets_tests.support.server import Served
from neptune_assets_tests.support.wire_logging import WireLogger


@pytest.fixture(scope="module")
def contract(served: Served) -> str:
    """A project with two runs of all kinds of attribute, and a file that never came."""
    logger = WireLogger(served, "contract/project")
    for run_id in ("first", "second"):
        logger.create(run_id, experiment_id="experiment")
        logger.configs(run_id, {"lr": 0.1, "epochs": 3, "name": "x", "flag": True})
        logger.metrics(run_id, {"m/loss": [(step / 4, step * 0.1) for step in range(40)], "m/acc": [(1.0, 1.0)]})
        logger.strings(run_id, {"log": [(1.0, "one"), (2.0, "")]})
        logger.file(run_id, "f/there", f"{run_id}/there.txt", b"content", "text/plain")
        logger.file(run_id, "f/never", f"{run_id}/never.txt", None, "text/plain", size=5)
    return logger.project


class TestContract(SourceContract):
    spec = SOURCE

    @pytest.fixture
    def case(self, contract: str, open_source: Open, tmp_path: Path) -> SourceCase:
        def open_(filters: Filters) -> Neptune3:
            return open_source(filters, projects=[contract])

        place = tmp_path / "nothing is written here"
        place.mkdir()
        return SourceCase(open_, (place,), contract, frozenset({"first", "second"}), "first", "m/loss", "lr")
