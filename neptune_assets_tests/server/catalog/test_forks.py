"""Random trees of forks, in the lake and in the store: catalog and points against a plain model in Python.

Half of the points that go to the store come late, after the other half.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from neptune_assets.lake.reader import Lake
from neptune_assets.schema import AttributeType
from neptune_assets.server.catalog.catalog import Catalog
from neptune_assets.server.catalog.search import NameFilter, values
from neptune_assets.server.series import SeriesReader, Window
from neptune_assets.server.store.projects import Store
from neptune_assets.settings import LakeSettings
from neptune_assets.testing.lakes import make_lake, metric, params, texts
from neptune_assets_tests.server.reading.store_logging import log

PROJECT = "ws/forks"
numbers = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([math.nan, math.inf, 0.5]))
own = st.dictionaries(st.sampled_from(["a", "b"]), st.dictionaries(st.integers(0, 12), numbers, min_size=1, max_size=5))
words = st.dictionaries(st.integers(0, 12), st.sampled_from(["x", "y", ""]), max_size=3)


@st.composite
def trees(draw: st.DrawFn) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 6))):
        parent = draw(st.one_of(st.none(), st.integers(0, number - 1))) if number else None
        series = {path: dict(sorted(points.items())) for path, points in draw(own).items()}
        lines = dict(sorted(draw(words).items()))
        step = draw(st.integers(0, 12)) if parent is not None else None
        in_lake = draw(st.booleans()) and (parent is None or runs[parent]["lake"])
        runs.append({"parent": parent, "step": step, "series": series, "lines": lines, "lake": in_lake})
    return runs


def effective(runs: list[dict[str, Any]], number: int, part: str, path: str | None = None) -> dict[int, Any]:
    """Points of a series along its line: the parent's up to the fork, the child's from there on."""
    run = runs[number]
    mine = run[part] if path is None else run[part].get(path, {})
    if run["parent"] is None:
        return dict(mine)
    before = effective(runs, run["parent"], part, path)
    merged = {step: value for step, value in before.items() if step <= run["step"]}
    merged.update({step: value for step, value in mine.items() if step >= run["step"]})
    return dict(sorted(merged.items()))


def half(points: dict[int, Any], part: int) -> dict[int, Any]:
    """Every second point from the end, or those between them: the highest one comes first."""
    steps = list(points)
    return {step: points[step] for step in steps[len(steps) - 1 - part :: -2]} if len(steps) > part else {}


def ask(catalog: Catalog, reader: SeriesReader, number: int) -> None:
    """Look at a run, so that the catalog has read its points."""
    catalog.refresh(PROJECT)
    run = catalog.runs(PROJECT).by_id(f"r{number}")
    assert run is not None
    values(catalog, reader, [run], NameFilter(paths=["a", "b", "log"]))


@contextmanager
def opened(runs: list[dict[str, Any]], *, between: bool) -> Iterator[tuple[Catalog, SeriesReader]]:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        rows = {}
        for number, run in enumerate(runs):
            if run["lake"]:
                fork = {}
                if run["parent"] is not None:
                    fork = {"sys/forking/parent": f"r{run['parent']}", "sys/forking/step": float(run["step"])}
                rows[f"r{number}"] = params({"n": number, **fork})
                for path, points in run["series"].items():
                    rows[f"r{number}"] += metric(path, list(points.values()), steps=list(points))
                if run["lines"]:
                    rows[f"r{number}"] += texts("log", list(run["lines"].values()), steps=list(run["lines"]))
        lake = make_lake(root / "lake", {PROJECT: rows}) if rows else None
        store = Store(root / "store")
        project = store.project(PROJECT, create=True)
        catalog = Catalog(
            store=store, lake=lake or Lake(LakeSettings(root=str(root / "none"))), memory_mb=128, threads=1
        )
        reader = SeriesReader(catalog)
        try:
            for number, run in enumerate(runs):
                if run["lake"]:
                    continue
                fork = {}
                if run["parent"] is not None:
                    fork = {"parent_project": PROJECT, "parent_run_id": f"r{run['parent']}",
                            "fork_step": run["step"] * 1_000_000}  # fmt: skip
                log(project, f"r{number}", strings={"log": half(run["lines"], 0)} if run["lines"] else {}, **fork)
                if between:
                    catalog.refresh(PROJECT)
            # Children may be known before their parents' points are.
            for part in range(2):
                for number, run in enumerate(runs):
                    if not run["lake"]:
                        series = {path: half(points, part) for path, points in run["series"].items()}
                        lines = {"log": half(run["lines"], 1)} if run["lines"] and part else {}
                        log(project, f"r{number}", floats=series, strings=lines)
                        if between:
                            ask(catalog, reader, number)
            catalog.refresh(PROJECT)
            yield catalog, reader
        finally:
            catalog.close()
            store.close()


@settings(deadline=None, max_examples=20, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(trees(), st.booleans())
def test_as_the_model_says(runs: list[dict[str, Any]], between: bool) -> None:
    with opened(runs, between=between) as (catalog, reader):
        for number in range(len(runs)):
            run = catalog.runs(PROJECT).by_id(f"r{number}")
            assert run is not None
            found, _ = values(catalog, reader, [run], NameFilter(paths=["a", "b", "log"]))
            by_path = {value.path: value for value in found}
            for path in ("a", "b"):
                expected = effective(runs, number, "series", path)
                points = reader.floats(run, path)
                assert points.steps.tolist() == [step * 1_000_000 for step in expected]
                assert repr(points.values.tolist()) == repr(list(expected.values()))
                tail = reader.floats(run, path, Window(limit=2))
                assert repr(tail.values.tolist()) == repr(list(expected.values())[-2:])
                head = reader.floats(run, path, Window(limit=2, last=False))
                assert repr(head.values.tolist()) == repr(list(expected.values())[:2])
                if expected:
                    check(by_path[path], expected)
            lines = effective(runs, number, "lines")
            objects = reader.objects(run, "log", AttributeType.STRING_SERIES)
            assert [(point.step // 1_000_000, point.value) for point in objects] == list(lines.items())
            if lines:
                assert by_path["log"].text == list(lines.values())[-1]


def check(value: Any, points: dict[int, float]) -> None:
    finite = [number for number in points.values() if math.isfinite(number)]
    assert repr(value.number) == repr(list(points.values())[-1])
    assert (value.points, value.last_step) == (len(points), max(points) * 1_000_000)
    assert (value.least, value.greatest) == (min(finite, default=None), max(finite, default=None))
    if finite:
        assert math.isclose(value.mean, sum(finite) / len(finite), abs_tol=1e-12)
