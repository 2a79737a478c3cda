"""Against the generated classes: what is written by arrays is read as messages."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from neptune_api.proto.neptune_pb.api.v1.model.series_values_pb2 import ProtoFloatSeriesValuesResponseDTO

from neptune_assets.server.neptune3.reading import first_from, last_to
from neptune_assets.server.neptune3.series import float_series_message
from neptune_assets.server.series import FloatPoints

steps = st.integers(-(10**18) + 1, 10**18 - 1)
times = st.one_of(st.integers(0, 2**45), st.integers(-(2**62), 2**62), st.just(0))
completions = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))


@given(st.text(max_size=20), st.lists(st.tuples(steps, times, st.floats(), completions), max_size=40), st.booleans())
def test_parses_as_it_was_meant(name: str, rows: list[tuple[int, int, float, float | None]], descending: bool) -> None:
    previews = None
    if any(row[3] is not None for row in rows):
        previews = np.array([math.nan if row[3] is None else row[3] for row in rows], np.float32)
    points = FloatPoints(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.float64),
        previews,
    )
    first = b"".join(float_series_message(name, points, descending=descending))
    second = b"".join(float_series_message("other", points.slice(0, 1), descending=descending))
    one, other = ProtoFloatSeriesValuesResponseDTO.FromString(first + second).series
    assert (one.requestId, other.requestId) == (name, "other")
    assert one.series.total_item_count == len(rows)
    found = [
        (point.timestamp_millis, point.step, struct.pack("<d", point.value), point.is_preview, point.completion_ratio)
        for point in one.series.values
    ]
    expected = [
        (
            time,
            step / 1_000_000,
            struct.pack("<d", value),
            completion is not None,
            1.0 if completion is None else completion,
        )
        for step, time, value, completion in rows
    ]
    assert found == (expected[::-1] if descending else expected)


@given(steps)
def test_steps_and_bounds_agree(micro: int) -> None:
    seen = micro / 1_000_000
    first, last = first_from(seen), last_to(seen)
    assert first is not None
    assert last is not None
    assert first <= micro <= last
    assert first / 1_000_000 == seen == last / 1_000_000
    assert (first - 1) / 1_000_000 < seen < (last + 1) / 1_000_000


@pytest.mark.parametrize("descending", [False, True])
def test_many_points_come_in_pieces(descending: bool) -> None:
    count = 150_000
    steps = np.arange(count, dtype=np.int64) * 1_000_000
    points = FloatPoints(steps, steps // 7, np.sqrt(steps))
    pieces = list(float_series_message("name", points, descending=descending))
    assert max(map(len, pieces)) < sum(map(len, pieces)) / 2
    (one,) = ProtoFloatSeriesValuesResponseDTO.FromString(b"".join(pieces)).series
    order = slice(None, None, -1) if descending else slice(None)
    assert [point.step for point in one.series.values] == (steps[order] / 1e6).tolist()
    assert [point.value for point in one.series.values] == points.values[order].tolist()
    assert [point.timestamp_millis for point in one.series.values] == points.times[order].tolist()
