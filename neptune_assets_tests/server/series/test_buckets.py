from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neptune_assets.server.series import FloatPoints, edges, gather

values = st.one_of(st.floats(-10, 10), st.sampled_from([math.nan, math.inf, -math.inf]))
series = st.dictionaries(st.integers(-20, 20), values, max_size=30).map(lambda d: dict(sorted(d.items())))
ranges = st.tuples(st.integers(-20, 20), st.integers(-20, 20)).map(sorted)


@given(series, ranges, st.integers(2, 12), st.sets(st.integers(0, 30)))
def test_every_point_is_in_the_bucket_of_its_step(
    items: dict[int, float], bounds: list[int], count: int, cuts: set[int]
) -> None:
    low, high = (float(bound) for bound in bounds)
    points = FloatPoints(
        np.array(list(items), np.int64) * 1_000_000,
        np.zeros(len(items), np.int64),
        np.array(list(items.values()), float),
    )
    # However the points are cut into pieces.
    ends = sorted({0, len(items), *(cut for cut in cuts if cut < len(items))})
    pieces = [points.slice(start, end) for start, end in itertools.pairwise(ends)]
    gathered = gather(pieces, low, edges(low, high, count))
    found = {bucket.index: bucket for bucket in gathered}
    assert [bucket.index for bucket in gathered] == sorted(found)
    if low == high:
        wanted = {0: (low, math.inf, [(x, y) for x, y in items.items() if x >= low])}
    else:
        width = (high - low) / (count - 1)
        borders = [-math.inf, *(low + width * place for place in range(count)), math.inf]
        wanted = {
            place: (
                borders[place],
                borders[place + 1],
                [(x, y) for x, y in items.items() if borders[place] < x <= borders[place + 1]],
            )
            for place in range(count + 1)
        }
    wanted = {place: bucket for place, bucket in wanted.items() if bucket[2]}
    assert found.keys() == wanted.keys()
    for place, (start, end, inside) in wanted.items():
        bucket = found[place]
        finite = [(x, y) for x, y in inside if math.isfinite(y)]
        assert (bucket.low, bucket.high, bucket.finite) == (start, end, len(finite))
        if finite:
            assert (bucket.first, bucket.last) == (finite[0], finite[-1])
            assert bucket.total == pytest.approx(sum(y for _, y in finite))
            assert (bucket.least, bucket.greatest) == (min(y for _, y in finite), max(y for _, y in finite))
        else:
            assert all(math.isnan(number) for number in (*bucket.first, *bucket.last))
        kinds = [sum(map(test, (y for _, y in inside))) for test in (math.isnan, (math.inf).__eq__, (-math.inf).__eq__)]
        assert [bucket.nans, bucket.positive_infinities, bucket.negative_infinities] == kinds
