from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from neptune_query.generated.neptune_api.proto.neptune_pb.api.v1.model.series_values_pb2 import (
    ProtoFloatSeriesValuesResponseDTO,
)

from neptune_assets.sources.neptune3.wire_points import float_series

Point = tuple[int, float, float, bool, float]


def encode(series: list[tuple[str, list[Point]]], total: int = 0) -> bytes:
    """Neptune's own protobuf classes write what the parser reads."""
    answer = ProtoFloatSeriesValuesResponseDTO()
    for request_id, points in series:
        one = answer.series.add(requestId=request_id)
        one.series.total_item_count = total
        for time, step, value, preview, completion in points:
            one.series.values.add(
                timestamp_millis=time, step=step, value=value, is_preview=preview, completion_ratio=completion
            )
    return answer.SerializeToString()


def decode(content: bytes) -> list[tuple[str, list[Any]]]:
    return [
        (
            request_id,
            [
                (int(time), bits(step), bits(value), bool(preview), bits(completion))
                for time, step, value, preview, completion in zip(
                    points.time, points.step, points.value, points.preview, points.completion, strict=True
                )
            ],
        )
        for request_id, points in float_series(content)
    ]


def bits(value: float) -> bytes:
    return b"nan" if math.isnan(value) else struct.pack(">d", value)


def expected(series: list[tuple[str, list[Point]]]) -> list[tuple[str, list[Any]]]:
    return [
        (
            request_id,
            [(time, bits(step), bits(value), preview, bits(ratio)) for time, step, value, preview, ratio in points],
        )
        for request_id, points in series
    ]


def test_values_come_as_they_were_sent() -> None:
    values = [0.1, math.nan, math.inf, -math.inf, -0.0, 0.0, 5e-324, 1.7976931348623157e308]
    points = [(1_700_000_000_000 + n, n / 4, value, False, 1.0) for n, value in enumerate(values)]
    series = [("0", points), ("1", []), ("17", points[:1])]
    assert decode(encode(series)) == expected(series)


@pytest.mark.parametrize("every", [0, 2, 3, 7, 300, 999])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 255, 256, 257, 2_000])
def test_points_that_leave_out_zeros_are_found_among_the_others(every: int, count: int) -> None:
    points = [
        (
            0 if every and n % every == 1 else 1_700_000_000_000 + n,
            float(count - n) if not every or n % every else 0.0,
            0.0 if every and n % every == 0 else n * 0.1,
            bool(every) and n % every == 2,
            0.5 if every and n % every == 2 else 1.0,
        )
        for n in range(count)
    ]
    series = [("a", points), ("b", points[::-1])]
    assert decode(encode(series, total=count)) == expected(series)


def test_times_of_every_length() -> None:
    times = [0, 1, 127, 128, 2**14, 2**21, 2**28, 2**35, 2**42, 2**49, 2**56, 2**62, -1, -(2**40)]
    points = [(time, 1.0, 2.0, False, 1.0) for time in times for _ in range(40)]
    assert decode(encode([("a", points)])) == expected([("a", points)])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-(2**63), 2**63 - 1),
            st.floats(allow_nan=False),
            st.floats(),
            st.booleans(),
            st.sampled_from([0.0, 0.25, 1.0]),
        ),
        max_size=60,
    )
)
def test_any_points(points: list[Point]) -> None:
    assert decode(encode([("x", points * 3)])) == expected([("x", points * 3)])


def test_a_field_added_by_a_newer_server_beside_the_points_is_passed_over() -> None:
    points: list[Point] = [(5, 1.0, 2.0, False, 1.0)]
    # Field 9 of the answer: a string.
    assert decode(encode([("a", points)]) + b"\x4a\x03new") == expected([("a", points)])


@pytest.mark.parametrize("size", [1, 5, 40, 100])
def test_an_answer_cut_short_is_refused(size: int) -> None:
    points: list[Point] = [(1_700_000_000_000, float(n), 2.0, False, 1.0) for n in range(20)]
    with pytest.raises(ValueError, match=r"answer|message|point|number"):
        decode(encode([("a", points)])[:-size])


def test_a_point_with_an_unknown_field_is_refused() -> None:
    point = b"\x08\x05\x11" + struct.pack("<d", 1.0) + b"\x38\x01"
    series = b"\x12" + bytes([len(point)]) + point
    one = b"\x0a\x01a\x12" + bytes([len(series)]) + series
    with pytest.raises(ValueError, match="does not know"):
        decode(b"\x0a" + bytes([len(one)]) + one)
