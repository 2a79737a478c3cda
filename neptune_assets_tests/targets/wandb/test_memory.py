"""Memory is bounded by settings and not by the size of a run. Real lake, processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MAKE = """
import sys
from pathlib import Path
from neptune_assets_tests.benchmarks.lakes import export_lake
export_lake(Path(sys.argv[1]), 1, 40, int(sys.argv[2]))
"""
LOAD = """
import re, sys
from pathlib import Path
from neptune_assets_tests.benchmarks.wandb_load import ours
points, _ = ours(Path(sys.argv[1], "lake"), Path(sys.argv[1], "staged"))
# Not ru_maxrss: that begins with what the parent had.
print(points, int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_a_run_of_millions_of_points_needs_no_more_memory(tmp_path: Path) -> None:
    peaks = []
    for steps in (10_000, 100_000):
        root = str(tmp_path / str(steps))
        run(MAKE, root, str(steps))
        points, peak = map(int, run(LOAD, root).split())
        assert points == 40 * steps
        peaks.append(peak)
    assert max(peaks) < 500, peaks
    # Allocators keep what they once had for a while, which differs from time to time.
    assert peaks[1] < peaks[0] + 40, peaks
