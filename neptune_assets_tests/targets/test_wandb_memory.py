"""Memory is bounded by settings and not by the size of a run. Real lake, a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from neptune_assets_tests.benchmarks.wandb_load import PROJECT, run_table
from neptune_assets_tests.support.lake_factory import make_lake

LOAD = """
import resource, sys
from pathlib import Path
from neptune_assets_tests.benchmarks.wandb_load import ours
points, _ = ours(Path(sys.argv[1]))
print(points, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_a_run_of_millions_of_points_needs_no_more_memory(tmp_path: Path) -> None:
    peaks = []
    for steps in (20_000, 80_000):
        root = tmp_path / str(steps)
        make_lake(root, {PROJECT: {"RUN-0": run_table(0, 40, steps)}})
        done = subprocess.run([sys.executable, "-c", LOAD, str(root)], capture_output=True, text=True, check=True)
        points, peak = map(int, done.stdout.split())
        assert points == 40 * steps
        peaks.append(peak)
    assert peaks[1] < peaks[0] * 1.25 + 50
