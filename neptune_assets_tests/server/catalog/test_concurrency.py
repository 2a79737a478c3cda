"""Readers in many threads while a run grows and others come: every answer is of one moment, none goes backwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from neptune_assets.server.catalog.catalog import Catalog
from neptune_assets.server.catalog.search import NameFilter, Search, definitions, search, values
from neptune_assets.server.nql import parse
from neptune_assets.server.series import FloatPoints, SeriesReader
from neptune_assets.server.store.projects import Store
from neptune_assets_tests.server.reading.store_logging import log

PROJECT = "ws/busy"
COMMITS = 60


def test_reading_while_writing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    project = store.project(PROJECT, create=True)
    log(project, "grows", floats={"m": {0: 0.0}})
    catalog = Catalog(store=store, lake=None, memory_mb=128, threads=2)
    reader = SeriesReader(catalog)
    done = threading.Event()

    def write() -> None:
        for number in range(1, COMMITS):
            log(project, "grows", floats={"m": {number: float(number)}}, values={"count": number})
            if number % 10 == 0:
                fork = {"parent_project": PROJECT, "parent_run_id": "grows", "fork_step": number * 1_000_000}
                log(project, f"fork {number}", values={"count": number}, **fork)
        done.set()

    def read() -> int:
        seen = rounds = 0
        while not done.is_set() or rounds == 0:
            catalog.refresh(PROJECT)
            run = catalog.runs(PROJECT).by_id("grows")
            assert run is not None
            (value,), _ = values(catalog, reader, [run], NameFilter(paths=["m"]))
            assert value.number is not None
            assert value.number >= seen
            seen = int(value.number)
            points = reader.floats(run, "m").values.tolist()
            assert points == [float(number) for number in range(len(points))]
            assert len(points) > seen
            found = search(catalog, reader, Search([PROJECT], parse(f"`m`:floatSeries >= {seen}"))).runs
            assert "grows" in {item.run_id for item in found}
            assert ("m", "float_series") in definitions(catalog, [PROJECT], NameFilter())
            rounds += 1
        return rounds

    try:
        with ThreadPoolExecutor(5) as pool:
            readers = [pool.submit(read) for _ in range(4)]
            pool.submit(write).result(timeout=300)
            assert all(item.result(timeout=300) for item in readers)
        catalog.refresh(PROJECT)
        runs = search(catalog, reader, Search([PROJECT])).runs
        assert len(runs) == 1 + (COMMITS - 1) // 10
        table, _ = values(catalog, reader, runs, NameFilter(paths=["m"]))
        last = {value.run.run_id: (value.number, value.points) for value in table}
        expected = {f"fork {number}": (float(number), number + 1) for number in range(10, COMMITS, 10)}
        assert last == {"grows": (COMMITS - 1.0, COMMITS), **expected}
    finally:
        done.set()
        catalog.close()
        store.close()


class _Slow(SeriesReader):
    """Reads points, and goes on with them only when it is told to."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog)
        self.has_read, self.go_on = threading.Event(), threading.Event()

    def float_pieces(self, *args: Any, **options: Any) -> Iterator[FloatPoints]:
        pieces = list(super().float_pieces(*args, **options))
        self.has_read.set()
        assert self.go_on.wait(60)
        yield from pieces


def test_figures_read_early_and_saved_late_do_not_replace_younger_ones(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    project = store.project(PROJECT, create=True)
    log(project, "grows", floats={"m": {0: 0.0}})
    catalog = Catalog(store=store, lake=None, memory_mb=128, threads=2)
    slow, reader = _Slow(catalog), SeriesReader(catalog)

    def found(with_reader: SeriesReader, least: float) -> set[str]:
        query = parse(f"`m`:floatSeries >= {least}")
        return {run.run_id for run in search(catalog, with_reader, Search([PROJECT], query)).runs}

    try:
        catalog.refresh(PROJECT)
        with ThreadPoolExecutor(2) as pool:
            early = pool.submit(found, slow, 0)
            assert slow.has_read.wait(60)
            log(project, "grows", floats={"m": {1: 1.0}})
            catalog.refresh(PROJECT)
            late = pool.submit(found, reader, 1)
            wait([late], timeout=1)
            slow.go_on.set()
            assert early.result(60) == late.result(60) == {"grows"}
        assert found(reader, 1) == {"grows"}
    finally:
        slow.go_on.set()
        catalog.close()
        store.close()


def test_inherited_figures_stay_until_somebody_reads_the_points_anew(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    project = store.project(PROJECT, create=True)
    log(project, "parent", floats={"m": {0: 5.0}, "gone": {0: 1.0}})
    log(project, "child", parent_project=PROJECT, parent_run_id="parent", fork_step=9_000_000)
    catalog = Catalog(store=store, lake=None, memory_mb=128, threads=2)
    reader = SeriesReader(catalog)

    def figures(*, complete: bool) -> dict[str, float | None]:
        child = catalog.runs(PROJECT).by_id("child")
        assert child is not None
        wanted = NameFilter(paths=["m", "gone", "new"])
        return {value.path: value.number for value in values(catalog, reader, [child], wanted, complete=complete)[0]}

    try:
        catalog.refresh(PROJECT)
        assert figures(complete=True) == {"m": 5.0, "gone": 1.0}
        with project.write() as writing:
            parent = writing.run("parent")
            assert parent is not None
            writing.operations(parent).delete("gone")
        log(project, "parent", floats={"m": {1: 6.0}, "new": {0: 2.0}})
        catalog.refresh(PROJECT)
        assert figures(complete=False) == {"m": 5.0, "new": None}
        assert figures(complete=True) == {"m": 6.0, "new": 2.0}
    finally:
        catalog.close()
        store.close()
