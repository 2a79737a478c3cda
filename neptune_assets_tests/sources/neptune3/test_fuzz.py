"""Answers of a 3.x server that were changed in any way end no project."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from neptune_api.proto.neptune_pb.api.v1.model.attributes_pb2 import ProtoQueryAttributesResultDTO
from neptune_api.proto.neptune_pb.api.v1.model.leaderboard_entries_pb2 import ProtoLeaderboardEntriesSearchResultDTO
from neptune_api.proto.neptune_pb.api.v1.model.series_values_pb2 import (
    ProtoFloatSeriesValuesResponseDTO,
    ProtoSeriesValuesResponseDTO,
)

from neptune_assets.settings import Filters
from neptune_assets.sources.neptune3.settings import Neptune3Source
from neptune_assets.sources.neptune3.source import Neptune3
from neptune_assets_tests.support.faulty_proxy import FaultyProxy
from neptune_assets_tests.support.mutations import Mutation, Mutator, mutations, survives
from neptune_assets_tests.support.server import Served
from neptune_assets_tests.support.wire_logging import WireLogger

PROJECT = "fuzz/project"
MESSAGES = {
    "entries/search": ProtoLeaderboardEntriesSearchResultDTO,
    "leaderboard/attributes/query": ProtoQueryAttributesResultDTO,
    "series/float": ProtoFloatSeriesValuesResponseDTO,
    "attributes/series?": ProtoSeriesValuesResponseDTO,
}
CALLS = (*MESSAGES, *MESSAGES, "definitions/query", "v1/projects", "signedUrl", "storage/v1/")


@pytest.fixture(scope="module")
def behind(served: Served) -> Iterator[tuple[Neptune3, FaultyProxy]]:
    """A source with a proxy before a real server."""
    logger = WireLogger(served, PROJECT)
    for run_id in ("a", "b", "c"):
        logger.create(run_id)
        logger.configs(run_id, {"lr": 0.1, "n": 3, "on": True, "name": "x"})
        logger.metrics(run_id, {f"m/{name}": [(step, step / 3) for step in range(30)] for name in "xy"})
        logger.strings(run_id, {"log": [(float(step), str(step)) for step in range(5)]})
    logger.file("a", "file", "a/file.bin", b"x" * 100, "application/octet-stream")
    with FaultyProxy(served.url).running() as proxy, pytest.MonkeyPatch.context() as patch:
        fields = json.loads(base64.b64decode(served.token))
        fields["api_url"] = fields["api_address"] = proxy.url
        patch.delenv("DISABLE_NEPTUNE_LOGGING", raising=False)
        patch.setenv("NEPTUNE_API_TOKEN", base64.b64encode(json.dumps(fields).encode()).decode())
        made = Neptune3Source(retry_seconds=0, runs_per_page=2, points_per_page=1_000, request_seconds=60)
        source = Neptune3(made, Filters())
        assert len(source.runs(PROJECT)) == 3
        yield source, proxy


@settings(max_examples=60, deadline=None)
@given(mutations(CALLS))
def test_no_answer_of_a_server_ends_a_project(behind: tuple[Neptune3, FaultyProxy], drawn: list[Mutation]) -> None:
    source, proxy = behind
    proxy.rewrite = mutator = Mutator(drawn, MESSAGES)
    survives(source, PROJECT, mutator)


@pytest.mark.slow
@settings(max_examples=2_000, deadline=None)
@given(mutations(CALLS))
def test_none_of_very_many_answers_of_a_server_ends_a_project(
    behind: tuple[Neptune3, FaultyProxy], drawn: list[Mutation]
) -> None:
    source, proxy = behind
    proxy.rewrite = mutator = Mutator(drawn, MESSAGES)
    survives(source, PROJECT, mutator)
