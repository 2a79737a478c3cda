from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from neptune_assets.errors import LakeError, UnknownProjectError
from neptune_assets.lake.reader import Lake
from neptune_assets.schema import Scope
from neptune_assets.server.catalog.catalog import Catalog
from neptune_assets.server.catalog.search import NameFilter, Search, definitions, search, values
from neptune_assets.server.nql import parse
from neptune_assets.server.series import SeriesReader, Window
from neptune_assets.settings import LakeSettings
from neptune_assets.testing.lakes import file_set, make_lake, metric, params

PROJECT = "ws/p"


class Reading:
    def __init__(self, root: Path) -> None:
        self.catalog = Catalog(store=None, lake=Lake(LakeSettings(root=str(root))), memory_mb=128, threads=1)
        self.reader = SeriesReader(self.catalog, cache_mb=1)

    def table(self, *paths: str) -> dict[str, dict[str, Any]]:
        self.catalog.refresh(PROJECT)
        runs = search(self.catalog, self.reader, Search([PROJECT])).runs
        found, _ = values(self.catalog, self.reader, runs, NameFilter(paths=paths))
        table: dict[str, dict[str, Any]] = {run.run_id: {} for run in runs}
        for value in found:
            cell = next(v for v in (value.number, value.whole, value.text, value.members, True) if v is not None)
            table[value.run.run_id][value.path] = cell
        return table


@pytest.fixture
def reading(tmp_path: Path) -> Iterator[Reading]:
    opened = Reading(tmp_path)
    yield opened
    opened.catalog.close()


def test_unknown_project(reading: Reading) -> None:
    with pytest.raises(UnknownProjectError):
        reading.catalog.refresh(PROJECT)
    assert reading.catalog.projects() == []


def test_what_is_materialized_anew_is_seen(reading: Reading, tmp_path: Path) -> None:
    first = {"a": [*params({"x": 1}), *metric("m", [1.0, 2.0])], "b": params({"x": 2})}
    make_lake(tmp_path, {PROJECT: first})
    assert reading.table("x", "m") == {"a": {"x": 1, "m": 2.0}, "b": {"x": 2}}
    kept = reading.catalog.runs(PROJECT).by_id("b")
    make_lake(tmp_path, {PROJECT: {**first, "a": [*params({"x": "one"}), *metric("m", [1.0, 2.0, 3.0])]}})
    assert reading.table("x", "m") == {"a": {"x": "one", "m": 3.0}, "b": {"x": 2}}
    assert reading.catalog.runs(PROJECT).by_id("b") is kept
    run = reading.catalog.runs(PROJECT).by_id("a")
    assert run is not None
    assert reading.reader.floats(run, "m").values.tolist() == [1.0, 2.0, 3.0]
    assert definitions(reading.catalog, [PROJECT], NameFilter(paths=["x", "m"])) == [
        ("m", "float_series"), ("x", "int"), ("x", "string")]  # fmt: skip
    make_lake(tmp_path, {PROJECT: {**first, "b": params({"x": 9})}})
    assert reading.table("x") == {"a": {"x": 1}, "b": {"x": 9}}
    assert ("x", "string") not in definitions(reading.catalog, [PROJECT], NameFilter(paths=["x"]))


def test_without_the_statistics_of_the_writer(reading: Reading, tmp_path: Path) -> None:
    make_lake(tmp_path, {PROJECT: {"a": [*params({"x": 1}), *metric("m", [3.0, float("nan"), 5.0])]}})
    shutil.rmtree(tmp_path / "statistics")
    assert reading.table("x", "m") == {"a": {"x": 1, "m": 5.0}}


EXTREMES = {
    "plain": [3.0, float("inf"), 5.0, float("nan")],
    "one": [7.0],
    "none": [float("nan")],
    "large": [-1.5e300, 1.5e300],
    "small": [1e-160, 3e-160],
}
VARIANCES = {"plain": 1.0, "one": 0.0, "none": None, "large": math.inf, "small": 1e-320}


@pytest.mark.parametrize("statistics", ["kept", "older", "missing"])
def test_variances_are_in_every_table(reading: Reading, tmp_path: Path, statistics: str) -> None:
    make_lake(tmp_path, {PROJECT: {"a": [row for path, items in EXTREMES.items() for row in metric(path, items)]}})
    if statistics == "missing":
        shutil.rmtree(tmp_path / "statistics")
    elif statistics == "older":
        (file,) = (tmp_path / "statistics").rglob("series.parquet")
        pq.write_table(pq.read_table(file).drop_columns("variance_value"), file)
    reading.catalog.refresh(PROJECT)
    found, _ = values(reading.catalog, reading.reader, list(reading.catalog.runs(PROJECT)), NameFilter(paths=EXTREMES))
    assert {value.path: value.variance for value in found} == {
        path: variance if variance in {None, math.inf} else pytest.approx(variance, abs=5e-324)
        for path, variance in VARIANCES.items()
    }


def test_a_table_never_touches_points(reading: Reading, tmp_path: Path) -> None:
    make_lake(tmp_path, {PROJECT: {"a": [*params({"x": 1}), *metric("m", [1.0, 2.0, 6.0])]}})
    reading.catalog.refresh(PROJECT)
    for part in (tmp_path / "data").rglob("*.parquet"):
        part.write_bytes(b"nothing that could be read")
    found = search(reading.catalog, reading.reader, Search([PROJECT], parse("variance(`m`:floatSeries) > 4"))).runs
    (value,), _ = values(reading.catalog, reading.reader, found, NameFilter(paths=["m"]))
    assert (value.number, value.least, value.greatest, value.mean, value.points) == (6.0, 1.0, 6.0, 3.0, 3)
    assert value.variance == pytest.approx(14 / 3)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("average(`m`:floatSeries) = 4", ["a"]),
        ("variance(`m`:floatSeries) = 1", ["a"]),
        ("min(`m`:floatSeries) = 3 AND max(`m`:floatSeries) = 5", ["a"]),
        ("variance(`m`:floatSeries) < 1", ["b"]),
    ],
)
def test_aggregates(reading: Reading, tmp_path: Path, query: str, expected: list[str]) -> None:
    make_lake(tmp_path, {PROJECT: {"a": metric("m", [3.0, float("inf"), 5.0]), "b": metric("m", [1e308, 1e308])}})
    reading.catalog.refresh(PROJECT)
    found = search(reading.catalog, reading.reader, Search([PROJECT], parse(query)))
    assert [run.run_id for run in found.runs] == expected


def test_series_over_many_row_groups(reading: Reading, tmp_path: Path) -> None:
    count = 300_000
    numbers = np.random.default_rng(1).normal(size=count).tolist()
    make_lake(tmp_path, {PROJECT: {"a": [*metric("l", [0.5]), *metric("m", numbers), *metric("n", [1.5])]}})
    reading.catalog.refresh(PROJECT)
    run = reading.catalog.runs(PROJECT).by_id("a")
    assert run is not None
    # The cache holds less than one row group: every answer is decoded anew, and right.
    assert reading.reader.floats(run, "m").values.tolist() == numbers
    assert reading.reader.floats(run, "m", Window(limit=140_000)).values.tolist() == numbers[-140_000:]
    assert reading.reader.floats(run, "m", Window(limit=140_000, last=False)).values.tolist() == numbers[:140_000]
    middle = Window(low=131_000 * 10**6, high=131_100 * 10**6)
    assert reading.reader.floats(run, "m", middle).values.tolist() == numbers[131_000:131_101]
    assert [reading.reader.floats(run, path).values.tolist() for path in ("l", "n", "o")] == [[0.5], [1.5], []]


def test_other_scopes_and_types_of_2x(reading: Reading, tmp_path: Path) -> None:
    make_lake(tmp_path, {PROJECT: {"a": [file_set("code", {"x.py": b"1", "y.py": b"22"})]}})
    make_lake(tmp_path, {PROJECT: {"MOD": params({"sys/id": "MOD"})}}, scope=Scope.MODELS)
    assert reading.table("code") == {"a": {"code": True}}
    models = search(reading.catalog, reading.reader, Search([PROJECT], scope="models")).runs
    assert [model.sys_id for model in models] == ["MOD"]


def test_a_part_that_is_gone(reading: Reading, tmp_path: Path) -> None:
    make_lake(tmp_path, {PROJECT: {"a": metric("m", [1.0])}})
    reading.catalog.refresh(PROJECT)
    run = reading.catalog.runs(PROJECT).by_id("a")
    assert run is not None
    for part in (tmp_path / "data").rglob("*.parquet"):
        part.unlink()
    with pytest.raises(LakeError, match="missing"):
        reading.reader.floats(run, "m")
