"""Sorting with bounded memory: rows kept, spilled, merged once and merged twice come out the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from neptune_assets.lake.external_sort import ExternalSorter

SCHEMA = pa.schema([("step", pa.int64()), ("place", pa.int64()), ("item", pa.large_binary())])
Rows = list[tuple[int, int, bytes]]


def sorter_of(rows: int, size: int, scratch: Path, fan_in: int = 48) -> ExternalSorter:
    return ExternalSorter(
        lambda batch: [batch["step"].to_numpy()],
        max_rows=rows,
        max_bytes=size,
        scratch=str(scratch),
        fan_in=fan_in,
        block_rows=16 if fan_in < 48 else 16_384,
    )


def rows_of(steps: list[int], size: int = 4) -> Rows:
    return [(step, place, bytes([place % 251]) * size) for place, step in enumerate(steps)]


def through(sorter: ExternalSorter, rows: Rows, at_once: int) -> Rows:
    for begin in range(0, len(rows), at_once):
        columns = zip(zip(*rows[begin : begin + at_once], strict=True), SCHEMA, strict=True)
        sorter.add(
            pa.RecordBatch.from_arrays([pa.array(values, field.type) for values, field in columns], SCHEMA.names)
        )
    return [tuple(row.values()) for batch in sorter.sorted(100) for row in batch.to_pylist()]


def steps_of(kind: str, count: int) -> list[int]:
    random = np.random.default_rng(5)
    if kind == "series":  # as a run holds them: one series after the other, all over the same steps
        return [int(step) for _ in range(8) for step in range(count // 8)]
    if kind == "random":
        return [int(step) for step in random.integers(-(2**62), 2**62, count)]
    if kind == "one":
        return [7] * count
    if kind == "few":
        return [int(step) for step in random.integers(0, 3, count)]
    return list(range(count, 0, -1))


@pytest.mark.parametrize("kind", ["series", "random", "one", "few", "backwards"])
@pytest.mark.parametrize("limit", [100_000, 1_500, 40])
def test_rows_come_back_by_step_and_equal_steps_as_they_came(tmp_path: Path, kind: str, limit: int) -> None:
    rows = rows_of(steps_of(kind, 4_000))
    sorter = sorter_of(limit, 1 << 30, tmp_path, fan_in=8)
    assert through(sorter, rows, 37) == sorted(rows, key=lambda row: row[0])
    assert (sorter.stretches > 0) == (limit < 4_000)
    assert sorter.rows == len(rows)
    sorter.close()
    assert list(tmp_path.iterdir()) == []


def test_long_rows_are_spilled_by_their_size(tmp_path: Path) -> None:
    rows = rows_of(steps_of("random", 300), size=20_000)
    with sorter_of(1 << 30, 1 << 20, tmp_path) as sorter:
        assert through(sorter, rows, 10) == sorted(rows)
        assert sorter.stretches >= 5


@pytest.mark.parametrize("kind", ["random", "one"])
def test_what_is_in_memory_does_not_grow_with_the_rows(tmp_path: Path, kind: str) -> None:
    peaks = []
    for count in (200_000, 2_000_000):
        sorter = sorter_of(20_000, 1 << 22, tmp_path)
        steps = np.random.default_rng(1).permutation(count) if kind == "random" else np.zeros(count, np.int64)
        before, peak, seen = pa.total_allocated_bytes(), 0, 0
        for begin in range(0, count, 10_000):
            chunk, place = pa.array(steps[begin : begin + 10_000]), pa.array(np.arange(begin, begin + 10_000))
            items = pa.repeat(pa.scalar(b"item", pa.large_binary()), len(chunk))
            sorter.add(pa.RecordBatch.from_arrays([chunk, place, items], SCHEMA.names))
            peak = max(peak, pa.total_allocated_bytes() - before)
        for batch in sorter.sorted():
            found = batch["step" if kind == "random" else "place"].to_numpy()
            assert (found == np.arange(seen, seen + len(found))).all()
            seen += len(found)
            peak = max(peak, pa.total_allocated_bytes() - before)
        sorter.close()
        assert seen == count
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 6_000_000, peaks


def test_a_sorter_that_is_not_read_to_its_end_leaves_nothing(tmp_path: Path) -> None:
    with sorter_of(100, 1 << 30, tmp_path) as sorter:
        for begin in range(0, 1_000, 50):
            chunk = pa.array(range(begin, begin + 50), pa.int64())
            sorter.add(
                pa.RecordBatch.from_arrays([chunk, chunk, pa.array([b""] * 50, pa.large_binary())], SCHEMA.names)
            )
        assert next(sorter.sorted(10)).num_rows == 10
    assert list(tmp_path.iterdir()) == []
