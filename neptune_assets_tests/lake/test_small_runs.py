"""Small runs sorted together come out as each would by itself: rows, digests, repairs, statistics."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from neptune_assets.lake import run_builder
from neptune_assets.lake.parts import WriteLimits
from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings
from neptune_assets_tests.support.lake_factory import file, histograms, metric, param, params, texts
from neptune_assets_tests.support.lake_writing import DIRECTORY, P, run, write
from neptune_assets_tests.support.table_source import TableSource

TIMES = {"committed_at", "generation"}


def hostile_rows(seed: int) -> list[dict[str, Any]]:
    """Rows of one run, in any order, with duplicates, nulls and paths that other runs have as well or not."""
    chosen = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(chosen.randrange(4)):
        values = [chosen.choice([1.5, -0.0, math.nan, math.inf, 1e308, 5e-324]) for _ in range(chosen.randrange(1, 9))]
        rows += metric(f"m{number}", values)
    rows += params({f"p{chosen.randrange(9)}": chosen.random(), "sys/name": f"run {seed}", f"only/{seed}": seed})
    if seed % 3 == 0:
        rows += texts("log", ["a", "", "\0é", "x" * seed])
        rows += histograms("h", [([0.0, 1.0], [2.0]), ([0.0, 0.5, 1.0], [1.0, math.nan])])
    if seed % 4 == 0:
        rows += [param("same", 1), param("same", "1"), param("tags", ["b", "a"])]
        rows += metric("m0", [float(seed), 2.0])
    chosen.shuffle(rows)
    return rows


def contents(root: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Records without times, rows as the parts hold them, and statistics by run."""
    records = {
        name: {key: value for key, value in asdict(record).items() if key not in TIMES | {"parts"}}
        for name, record in Lake(LakeSettings(root=str(root))).project(P).records().items()
    }
    rows = {path.name: repr(pq.read_table(path).to_pylist()) for path in (root / "data" / DIRECTORY).glob("*.parquet")}
    statistics: dict[str, Any] = {}
    for path in sorted((root / "statistics").rglob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            statistics.setdefault(row["run_id"], []).append(repr(sorted(row.items())))
    return records, rows, statistics


def both(tmp_path: Path, tables: dict[str, Any]) -> tuple[Any, Any]:
    """What the lake holds and what is reported, of runs sorted together and of runs sorted by themselves."""
    found = []
    for name in ("together", "alone"):
        limits = WriteLimits(wait_seconds=3600.0, **({"small_run_rows": -1} if name == "alone" else {}))
        report = write(tmp_path / name, TableSource({P: tables}), limits=limits)
        found.append((contents(tmp_path / name), report.rows, report.repairs, report.failed, report.partial))
    return found[0], found[1]


def test_they_come_out_as_each_would_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    sort_together = run_builder.sort_together

    def counted(runs: Sequence[Any]) -> Any:
        calls.append(len(runs))
        return sort_together(runs)

    monkeypatch.setattr(run_builder, "sort_together", counted)
    tables = {f"r{seed:03d}": run(hostile_rows(seed) if seed % 7 else [], f"r{seed:03d}") for seed in range(150)}
    together, alone = both(tmp_path, tables)
    assert together == alone
    assert calls == [64, 64, 22]
    records, rows, statistics = together[0]
    assert len(records) == len(rows) == 150
    assert len(statistics) == 150 - 22
    assert any(record["repairs"] for record in records.values())


def test_one_with_files_or_many_rows_goes_by_itself(tmp_path: Path) -> None:
    tables = {
        "a": run(metric("m", [1.0]), "a"),
        "b": run([*metric("m", [1.0]), file("f", b"content")], "b"),
        "c": run(metric("m", [0.5] * (WriteLimits().small_run_rows + 1)), "c"),
        "d": run(texts("log", ["x" * WriteLimits().small_run_bytes]), "d"),
        "e": run(metric("m", [2.0]), "e"),
    }
    together, alone = both(tmp_path, tables)
    assert together == alone
    assert list(together[0][0]) == list("abcde")


def test_one_that_cannot_be_understood_fails_alone(tmp_path: Path) -> None:
    tables = {name: run(metric("m", [1.0]), name) for name in "abcd"}
    tables["c"] = run([{**row, "attribute_type": None} for row in metric("m", [1.0])], "c")
    together, alone = both(tmp_path, tables)
    assert together == alone
    assert list(together[0][0]) == ["a", "b", "d"]
    assert "no attribute_type" in together[3]["c"]
