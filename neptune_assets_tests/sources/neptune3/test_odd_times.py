"""Times that no calendar holds: a proxy puts them into the answers of a real server."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from neptune_api.proto.neptune_pb.api.v1.model.leaderboard_entries_pb2 import ProtoLeaderboardEntriesSearchResultDTO
from neptune_api.proto.neptune_pb.api.v1.model.series_values_pb2 import ProtoFloatSeriesValuesResponseDTO

from neptune_assets.testing.sources import read
from neptune_assets_tests.sources.neptune3.conftest import Open
from neptune_assets_tests.support.faulty_proxy import FaultyProxy
from neptune_assets_tests.support.server import Served
from neptune_assets_tests.support.wire_logging import WireLogger

PROJECT = "odd/times"
YEAR_58000 = 1_768_135_996_800_123


@pytest.fixture
def proxy(served: Served, open_source: Open, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    logger = WireLogger(served, PROJECT)
    logger.create("a")
    logger.metrics("a", {"m": [(step, step + 0.5) for step in range(3)]})
    with FaultyProxy(served.url).running() as running:
        fields = json.loads(base64.b64decode(served.token))
        fields["api_url"] = fields["api_address"] = running.url
        monkeypatch.setenv("NEPTUNE_API_TOKEN", base64.b64encode(json.dumps(fields).encode()).decode())
        yield running


def test_a_change_at_a_time_that_no_calendar_holds_is_noticed(proxy: FaultyProxy, open_source: Open) -> None:
    marks = []
    for modified in (YEAR_58000, YEAR_58000 + 1, YEAR_58000 + 1, -(2**62)):

        def far(path: str, body: bytes, modified: int = modified) -> bytes:
            if "entries/search" not in path:
                return body
            found = ProtoLeaderboardEntriesSearchResultDTO.FromString(body)
            for item in found.entries[0].attributes:
                if item.name == "sys/modification_time":
                    item.datetime_properties.value = modified
            return bytes(found.SerializeToString())

        proxy.rewrite = far
        (info,) = open_source().runs(PROJECT)
        assert info.modified_at is None
        marks.append(info.fingerprint)
    assert marks[1] == marks[2]
    assert len(set(marks)) == 3


def test_points_at_times_that_no_calendar_holds_are_kept(proxy: FaultyProxy, open_source: Open) -> None:
    def far(path: str, body: bytes) -> bytes:
        if "series/float" not in path:
            return body
        found = ProtoFloatSeriesValuesResponseDTO.FromString(body)
        for point, time in zip(found.series[0].series.values, (YEAR_58000, 2**62, -YEAR_58000), strict=True):
            point.timestamp_millis = time
        return bytes(found.SerializeToString())

    proxy.rewrite = far
    result = read(open_source(), PROJECT, ["a"])
    rows: list[dict[str, Any]] = [row for row in result.rows["a"] if row["attribute_path"] == "m"]
    assert sorted((row["step"], row["timestamp"], row["float_value"]) for row in rows) == [
        (0, -YEAR_58000, 0.5),
        (1, None, 1.5),
        (2, YEAR_58000, 2.5),
    ]
    assert not result.ends["a"].errors
    kept, lost = result.ends["a"].notes
    assert "2 times of points" in kept.message
    assert "1 times of points" in lost.message
