"""10,000 runs, and a series of four million points, asked for with the real neptune-query: right, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import neptune_query as nq
import neptune_query.runs as nq_runs
import numpy as np
import pytest
from neptune_query import filters

from neptune_assets_tests.benchmarks.made_runs import Made, parameters_of, series_values, write_made_lake
from neptune_assets_tests.benchmarks.server_reading import peak_megabytes
from neptune_assets_tests.support.server import ServerProcess, server_process

pytestmark = pytest.mark.slow

TABLE = Made("scale/table", runs=10_000, parameters=2, series=1, points=5)
POINTS = Made("scale/points", runs=2, parameters=1, series=20, points=50_000, long=4_000_000, forks=2)
MEMORY_MB = 256
PEAK_MB = 165 + MEMORY_MB + 192 + 100
"""The server as it starts, DuckDB, decoded row groups that are kept, and a hundred for what is on its way."""
METRIC = "metrics/m000"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("large")
    write_made_lake(root / "lake", [TABLE, POINTS])
    with server_process(root / "store", lake=root / "lake", options=["--memory-mb", str(MEMORY_MB)]) as running:
        nq.set_api_token(running.token)
        yield running


@pytest.fixture(scope="module")
def last_values() -> np.ndarray:
    """The last value of the metric of every run."""
    return np.array([series_values(number, 0, TABLE.points)[-1] for number in range(TABLE.runs)])


def test_lists(server: ServerProcess) -> None:
    assert sorted(nq_runs.list_runs(project=TABLE.project)) == TABLE.run_ids()
    tenth = nq.list_experiments(project=TABLE.project, experiments=r"run-\d*7$")
    assert sorted(tenth) == TABLE.run_ids()[7::10]
    assert nq.list_attributes(project=TABLE.project, attributes="metrics|params") == [
        METRIC, "params/p000", "params/p001"]  # fmt: skip
    assert peak_megabytes(server) < PEAK_MB


def test_tables(server: ServerProcess, last_values: np.ndarray) -> None:
    by_metric = filters.Attribute(METRIC, type="float_series")
    best = nq.fetch_experiments_table(project=TABLE.project, sort_by=by_metric, sort_direction="desc", limit=15)
    assert list(best.index) == [f"run-{number:05d}" for number in np.argsort(-last_values, kind="stable")[:15]]
    every = nq.fetch_experiments_table(project=TABLE.project, attributes=[METRIC, "params/p000"]).sort_index()
    assert list(every.index) == TABLE.run_ids()
    assert every[METRIC].tolist() == last_values.tolist()
    parameters = np.array([parameters_of(TABLE, number)["params/p000"] for number in range(TABLE.runs)])
    assert every["params/p000"].tolist() == parameters.tolist()
    query = filters.Filter.gt(by_metric, 0.5) & filters.Filter.lt(filters.Attribute("params/p000", type="float"), 0.0)
    found = nq.list_experiments(project=TABLE.project, experiments=query)
    assert sorted(found) == [f"run-{n:05d}" for n in np.flatnonzero((last_values > 0.5) & (parameters < 0))]
    assert peak_megabytes(server) < PEAK_MB


def test_points(server: ServerProcess) -> None:
    values = series_values(0, POINTS.series, POINTS.long)
    whole = nq.fetch_metrics(project=POINTS.project, experiments=["run-00000"], attributes="long/series")
    assert np.array_equal(whole[whole.columns[0]].to_numpy(), values)
    tails = nq.fetch_metrics(project=POINTS.project, experiments=".*", attributes="metrics/.*", tail_limit=3)
    for number in range(POINTS.runs):
        for series in range(POINTS.series):
            column = tails.loc[f"run-{number:05d}"][f"metrics/m{series:03d}"]
            assert column.tolist() == series_values(number, series, POINTS.points)[-3:].tolist()
    assert peak_megabytes(server) < PEAK_MB


def test_lines_of_forks(server: ServerProcess) -> None:
    frame = nq.fetch_metrics(project=POINTS.project, experiments=["fork-2"], attributes=METRIC)
    root, first, second = (series_values(number, 0, POINTS.length(number)) for number in (0, 2, 3))
    # To the step of the fork, that one included; the own points of a fork begin after it.
    expected = np.concatenate(
        [
            root[: POINTS.fork_step(1) + 1],
            first[: POINTS.fork_step(2) - POINTS.fork_step(1)],
            second,
        ]
    )
    assert np.array_equal(frame[frame.columns[0]].to_numpy(), expected)
    assert peak_megabytes(server) < PEAK_MB


def test_buckets(server: ServerProcess) -> None:
    values = series_values(0, POINTS.series, POINTS.long)
    frame = nq.fetch_metric_buckets(
        project=POINTS.project, experiments=["run-00000"], y="long/series", limit=200
    ).droplevel([0, 1], axis=1)
    assert len(frame) == 200
    assert (frame["x"].iloc[0], frame["x"].iloc[-1]) == (0.0, POINTS.long - 1)
    assert frame["y"].tolist() == values[frame["x"].astype(int)].tolist()
    assert peak_megabytes(server) < PEAK_MB
