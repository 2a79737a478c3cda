"""Time our summary of a lake against neptune-exporter's ``summary`` of the same files, in one run.

    python -m neptune_assets_tests.benchmarks.summary --peer-python PYTHON --peer-src DIRECTORY

``--peer-python`` is a Python that has neptune-exporter's dependencies, ``--peer-src`` its ``src`` directory if it is
not installed there. Nothing is fetched. Each side is a fresh process, start of Python and imports included; the two
take turns, and the medians are compared. Ours computes and writes every summary table, the peer counts and prints.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.schema import SCHEMA
from neptune_assets.settings import LakeSettings
from neptune_assets_tests.support.table_source import TableRun, TableSource

PROJECT = "bench/summary"

OURS = """
import sys, time
from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings, SummarySettings
from neptune_assets.summary.tables import summarize
from neptune_assets.summary.database import write_table
started = time.perf_counter(), time.process_time()
settings = LakeSettings(root=sys.argv[1])
lake = Lake(settings)
for project_id in lake.projects():
    with summarize(lake.project(project_id), SummarySettings(), settings) as summary:
        rows = {n: write_table(r, lake.layout.summary(n, project_id)) for n, r in summary.tables()}
        points = summary.query("SELECT sum(row_count)::BIGINT FROM series_facts")[0][0]
print(f"{time.perf_counter() - started[0]:.3f} {time.process_time() - started[1]:.3f} {points}")
"""

PEER_IN_PROCESS = """
import sys, time
from pathlib import Path
from neptune_exporter.storage.parquet_reader import ParquetReader
from neptune_exporter.summary_manager import SummaryManager
started = time.perf_counter(), time.process_time()
found = SummaryManager(ParquetReader(Path(sys.argv[1]))).get_data_summary()
points = sum(p["step_statistics"]["total_steps"] for p in found["projects"].values())
print(f"{time.perf_counter() - started[0]:.3f} {time.process_time() - started[1]:.3f} {points}")
"""


def run_table(run_id: str, metrics: int, points: int, seed: int) -> pa.Table:
    """Return one run: float series sorted by path and step, and 60 parameters."""
    random = np.random.default_rng(seed)
    rows = metrics * points
    steps = np.tile(np.arange(points, dtype=np.int64), metrics)
    decimals = np.zeros((rows, 2), np.int64)
    decimals[:, 0] = steps * 1_000_000
    paths = pa.array([f"metrics/{number:04d}" for number in range(metrics)])
    series = {
        "attribute_path": paths.take(pa.array(np.repeat(np.arange(metrics), points))),
        "attribute_type": pa.repeat(pa.scalar("float_series"), rows),
        "step": pa.Array.from_buffers(SCHEMA.field("step").type, rows, [None, pa.py_buffer(decimals)]),
        "timestamp": pa.array(1_700_000_000_000 + steps * 1_000).cast(SCHEMA.field("timestamp").type),
        "float_value": pa.array(random.normal(size=rows).cumsum()),
    }
    parameters = {
        "attribute_path": pa.array([f"params/{number}" for number in range(60)]),
        "attribute_type": pa.repeat(pa.scalar("int"), 60),
        "int_value": pa.array(range(60)),
    }
    return pa.concat_tables([_table(run_id, parameters), _table(run_id, series)])


def _table(run_id: str, columns: dict[str, pa.Array]) -> pa.Table:
    rows = len(columns["attribute_path"])
    known = columns | {
        "project_id": pa.repeat(pa.scalar(PROJECT), rows),
        "run_id": pa.repeat(pa.scalar(run_id), rows),
    }
    return pa.table([known.get(f.name, pa.nulls(rows, f.type)) for f in SCHEMA], schema=SCHEMA)


def build(root: Path, runs: int, metrics: int, points: int) -> Lake:
    """Write a lake of one project, run by run."""
    settings = LakeSettings(root=str(root))
    source = TableSource({PROJECT: {}})
    for number in range(runs):
        run_id = f"RUN-{number}"
        source.content[PROJECT] = {run_id: TableRun(run_table(run_id, metrics, points, number), fingerprint="1")}
        LakeWriter(settings, source).write_project(PROJECT)
    return Lake(settings)


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float, str]:
    """Run a process; return wall seconds, CPU seconds of it and its children, and its output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def main() -> None:
    """Parse the command line, build the lake, time both, print."""
    parser = argparse.ArgumentParser(description="Time the summary of a lake against neptune-exporter's.")
    parser.add_argument("--peer-python", required=True, help="Python with neptune-exporter's dependencies.")
    parser.add_argument("--peer-src", default="", help="neptune-exporter's src directory, if it is not installed.")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--metrics", type=int, default=40)
    parser.add_argument("--points", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        lake = build(Path(directory) / "lake", options.runs, options.metrics, options.points)
        data = lake.layout.base()
        size = sum(path.stat().st_size for path in Path(data).rglob("*.parquet"))
        expected = options.runs * options.metrics * options.points
        print(f"{options.runs} runs, {expected:,} points, {size / 1e6:.1f} MB of Parquet, {os.cpu_count()} CPUs")
        own = dict(os.environ)
        peer = own | {"PYTHONPATH": options.peer_src, "PYTHONDONTWRITEBYTECODE": ""}
        # Its command writes a log file to where it runs, unless told otherwise.
        places = ["--data-path", data, "--model-data-path", f"{directory}/none", "--log-file", f"{directory}/peer.log"]
        command = "from neptune_exporter.main import main; main()"
        cli = [options.peer_python, "-c", command, "summary", *places]
        calls: dict[str, Callable[[], tuple[float, float, str]]] = {
            "ours": lambda: timed([sys.executable, "-c", OURS, lake.layout.root], own),
            "peer": lambda: timed(cli, peer),
            "peer in process": lambda: timed([options.peer_python, "-c", PEER_IN_PROCESS, data], peer),
        }
        wall: dict[str, list[float]] = {}
        cpu: dict[str, list[float]] = {}
        for number in range(options.repeats + 1):
            for name, call in calls.items():
                seconds, busy, output = call()
                inner = output.split() if name != "peer" else []
                if name == "peer" and PROJECT not in output:
                    raise SystemExit(f"the peer's summary does not name {PROJECT}:\n{output}")
                if inner and int(inner[2]) != expected:
                    raise SystemExit(f"{name} counted {inner[2]} points instead of {expected}")
                if number == 0:
                    continue  # the first round warms the page cache and the bytecode
                wall.setdefault(name, []).append(seconds)
                cpu.setdefault(name, []).append(busy)
                if inner:
                    wall.setdefault(f"{name}, without imports", []).append(float(inner[0]))
                    cpu.setdefault(f"{name}, without imports", []).append(float(inner[1]))
        for name, seconds_of in wall.items():
            print(f"{name:32} {statistics.median(seconds_of):7.2f} s wall {statistics.median(cpu[name]):7.2f} s CPU")
        pairs = {
            "command against process": ("peer", "ours"),
            "without imports": ("peer in process, without imports", "ours, without imports"),
        }
        for name, (theirs, ours) in pairs.items():
            ratio = statistics.median(wall[theirs]) / statistics.median(wall[ours])
            busy = statistics.median(cpu[theirs]) / statistics.median(cpu[ours])
            print(f"{name}: {ratio:.1f} times as fast ({busy:.1f} times by CPU)")
        written = sum(path.stat().st_size for path in Path(lake.layout.root, "summary").rglob("*.parquet"))
        print(f"our summary tables: {written / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
