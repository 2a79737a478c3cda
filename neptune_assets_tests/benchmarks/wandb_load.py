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
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa

from neptune_assets.schema import SCHEMA
from neptune_assets.settings import LakeSettings, WandbTarget
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.wandb.load import WandbTarget as Target
from neptune_assets_tests.support.lake_factory import make_lake

PROJECT = "bench/wandb"


def run_table(number: int, series: int, steps: int) -> pa.Table:
    """Return one run: parameters, metrics and a string series."""
    source = np.random.default_rng(number)
    rows = series * steps
    step = pa.array([Decimal(n) for n in range(steps)], pa.decimal128(18, 6))
    times = 1_700_000_000_000 + np.arange(steps) * 1_000
    values = source.standard_normal(rows)
    if number % 2:
        values = values.astype(np.float32).astype(np.float64)
    columns = {
        "project_id": pa.array([PROJECT] * rows),
        "run_id": pa.array([f"RUN-{number:04d}"] * rows),
        "attribute_path": pa.array(np.repeat([f"metrics/group{n % 4}/m{n:03d}" for n in range(series)], steps)),
        "attribute_type": pa.array(["float_series"] * rows),
        "step": pa.chunked_array([step] * series).combine_chunks(),
        "timestamp": pa.array(np.tile(times, series), pa.timestamp("ms", tz="UTC")),
        "float_value": pa.array(values),
    }
    arrays = [columns.get(field.name, pa.nulls(rows, field.type)) for field in SCHEMA]
    metrics = pa.Table.from_arrays(arrays, schema=SCHEMA)
    name = {"project_id": PROJECT, "run_id": f"RUN-{number:04d}"}
    others = [
        {**name, "attribute_path": f"params/p{n}", "attribute_type": "float", "float_value": n / 7} for n in range(60)
    ]
    others += [
        {**name, "attribute_path": path, "attribute_type": "string", "string_value": value}
        for path, value in (("sys/custom_run_id", f"RUN-{number:04d}"), ("sys/name", "bench"))
    ]
    others += [
        {
            **name,
            "attribute_path": "logs/out",
            "attribute_type": "string_series",
            "step": Decimal(n),
            "string_value": f"line {n}",
        }
        for n in range(100)
    ]
    return pa.concat_tables([metrics, pa.Table.from_pylist(others, schema=SCHEMA)])


def processor_seconds() -> float:
    """Return the CPU seconds that this process and its children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def ours(root: Path) -> tuple[int, float]:
    """Load the lake at ``root``; return points and seconds, verification included."""
    settings = LakeSettings(root=str(root))
    from neptune_assets.lake.reader import Lake

    project = Lake(settings).project(PROJECT)
    report = load_project(project, lambda: Target(WandbTarget(), settings), Ledger(settings, "wandb", PROJECT))
    if report.failed:
        raise SystemExit(str(report.failed))
    return report.points, report.seconds


def staging_only(root: Path) -> tuple[int, float]:
    """Stage the lake at ``root`` without reading it back; return points and seconds."""
    settings = LakeSettings(root=str(root))
    from neptune_assets.lake.reader import Lake

    points, started = 0, time.perf_counter()
    target = Target(WandbTarget(staging=str(root / "again")), settings)
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
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--series", type=int, default=40)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--peer-runs", type=int, default=2)
    parser.add_argument("--peer-python")
    parser.add_argument("--peer-src")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        tables = {f"RUN-{n:04d}": run_table(n, given.series, given.steps) for n in range(given.runs)}
        make_lake(root / "lake", {PROJECT: tables})
        del tables
        make_lake(root / "small", {PROJECT: {"RUN-0000": run_table(0, 1, 10)}})
        ours(root / "small")  # imports everything
        before = processor_seconds()
        points, seconds = ours(root / "lake")
        points_by_processor = points / (processor_seconds() - before)
        rate = points / seconds
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"ours, staged and verified: {points} points in {seconds:.1f} s = {rate:,.0f} points/s, {memory:.0f} MiB")
        print(f"ours, by CPU: {points_by_processor:,.0f} points/s")
        points, seconds = staging_only(root / "lake")
        print(f"ours, staging alone: {points} points in {seconds:.1f} s = {points / seconds:,.0f} points/s")
        if given.peer_python is None:
            return
        part = {f"RUN-{n:04d}": run_table(n, given.series, given.steps) for n in range(given.peer_runs)}
        make_lake(root / "part", {PROJECT: part})
        spent, peer_processor = peer(given.peer_python, given.peer_src, root / "part", root / "work")
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
