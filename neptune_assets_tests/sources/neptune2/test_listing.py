"""Tables past what offsets reach, with a stub that counts, cuts and leaves out as it is told. The client is real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from neptune_assets.errors import SourceError, UnknownProjectError
from neptune_assets.schema import Scope
from neptune_assets.settings import Filters, ProjectFilter, RunFilter
from neptune_assets.sources.neptune2.listing import listing_query
from neptune_assets.sources.neptune2.source import Neptune2
from neptune_assets_tests.sources.neptune2.stub import PROJECT, Container, Stub

Make = Callable[..., Neptune2]


def queries(stub: Stub) -> list[str]:
    """The queries that tables were asked with."""
    return [body["query"]["query"] for path, _, body in stub.requests if path.endswith("/entries/search")]


def test_more_runs_of_one_moment_than_offsets_reach_are_all_listed(stub: Stub, source: Make) -> None:
    stub.containers += [Container(f"P-{number}") for number in range(1, 12_346)]
    infos = source().runs(PROJECT)
    assert [info.run_id for info in infos] == sorted(f"P-{number}" for number in range(1, 12_346))
    assert len(queries(stub)) == 13


def test_runs_that_a_listing_by_id_leaves_out_are_found_by_time(stub: Stub, source: Make) -> None:
    stub.containers += [
        Container(f"P-{number}", created=f"2025-03-{1 + number // 50:02}T12:00:00.000Z") for number in range(1_000)
    ]
    stub.lost = {"P-7", "P-777"}
    opened = source(runs_per_page=100)
    assert len(opened.runs(PROJECT)) == 1_000
    assert not opened.problems(PROJECT)


def test_a_count_that_never_comes_out_is_reported(stub: Stub, source: Make) -> None:
    stub.containers += [Container("P-1"), Container("P-2")]
    stub.count = 5
    opened = source()
    assert [info.run_id for info in opened.runs(PROJECT)] == ["P-1", "P-2"]
    (problem,) = opened.problems(PROJECT)
    assert "counts 5 runs" in problem.message
    assert opened.problems("ws/other") == []


def test_a_server_that_gives_fewer_lines_than_asked_for_is_asked_on(stub: Stub, source: Make) -> None:
    stub.containers += [Container(f"P-{number}") for number in range(250)]
    stub.page = 30
    assert len(source(runs_per_page=100).runs(PROJECT)) == 250


def test_trashed_runs_are_listed_only_if_wanted(stub: Stub, source: Make) -> None:
    stub.containers += [Container("P-1"), Container("P-2", trashed=True)]
    assert [info.run_id for info in source().runs(PROJECT)] == ["P-1"]
    everything = source(Filters(runs=RunFilter(trashed=True))).runs(PROJECT)
    assert [(info.run_id, info.trashed) for info in everything] == [("P-1", False), ("P-2", True)]


def test_times_of_creation_narrow_the_listing(stub: Stub, source: Make) -> None:
    stub.containers += [Container(f"P-{day}", created=f"2025-03-0{day}T12:00:00.000Z") for day in range(1, 6)]
    filters = Filters(runs=RunFilter(created_since="2025-03-02T12:00:00Z", created_until="2025-03-04T14:00:00+02:00"))
    assert [info.run_id for info in source(filters).runs(PROJECT)] == ["P-2", "P-3"]
    assert "2025-03-04T12:00:00.000Z" in queries(stub)[-1]


def test_ids_are_asked_for_by_name_or_picked_from_all(stub: Stub, source: Make, tmp_path: Path) -> None:
    stub.containers += [Container(f"P-{number}") for number in range(200)]
    few = source(Filters(runs=RunFilter(ids=["P-3", "P-5", "gone"])))
    assert [info.run_id for info in few.runs(PROJECT)] == ["P-3", "P-5"]
    assert 'string = "P-3"' in queries(stub)[-1]
    listed = tmp_path / "ids"
    listed.write_text("P-4\nP-6\n")
    filed = source(Filters(runs=RunFilter(ids=["P-3"], ids_file=str(listed))))
    assert [info.run_id for info in filed.runs(PROJECT)] == ["P-3", "P-4", "P-6"]
    assert "P-3" not in queries(stub)[-1]


def test_a_query_of_the_users_own_keeps_its_meaning() -> None:
    query = '(`a`:int = 1) OR (`b`:string = "x")'
    assert listing_query(RunFilter(), Scope.RUNS, query) == f"(`sys/trashed`:bool = false) AND ({query})"
    assert query not in listing_query(RunFilter(), Scope.MODELS, query)
    assert listing_query(RunFilter(trashed=True), Scope.RUNS, None) == ""
    assert listing_query(RunFilter(trashed=True, ids=['a"\\b']), Scope.RUNS, None) == r'((`sys/id`:string = "a\"\\b"))'


def test_projects_are_found_past_the_first_page(stub: Stub, source: Make) -> None:
    stub.projects = [f"ws/p{number}" for number in range(7)] + ["other/p"]
    stub.projects_per_page = 3
    assert source().projects() == sorted(stub.projects)
    assert source(workspace="ws").projects() == sorted(stub.projects)[1:]
    assert source(projects=["ws/p1", "ws/p2"]).projects() == ["ws/p1", "ws/p2"]
    assert source(Filters(projects=ProjectFilter(exclude=["^ws/"]))).projects() == ["other/p"]


def test_an_unknown_project_names_those_there_are(stub: Stub, source: Make) -> None:
    with pytest.raises(UnknownProjectError, match="ws/project"):
        source().runs("ws/projekt")


def test_a_project_of_neptune_1_is_refused(stub: Stub, source: Make) -> None:
    stub.version = 1
    with pytest.raises(SourceError, match="never moved"):
        source().runs(PROJECT)
