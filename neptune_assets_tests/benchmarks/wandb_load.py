"""Loading a lake into offline W&B runs: ours against neptune-exporter's ``load --loader wandb``.

    python -m neptune_assets_tests.benchmarks.wandb_load --peer-python PYTHON --peer-src SRC

Ours stages and verifies every run; the peer only writes. The peer is slow, so it gets a subset of the same runs
(``--peer-runs``), and rates are per point. Imports are not counted on either side; in the peer's favour its look-up of
runs, which needs a server, is left out. CPU seconds tell more than the clock where others use the machine too. Without
``--peer-python`` only ours is measured. The key handed to the peer is no key: it does not start without one.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from neptune_assets.settings import LakeSettings
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.wandb.load import WandbTarget as Target
from neptune_assets.targets.wandb.settings import WandbSettings
from neptune_assets_tests.benchmarks.generate import Shape
from neptune_assets_tests.benchmarks.lakes import export_lake

PROJECT = Shape().project


def processor_seconds() -> float:
    """Return the CPU seconds that this process and its children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def ours(root: Path, staging: Path) -> tuple[int, float]:
    """Load the lake at ``root``; return points and seconds, verification included."""
    options = WandbSettings(staging=str(staging))
    settings = LakeSettings(root=str(root))
    from neptune_assets.lake.reader import Lake

    project = Lake(settings).project(PROJECT)
    receipts = LakeSettings(root=str(staging / "ledger"))
    report = load_project(project, lambda: Target(options, settings), Ledger(receipts, "wandb", PROJECT))
    if report.failed:
        raise SystemExit(str(report.failed))
    return report.points, report.seconds


def staging_only(root: Path, staging: Path) -> tuple[int, float]:
    """Stage the lake at ``root`` without reading it back; return points and seconds."""
    settings = LakeSettings(root=str(root))
    from neptune_assets.lake.reader import Lake

    points, started = 0, time.perf_counter()
    target = Target(WandbSettings(staging=str(staging)), settings)
    for run in Lake(settings).project(PROJECT).runs():
        points += target.replace(run, target.plan(run)).rows_in["float_series"]
    return points, time.perf_counter() - started


PEER = """
import sys, time, resource
from neptune_exporter.loaders.wandb_loader import WandBLoader
from neptune_exporter.main import cli
WandBLoader.find_run = lambda *args, **kwargs: None
def used():
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in found)
started, before = time.perf_counter(), used()
cli(sys.argv[1:], standalone_mode=False)
print("SECONDS", time.perf_counter() - started, used() - before)
"""


def peer(python: str, source: str, lake: Path, work: Path) -> tuple[float, float]:
    """Run the peer's loader over a lake; return its seconds and CPU seconds, imports not counted."""
    work.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": source,
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(work),
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_API_KEY": "0" * 40,
    }
    command = [python, "-c", PEER, "load", "--loader", "wandb", "--wandb-entity", "nobody"]
    command += ["--wandb-api-key", "0" * 40, "--data-path", str(lake / "data"), "--files-path", str(lake / "files")]
    done = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode or not list(work.rglob("*.wandb")):
        raise SystemExit(done.stdout[-2_000:] + done.stderr[-2_000:])
    seconds, processor = done.stdout.rpartition("SECONDS ")[2].split()
    return float(seconds), float(processor)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=Path, help="an existing lake of generated runs; one is made if left out")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--series", type=int, default=40)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--peer-runs", type=int, default=2)
    parser.add_argument("--peer-python")
    parser.add_argument("--peer-src")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        lake = given.lake or export_lake(root / "made", given.runs, given.series, given.steps)
        ours(export_lake(root / "small", 1, 1, 10), root / "first")  # imports everything
        before = processor_seconds()
        points, seconds = ours(lake, root / "staged")
        points_by_processor = points / (processor_seconds() - before)
        rate = points / seconds
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"ours, staged and verified: {points} points in {seconds:.1f} s = {rate:,.0f} points/s, {memory:.0f} MiB")
        print(f"ours, by CPU: {points_by_processor:,.0f} points/s")
        points, seconds = staging_only(lake, root / "again")
        print(f"ours, staging alone: {points} points in {seconds:.1f} s = {points / seconds:,.0f} points/s")
        if given.peer_python is None:
            return
        part = export_lake(root / "part", given.peer_runs, given.series, given.steps)
        spent, peer_processor = peer(given.peer_python, given.peer_src, part, root / "work")
        peer_points = given.peer_runs * given.series * given.steps
        peer_rate = peer_points / spent
        print(
            f"peer, subset of {given.peer_runs} runs: {peer_points} points in {spent:.1f} s = {peer_rate:,.0f} points/s"
        )
        print(f"peer, by CPU: {peer_points / peer_processor:,.0f} points/s")
        by_processor = points_by_processor / (peer_points / peer_processor)
        print(f"ratio, ours verified to the peer's unverified: {rate / peer_rate:.1f}; by CPU {by_processor:.1f}")


if __name__ == "__main__":
    main()
