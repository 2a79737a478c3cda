"""One server for all tests of reading: a lake, a store, and a project that is in both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import neptune_query
import pytest

from neptune_assets.settings import LakeSettings
from neptune_assets.testing.lakes import file, files, histograms, make_lake, metric, params, texts
from neptune_assets_tests.server.reading.store_logging import log
from neptune_assets_tests.support.server import Served, server_in_thread

CREATED = datetime(2025, 2, 3, 4, 5, 6, 789_000, tzinfo=UTC)
LOSS = [1.5, float("nan"), 0.25, math.inf, -0.0]


def system(number: int, **more: Any) -> dict[str, Any]:
    """Attributes of the n-th run of a lake."""
    return {
        "sys/id": f"LAK-{number}",
        "sys/custom_run_id": f"run-{number}",
        "sys/name": f"experiment {number % 2}",
        "sys/creation_time": CREATED.replace(minute=number),
        **more,
    }


def lake_runs() -> dict[str, list[dict[str, Any]]]:
    return {
        "run-1": [
            *params(system(1)),
            *params({"lr": 0.1, "layers": 3, "big": 2**63 - 1, "opt": "adam", "debug": True, "when": CREATED}),
            *params({"labels": ["b", "a"], "note": 'a "quoted"\\ text\nof two lines'}),
            *metric("loss", LOSS, steps=[0, 1, "2.5", 3, 1_000_000]),
            *metric("acc", [0.1, 0.2, 0.3]),
            *texts("log", ["one", "two", "three"]),
            *histograms("weights", [([0.0, 1.0, 2.0], [3.0, 4.0]), ([0.0, 0.5, 1.0], [1.0, 0.0])]),
            file("model", b"bytes of a model", "model.json"),
            *files("samples", [b"first", b"second!"], extension="png"),
        ],
        "run-2": [
            *params(system(2, lr=0.2, layers="three")),
            *metric("loss", [9.0, 8.0], steps=[0, 10]),
        ],
        # A fork at step 1, where it has a point of its own.
        "child": [
            *params({"sys/id": "LAK-3", "sys/name": "experiment 1", "sys/forking/parent": "run-1"}),
            *params({"sys/forking/step": 1.0, "sys/creation_time": CREATED.replace(minute=9)}),
            *metric("loss", [100.0, 200.0], steps=[1, 2]),
            *texts("log", ["two again"], steps=[1]),
        ],
        "no ids": [*params({"lr": 0.4})],
        "trashed": [*params(system(7, **{"sys/trashed": True}))],
        "archived": [*params(system(8, **{"sys/archived": True}))],
    }


@pytest.fixture(scope="session")
def lake_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reading") / "lake"
    both = {"shared": params({"from": "lake", "only": "lake"}), "kept": metric("loss", [1.0, 2.0, 3.0])}
    make_lake(root, {"ws/lake": lake_runs(), "ws/both": both, "ws/damaged": {"a": params({"x": 1})}})
    (damaged,) = (root / "data").glob("ws_damaged-*")
    for part in damaged.glob("*.parquet"):
        part.unlink()
    for statistics in (root / "statistics").glob("ws_damaged-*/*"):
        statistics.unlink()
    return root


@pytest.fixture(scope="session")
def served(lake_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    store = tmp_path_factory.mktemp("reading") / "store"
    with server_in_thread(store, lake=LakeSettings(root=str(lake_root))) as served:
        assert served.service is not None
        fill(served.service.store)
        yield served


def fill(store: Any) -> None:
    project = store.project("ws/store", create=True)
    log(
        project,
        "parent",
        experiment="exp",
        created_at=1_000,
        values={"lr": 0.5, "sys/tags": ["one", "two"], "f": {"path": "k", "size": 3, "mime_type": "text/plain"}},
        floats={"loss": {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}, "only/parent": {5: 1.0}, "late": {9: 1.0}},
        strings={"log": {0: "a", 1: "b", 2: "c"}},
    )
    fork = {"parent_project": "ws/store", "parent_run_id": "parent", "fork_step": 2_000_000}
    log(
        project,
        "fork",
        experiment="exp",
        created_at=2_000,
        values={"lr": 0.6},
        floats={"loss": {2.5: 10.0, 3: 20.0}},
        previews={"loss": {4: (30.0, 0.5), 5: (40.0, 0.25)}},
        files={"pictures": {0: {"path": "p0", "size": 1, "mime_type": "image/png"}}},
        **fork,
    )
    log(project, "fork of fork", experiment="other", created_at=3_000, parent_project="ws/store",
        parent_run_id="fork", fork_step=2_500_000, floats={"loss": {7: 7.0}})  # fmt: skip
    both = store.project("ws/both", create=True)
    log(both, "shared", created_at=1_000, values={"from": "store"})
    log(both, "fork of the lake", created_at=2_000, parent_project="ws/both", parent_run_id="kept",
        fork_step=1_000_000, floats={"loss": {2: 30.0}})  # fmt: skip


@pytest.fixture
def token(served: Served, monkeypatch: pytest.MonkeyPatch) -> str:
    # The client looks into the environment once, when it is imported.
    neptune_query.set_api_token(served.token)
    monkeypatch.setenv("NEPTUNE_QUERY_RETRY_SOFT_TIMEOUT", "30")
    monkeypatch.setenv("NEPTUNE_QUERY_RETRY_HARD_TIMEOUT", "60")
    return served.token
