"""The lake is what docs/lake-format.md says: a reader that shares no code with ours recomputes every digest."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.testing.lakes import (
    file,
    file_set,
    files,
    histograms,
    make_source,
    metric,
    param,
    texts,
    write_lake,
)

READER = Path(__file__).parents[1] / "examples" / "read_lake.py"
ROWS = [
    param("float", -0.0),
    param("nan", float("nan")),
    param("int", -(2**63)),
    param("text", "é\0\U0001f600"),
    param("flag", True),
    param("moment", datetime(1969, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)),
    param("tags", ["b", "", "a"], "string_set"),
    *metric("loss", [0.1, float("inf"), float("nan"), -0.0]),
    *metric("long/series", [number / 3 for number in range(5_000)]),
    *texts("log", ["", "line", "é" * 100]),
    *histograms("h", [([0.0, 1.0, 2.5], [3.0, float("nan")])]),
    file("weights", b"\0" * 1_000, "weights.bin"),
    file("gone", None),
    *files("images", [b"first", b"second"]),
    file_set("set", {"b/c": b"", "a": b"member"}),
]


def run(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(READER), str(root)], capture_output=True, text=True, check=False)


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    root = tmp_path / "lake"
    settings = LakeSettings(root=str(root), rows_in_memory=1_000, part_mb=1)
    write_lake(settings, make_source({"ws/p": {"RUN-1": ROWS, "RUN-2": [], "RUN/3": ROWS[:5]}}))
    write_lake(settings, make_source({"ws/p": {"M-1": ROWS}}, scope=Scope.MODELS), Scope.MODELS)
    return root


def test_an_independent_reader_finds_every_digest(lake: Path) -> None:
    found = run(lake)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "4 runs, 0 not as recorded" in found.stdout


def test_an_independent_reader_finds_damage(lake: Path) -> None:
    part = next(lake.glob("data/*/RUN-1-*_part_0.parquet"))
    data = bytearray(part.read_bytes())
    data[len(data) // 3] ^= 1
    part.write_bytes(data)
    stored = next(lake.glob("files/*/*/weights-*/*"))
    stored.write_bytes(b"other")
    found = run(lake)
    assert found.returncode != 0
    assert "is damaged" in found.stdout or "checksum" in found.stderr
