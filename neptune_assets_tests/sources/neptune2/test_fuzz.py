"""Answers of a 2.x server that were changed in any way end no project."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from neptune_assets.settings import Filters
from neptune_assets.sources.neptune2.settings import Neptune2Source
from neptune_assets.sources.neptune2.source import Neptune2
from neptune_assets_tests.sources.neptune2.stub import PROJECT, Container, Stub, attribute, token_for
from neptune_assets_tests.support.faulty_proxy import FaultyProxy
from neptune_assets_tests.support.mutations import Mutation, Mutator, mutations, survives

CALLS = (
    "projects/get",
    "projects?",
    "entries/search",
    "v1/attributes?",
    "v1/attributes?",
    "series/float",
    "series/string",
    "series/image?",
    "stringSets",
    "artifact/files",
    "downloadFileSetZipRequest",
    "downloadRequest",
    "attributes/download",
    "v1/zip",
)


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Neptune2, FaultyProxy]]:
    """One session with a proxy before a stub, which holds a bit of everything."""
    run = Container("P-1")
    run.attributes += [
        attribute("p/rate", "float", value=0.1),
        attribute("p/int", "int", value=7),
        attribute("p/on", "bool", value=True),
        attribute("p/when", "datetime", value="2025-03-01T12:00:00.000Z"),
        attribute("sys/tags", "stringSet", values=["b", "a"]),
        attribute("sys/group_tags", "stringSet", values=None),
        attribute("sys/state", "experimentState", value="idle"),
        attribute("git", "gitRef", commit={"commitId": "1", "commitDate": "2025-03-01T12:00:00Z"}, remotes=["r"]),
        attribute("tracked", "artifact", hash="h"),
        attribute("set", "fileSet", size=5),
        attribute("images", "imageSeries"),
    ]
    run.floats("loss", *((step, 1_740_000_000_000 + step, step / 3) for step in range(5)))
    run.strings("log", (0, 1_740_000_000_000, "a"), (1, 1_740_000_000_001, ""))
    run.file("model/weights", b"w" * 100, "bin")
    run.sets["set"] = {"a/b.txt": b"hello", "c": b""}
    run.images["images"] = [b"i", b"j"]
    others = [Container(f"P-{number}", attributes=[attribute("p", "int", value=number)]) for number in range(2, 11)]
    where = {"key": "location", "value": "/a"}
    tracked = {"filePath": "a", "fileHash": "0", "type": "Local", "size": 1, "metadata": [where]}
    stub = Stub([run, *others], artifacts={"h": [tracked]}, page=3)
    with stub.running(), FaultyProxy(stub.url).running() as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEPTUNE_API_TOKEN", token_for(proxy.url))
        patch.setenv("NEPTUNE_RETRIES_TIMEOUT", "30")
        roots = [str(tmp_path_factory.mktemp("roots"))]
        made = Neptune2Source(retry_seconds=0, runs_per_page=4, artifact_roots=roots, request_seconds=60)
        source = Neptune2(made, Filters())
        assert len(source.runs(PROJECT)) == 10
        yield source, proxy


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations(CALLS))
def test_no_answer_of_a_server_ends_a_project(behind: tuple[Neptune2, FaultyProxy], drawn: list[Mutation]) -> None:
    source, proxy = behind
    proxy.rewrite = mutator = Mutator(drawn)
    survives(source, PROJECT, mutator)


@pytest.mark.slow
@settings(max_examples=2_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations(CALLS))
def test_none_of_very_many_answers_of_a_server_ends_a_project(
    behind: tuple[Neptune2, FaultyProxy], drawn: list[Mutation]
) -> None:
    source, proxy = behind
    proxy.rewrite = mutator = Mutator(drawn)
    survives(source, PROJECT, mutator)
