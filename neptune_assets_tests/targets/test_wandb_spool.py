"""Sorting with bounded memory: rows kept, spilled, merged once and merged twice come out the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from neptune_assets.targets.wandb import spool as module
from neptune_assets.targets.wandb.spool import Bounds, SortedSpool

SCHEMA = pa.schema([("step", pa.int64()), ("place", pa.int64()), ("item", pa.large_binary())])


def rows_of(steps: list[int], size: int = 4) -> list[tuple[int, int, bytes]]:
    return [(step, place, bytes([place % 251]) * size) for place, step in enumerate(steps)]


def through(spool: SortedSpool, rows: list[tuple[int, int, bytes]], at_once: int) -> list[tuple[int, int, bytes]]:
    for begin in range(0, len(rows), at_once):
        columns = list(zip(*rows[begin : begin + at_once], strict=True))
        spool.add(
            pa.RecordBatch.from_arrays(
                [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
            )
        )
    return [tuple(row.values()) for batch in spool.sorted(100) for row in batch.to_pylist()]


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
@pytest.mark.parametrize(("limit", "levels"), [(100_000, 0), (1_500, 1), (30, 3)])
def test_rows_come_back_by_step_and_equal_steps_as_they_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, limit: int, levels: int
) -> None:
    monkeypatch.setattr(module, "FAN_IN", 8)
    monkeypatch.setattr(module, "PIECE_ROWS", 16)
    monkeypatch.setattr(module, "MERGED_BYTES", 2_000)
    rows = rows_of(steps_of(kind, 4_000))
    spool = SortedSpool(SCHEMA, "step", Bounds(limit, 1 << 30, str(tmp_path)))
    assert through(spool, rows, 37) == sorted(rows, key=lambda row: row[0])
    assert len(spool._levels) == levels
    assert spool.spilled == bool(levels)
    assert spool.rows == len(rows)
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_long_rows_are_spilled_by_their_size(tmp_path: Path) -> None:
    rows = rows_of(steps_of("random", 300), size=20_000)
    spool = SortedSpool(SCHEMA, "step", Bounds(1 << 30, 1 << 20, str(tmp_path)))
    assert through(spool, rows, 10) == sorted(rows)
    assert sum(len(level) for level in spool._levels) >= 5
    spool.close()


def test_what_is_in_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = []
    for count in (200_000, 2_000_000):
        spool = SortedSpool(SCHEMA, "step", Bounds(20_000, 1 << 30, str(tmp_path)))
        steps = np.random.default_rng(1).permutation(count)
        before, peak, last = pa.total_allocated_bytes(), 0, -1
        for begin in range(0, count, 10_000):
            chunk = pa.array(steps[begin : begin + 10_000])
            items = pa.repeat(pa.scalar(b"item", pa.large_binary()), len(chunk))
            spool.add(pa.RecordBatch.from_arrays([chunk, chunk, items], schema=SCHEMA))
            peak = max(peak, pa.total_allocated_bytes() - before)
        for batch in spool.sorted():
            found = batch["step"].to_numpy()
            assert found[0] == last + 1
            assert (np.diff(found) == 1).all()
            last = int(found[-1])
            peak = max(peak, pa.total_allocated_bytes() - before)
        spool.close()
        assert last == count - 1
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 6_000_000, peaks


def test_a_spool_that_is_not_read_to_its_end_leaves_nothing(tmp_path: Path) -> None:
    spool = SortedSpool(SCHEMA, "step", Bounds(100, 1 << 30, str(tmp_path)))
    for begin in range(0, 1_000, 50):
        chunk = pa.array(range(begin, begin + 50), pa.int64())
        spool.add(pa.RecordBatch.from_arrays([chunk, chunk, pa.array([b""] * 50, pa.large_binary())], schema=SCHEMA))
    assert next(spool.sorted(10)).num_rows == 10
    spool.close()
    assert list(tmp_path.iterdir()) == []
