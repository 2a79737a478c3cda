"""Readers in many threads while a run grows and others come: every answer is of one moment, none goes backwards."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from neptune_assets.server.catalog.catalog import Catalog
from neptune_assets.server.catalog.names import NameFilter, definitions
from neptune_assets.server.catalog.search import Search, search
from neptune_assets.server.catalog.values import values
from neptune_assets.server.nql.parser import parse
from neptune_assets.server.series.reader import SeriesReader
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
