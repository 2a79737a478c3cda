"""25,000 runs, thousands of them created in the same millisecond, in the real server; the real client asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.schema import AttributeType
from neptune_assets.server.store.runs import NewRun, encode
from neptune_assets.settings import Filters, LakeSettings
from neptune_assets.sources.neptune2.settings import Neptune2Source
from neptune_assets.sources.neptune2.source import Neptune2
from neptune_assets_tests.support.server import Served, server_in_thread

PROJECT = "bench/many"
COUNT = 25_000
TIES = 11_000
"""Runs that share a time: more than offsets reach."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with server_in_thread(tmp_path_factory.mktemp("many") / "store") as running:
        assert running.service is not None
        with running.service.store.project(PROJECT, create=True, key="MANY").write() as writing:
            for number in range(COUNT):
                run = writing.create_run(
                    NewRun(None, generation="2", created_at=1_700_000_000_000 + number // TIES, owner="bench")
                )
                writing.operations(run).assign("number", AttributeType.INT, encode(AttributeType.INT, number))
        yield running


@pytest.fixture
def source(served: Served, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Neptune2]:
    monkeypatch.setenv("NEPTUNE_API_TOKEN", served.token)
    return lambda **settings: Neptune2(Neptune2Source.model_validate(settings), Filters())


def ids(numbers: range) -> list[str]:
    return sorted(f"MANY-{number + 1}" for number in numbers)


def test_every_run_is_listed_once_and_the_count_comes_out(source: Callable[..., Neptune2]) -> None:
    opened = source()
    infos = opened.runs(PROJECT)
    assert [info.run_id for info in infos] == ids(range(COUNT))
    assert len({info.created_at for info in infos}) == 3
    assert not opened.problems(PROJECT)
    # 25 pages; where offsets end, the next page begins after the last id.
    assert opened.requests <= 30


def test_what_a_query_splits_off_is_listed_once_too(source: Callable[..., Neptune2]) -> None:
    parts = [source(query=f"(`number`:int {compare} 12000)") for compare in ("<", ">=")]
    found = [[info.run_id for info in part.runs(PROJECT)] for part in parts]
    assert found == [ids(range(12_000)), ids(range(12_000, COUNT))]
    assert not any(part.problems(PROJECT) for part in parts)


@pytest.mark.slow
def test_all_are_exported_once_and_only_what_changed_the_next_time(
    served: Served, source: Callable[..., Neptune2], tmp_path: Path
) -> None:
    settings = LakeSettings(root=str(tmp_path / "lake"))

    def materialize() -> tuple[Any, int]:
        opened = source()
        return LakeWriter(settings, opened).write_project(PROJECT), opened.requests

    first, _ = materialize()
    assert sorted(first.new) == ids(range(COUNT))
    assert (first.failed, first.partial, first.problems) == ({}, [], [])
    records = Lake(settings).project(PROJECT).records()
    assert sorted(records) == ids(range(COUNT))
    numbers = {
        run.run_id: row["int_value"]
        for run in Lake(settings).project(PROJECT).runs()
        for batch in run.batches([AttributeType.INT], ["attribute_path", "int_value"])
        for row in batch.to_pylist()
        if row["attribute_path"] == "number"
    }
    assert numbers == {f"MANY-{number + 1}": number for number in range(COUNT)}

    second, requests = materialize()
    assert (second.new, second.changed, second.failed) == ([], [], {})
    assert len(second.skipped) == COUNT
    assert requests <= 30

    assert served.service is not None
    with served.service.store.project(PROJECT).write() as writing:
        run = writing.run("MANY-17")
        assert run is not None
        writing.operations(run).assign("number", AttributeType.INT, encode(AttributeType.INT, -1))
    third, _ = materialize()
    assert third.changed == ["MANY-17"]
    assert len(third.skipped) == COUNT - 1
