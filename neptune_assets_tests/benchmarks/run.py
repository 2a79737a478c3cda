"""`make bench`: our figures beside neptune-exporter's, same machine, same run, on data this module generates.

The peer is never fetched: ``--peer-python`` names a Python with its dependencies, ``--peer-src`` its ``src`` folder.
Without them only our side is measured, and the report says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(command: list[str], env: dict[str, str] | None = None) -> tuple[float, float, str]:
    """Run a command; return wall seconds, peak resident memory of it and its children in MB, and what it printed."""
    script = (
        "import resource,subprocess,sys,json\n"
        "p=subprocess.run(sys.argv[1:],stdout=subprocess.PIPE,stderr=subprocess.STDOUT,text=True)\n"
        "r=resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(p.stdout[-20000:]);print(json.dumps([p.returncode,r.ru_maxrss/1024]))"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        check=True,
    )
    seconds = time.perf_counter() - start
    text, _, last = done.stdout.rstrip().rpartition("\n")
    code, megabytes = json.loads(last)
    if code:
        raise SystemExit(f"{' '.join(command)} failed with {code}:\n{text[-4000:]}")
    return seconds, megabytes, text


def tree_bytes(root: Path, pattern: str) -> int:
    """Return the size of all files below root that match."""
    return sum(path.stat().st_size for path in root.rglob(pattern))


def materialize(settings: Path, project: str, stage: str, home: Path) -> tuple[float, float, str]:
    """Materialize one stage of one project with the command that users type."""
    return measure(
        [
            str(Path(sys.executable).with_name("dagster")),
            "asset",
            "materialize",
            "-f",
            str(settings),
            "--select",
            stage,
            "--partition",
            project,
        ],
        {"DAGSTER_HOME": str(home)},
    )


DEFINITIONS = """
from neptune_assets.build import build_defs
from neptune_assets.migration_settings import Settings
defs = build_defs(Settings.model_validate({settings!r}), [{project!r}], prefix="bench")
"""


def main() -> None:
    """Generate, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", default="", help="Python with neptune-exporter's dependencies")
    parser.add_argument("--peer-src", default="", help="neptune-exporter's src folder")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--points", type=int, default=1000, help="points a series; 40 series a run")
    parser.add_argument("--slow-runs", type=int, default=2, help="runs that the slow side of the loads gets")
    parser.add_argument(
        "--long", action="store_true", help="materialize ten times the points too, for the memory figure"
    )
    parser.add_argument("--work", type=Path, default=None, help="keep the data here")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="neptune_assets_bench_"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        report(arguments, work)
    finally:
        if arguments.work is None:
            shutil.rmtree(work)


def report(arguments: argparse.Namespace, work: Path) -> None:
    """Measure everything and print it."""
    print(f"machine: {platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    export, project = generate(work / "export", arguments.runs, arguments.points)
    points = arguments.runs * 40 * arguments.points
    exported = tree_bytes(export / "data", "*.parquet")
    print(f"data: {arguments.runs} runs, {points:,} points, {exported / 1e6:.1f} MB of Parquet")

    seconds, megabytes, _ = run_lake(work / "lake", export, project, work)
    size = tree_bytes(work / "lake" / "data", "*.parquet") + tree_bytes(work / "lake" / "statistics", "*.parquet")
    ratio = size / exported
    print(f"lake: {seconds:.1f} s, peak {megabytes:.0f} MB, {size / 1e6:.1f} MB = {ratio:.3f} of the export's size")
    if arguments.long:
        long_export, _ = generate(work / "long", arguments.runs, arguments.points * 10)
        seconds, megabytes, _ = run_lake(work / "long_lake", long_export, project, work)
        print(f"lake, ten times the points: {seconds:.1f} s, peak {megabytes:.0f} MB")
        shutil.rmtree(work / "long")
        shutil.rmtree(work / "long_lake")
    peer_options = ["--peer-python", arguments.peer_python, "--peer-src", arguments.peer_src]
    if not arguments.peer_python:
        print("beside neptune-exporter: not measured, give --peer-python and --peer-src")
        return
    runs, steps = str(arguments.runs), str(arguments.points)
    slow, lake = str(arguments.slow_runs), str(work / "lake")
    for module, options in {
        "summary": ["--runs", runs, "--points", steps],
        "mlflow_load": ["--lake", lake, "--slow-runs", slow],
        "mlflow_http_load": ["--lake", lake, "--runs", slow, "--slow-runs", slow],
        "wandb_load": ["--lake", lake, "--steps", steps, "--peer-runs", slow],
        "neptune3_export": [],
        "neptune2_export": ["--only", "small", "long"],
    }.items():
        command = [sys.executable, "-m", f"neptune_assets_tests.benchmarks.{module}", *options, *peer_options]
        _, _, text = measure(command)
        print(f"── {module}\n{text.strip()}")


def generate(out: Path, runs: int, points: int) -> tuple[Path, str]:
    """Write a project in the exporter's format, unless it is there already."""
    if not out.exists():
        measure(
            [
                sys.executable,
                "-m",
                "neptune_assets_tests.benchmarks.generate",
                "--out",
                str(out),
                "--runs",
                str(runs),
                "--points",
                str(points),
            ]
        )
    return out, "bench/project"


def run_lake(lake: Path, export: Path, project: str, work: Path) -> tuple[float, float, str]:
    """Materialize the lake asset into a fresh lake."""
    shutil.rmtree(lake, ignore_errors=True)
    settings = {
        "source": {"export": {"data": str(export / "data"), "files": str(export / "files")}},
        "lake": {"root": str(lake)},
    }
    file = work / "bench_definitions.py"
    file.write_text(DEFINITIONS.format(settings=settings, project=project), encoding="utf-8")
    home = work / "dagster_home"
    home.mkdir(exist_ok=True)
    return materialize(file, project, 'key:"bench/lake/runs"', home)


if __name__ == "__main__":
    main()
