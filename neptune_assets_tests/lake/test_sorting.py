from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neptune_assets.lake.rows import unpack
from neptune_assets.lake.sorting import RunSorter
from neptune_assets.schema import SERIES_TYPES
from neptune_assets_tests.lake.test_digest import runs
from neptune_assets_tests.support.lake_factory import START, file, histograms, metric, param, texts
from neptune_assets_tests.support.table_source import as_table


def sort(
    rows: Sequence[dict[str, Any]] | pa.Table,
    *,
    limit: int = 1_000_000,
    batch: int = 10_000,
    scratch: Path | None = None,
) -> tuple[list[dict[str, Any]], RunSorter]:
    table = as_table("ws/p", "r", rows)
    with RunSorter(limit, 32, None if scratch is None else str(scratch)) as sorter:
        for piece in table.combine_chunks().to_batches(max_chunksize=batch):
            sorter.add(piece)
        out = []
        for compact in sorter.sorted_rows():
            out += unpack(compact, sorter.attributes, "ws/p", "r").to_pylist()
        return out, sorter


def expected(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    # The same by the plainest means: a dictionary that later rows overwrite.
    kept: dict[Any, Any] = {}
    for arrival, row in enumerate(as_table("ws/p", "r", rows).to_pylist()):
        series = row["attribute_type"] in {str(kind) for kind in SERIES_TYPES}
        key = (row["attribute_path"], row["attribute_type"], row["step"] if series else None)
        order = (row["timestamp"] is not None, row["timestamp"] or START, arrival)
        if not series:
            order = (row["step"] is not None, row["step"] or 0, *order)
        if key not in kept or order > kept[key][0]:
            kept[key] = (order, row)

    def place(row: dict[str, Any]) -> Any:
        return row["attribute_path"], row["attribute_type"], row["step"] is not None, row["step"] or 0

    return sorted((row for _, row in kept.values()), key=place)


def same(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> bool:
    return repr(left) == repr(right)  # repr tells -0.0 from 0.0 and takes NaN for NaN


HOSTILE = [
    *metric(
        "m/nan", [float("nan"), -0.0, 0.0, float("inf"), -float("inf"), None], steps=[5, 4, "3.000001", 3, "-0.5", 0]
    ),
    *texts("log", ["a\0b", "", "line\nbreak", "\0", "ü" * 300], steps=[4, 3, 2, 1, "999999999999.999999"]),
    *histograms("h", [([], []), ([0.0, float("nan")], [-0.0])], steps=[9, "-999999999999.999999"]),
    param("p/int", -(2**63)),
    param("p/max", 2**63 - 1),
    param("p/set", ["b", "", "a\0"]),
    param("P/int", 1),
    param("x" * 1500, "long"),
    param("nul\0path", "v"),
    file("f", b""),
]


@pytest.mark.parametrize("limit", [1000, 7, 3, 1])
def test_hostile_values_survive_sorting_and_spilling(limit: int, tmp_path: Path) -> None:
    rows = list(HOSTILE)
    random.Random(3).shuffle(rows)
    out, sorter = sort(rows, limit=limit, scratch=tmp_path)
    assert same(out, expected(rows))
    assert sorter.spilled == (limit < len(rows))
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(runs(), runs(), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
def test_any_rows_any_batches(
    one: list[dict[str, Any]], two: list[dict[str, Any]], limit: int, batch: int, seed: int
) -> None:
    rows = one + two
    random.Random(seed).shuffle(rows)
    out, sorter = sort(rows, limit=limit, batch=batch)
    assert same(out, expected(rows))
    assert sorter.duplicates == len(rows) - len(out)


@pytest.mark.parametrize("limit", [1000, 4, 1])
def test_values_replaced_by_other_values_are_told_apart_from_equal_repeats(limit: int) -> None:
    nan = float("nan")
    rows = [
        *metric("equal", [1.0, nan, -0.0]),
        *metric("equal", [1.0, nan, -0.0], start=START + timedelta(hours=1)),
        *metric("zero", [0.0]),
        *metric("zero", [-0.0]),
        *metric("some", [1.0, 2.0, 3.0]),
        *metric("some", [1.0, 7.0, nan]),
        param("p", 1),
        param("p", 1),
        param("q", "a"),
        param("q", "b"),
    ]
    _, sorter = sort(rows, limit=limit, batch=2)
    conflicts = {sorter.attributes.names[number][0]: count for number, count in sorter.conflicts.items()}
    assert conflicts == {"zero": 1, "some": 2, "q": 1}
    assert sorter.duplicates == 9


@pytest.mark.parametrize("limit", [1000, 4, 1])
def test_of_duplicates_the_last_by_time_then_by_arrival_stays(limit: int) -> None:
    late, early = START + timedelta(hours=1), START
    rows = [
        *metric("m", [1.0], start=early),
        *metric("m", [2.0], start=late),
        *metric("m", [3.0], start=early),
        *metric("same", [1.0, 9.0], steps=[1, 2]),
        *metric("same", [2.0], steps=[1]),
        *metric("same", [3.0], steps=[1]),
        *metric("untimed", [1.0], start=late),
        *metric("untimed", [2.0], start=None),
        param("p", 1),
        param("p", 2),
        param("p", "text"),
    ]
    out, sorter = sort(rows, limit=limit, batch=1)
    values = [(row["attribute_path"], row["float_value"] or row["int_value"] or row["string_value"]) for row in out]
    assert values == [("m", 2.0), ("p", 2), ("p", "text"), ("same", 3.0), ("same", 9.0), ("untimed", 1.0)]
    assert sorter.duplicates == 6


def test_duplicates_in_hundreds_of_spilled_stretches_keep_the_last() -> None:
    # More stretches than are merged at once, all with the same keys.
    rows = [row for number in range(150) for row in metric("m", [float(number)] * 3, steps=[0, 1, 2], start=START)]
    out, sorter = sort(rows, limit=3, batch=3)
    assert [(row["step"], row["float_value"]) for row in out] == [(Decimal(step), 149.0) for step in range(3)]
    assert sorter.duplicates == 149 * 3


def test_a_row_without_type_is_refused() -> None:
    with RunSorter(10, 32) as sorter, pytest.raises(ValueError, match="attribute_type"):
        sorter.add(as_table("ws/p", "r", [{"attribute_path": "a"}]).to_batches()[0])


MEMORY = """
import resource, sys
import numpy as np, pyarrow as pa
from neptune_assets.lake.rows import decimals, Attributes, unpack
from neptune_assets.lake.sorting import RunSorter
from neptune_assets.schema import SCHEMA, TIME_TYPE

total, step = int(sys.argv[1]), 100_000
names = pa.array([f"metrics/m{i:02d}" for i in range(50)])
def batch(start):
    n = np.arange(start, start + step)[::-1]
    columns = {"project_id": pa.repeat("p", step), "run_id": pa.repeat("r", step),
               "attribute_path": names.take(pa.array(n % 50)), "attribute_type": pa.repeat("float_series", step),
               "step": decimals((n // 50) * 1_000_000), "timestamp": pa.array(n).cast(TIME_TYPE),
               "float_value": pa.array(n * 0.5)}
    arrays = [columns.get(f.name, pa.nulls(step, f.type)) for f in SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with RunSorter(100_000, 32) as sorter:
    for start in reversed(range(0, total, step)):
        sorter.add(batch(start))
    count, last = 0, (-1, -1)
    for rows in sorter.sorted_rows():
        place = sorter.attributes.names
        first = (place[rows["attribute"][0].as_py()][0], rows["step"][0].as_py())
        assert last == (-1, -1) or first > last
        last = (place[rows["attribute"][-1].as_py()][0], rows["step"][-1].as_py())
        number = rows["step"].to_numpy() // 1_000_000 * 50
        ids = np.array([int(name[9:]) for name, _ in place])[rows["attribute"].to_numpy()]
        assert (rows["float_value"].to_numpy() == (number + ids) * 0.5).all()
        count += rows.num_rows
assert count == total and sorter.spilled
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_of_a_spilled_run_does_not_grow_with_it() -> None:
    # Measured by the kernel, in processes that do nothing else.
    used = []
    for total in (500_000, 2_000_000):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(total)], capture_output=True, text=True, check=True, timeout=300
        )
        used.append(int(done.stdout))
    assert used[1] < 150
    assert used[1] < used[0] + 40
