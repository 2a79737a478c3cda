"""Loading a lake into MLflow's SQLite store, our way and neptune-exporter's: points a second and their ratio.

``python -m neptune_assets_tests.benchmarks.mlflow_load [--lake DIR] --peer-python PY --peer-src SRC``. The lake is only
read, by both; without ``--lake`` one is made. The slow side gets ``--slow-runs`` of its runs, and rates are compared.
Both start on a database that is migrated and with MLflow imported: ours is imported before the clock starts and
includes verification; from the peer's time, that of its command over an empty directory is taken off.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path

from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings, MlflowTarget
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets_tests.support.lake_factory import make_lake, metric, params


def points_in(database: Path) -> int:
    """Count metric points with raw SQL."""
    with closing(sqlite3.connect(database)) as db:
        return int(db.execute("SELECT count(*) FROM metrics").fetchone()[0])


def small_lake(root: Path, runs: int, series: int, points: int) -> None:
    """Write a lake of one project with metrics and a few params."""
    rows = {
        f"run-{number:04d}": [
            # neptune-exporter passes over runs that have no sys/ attributes.
            *params({"sys/custom_run_id": f"run-{number:04d}", "sys/name": "bench"}),
            *params({f"p/{place}": place / 7 for place in range(60)}),
            *(
                row
                for place in range(series)
                for row in metric(f"metrics/m{place}", [number + place / (step + 1) for step in range(points)])
            ),
        ]
        for number in range(runs)
    }
    make_lake(root, {"bench/project": rows})


def ours(lake: LakeSettings, project: str, work: Path) -> tuple[int, float]:
    """Load the project; return points and seconds, verification included."""
    from neptune_assets.targets.mlflow.load import MlflowTarget as Opened

    work.mkdir()
    target = MlflowTarget(tracking_uri=f"sqlite:///{work}/mlflow.db")
    opened = Opened(target, lake)
    opened.check()
    opened.close()
    ledger = Ledger(LakeSettings(root=str(work)), "mlflow", project)
    started = time.perf_counter()
    report = load_project(Lake(lake).project(project), lambda: Opened(target, lake), ledger)
    seconds = time.perf_counter() - started
    if report.failed:
        raise SystemExit(f"our load failed: {report.failed}")
    held = points_in(work / "mlflow.db")
    if held != report.written["float_series"]:
        raise SystemExit(f"{held:,} points are in MLflow where {report.written['float_series']:,} were written")
    return report.points, seconds


def peer(python: str, source: str, lake: Path, project: str, run_ids: list[str], work: Path) -> tuple[int, float]:
    """Load some runs with neptune-exporter; return points that arrived and seconds without imports."""
    (work / "empty").mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": source, "MLFLOW_DISABLE_TELEMETRY": "true"}
    migrate = (
        "import sys; from mlflow import MlflowClient;"
        "MlflowClient(tracking_uri=sys.argv[1]).search_experiments(max_results=1)"
    )
    uri = f"sqlite:///{work}/mlflow.db"
    subprocess.run([python, "-c", migrate, uri], env=environment, check=True, cwd=work, capture_output=True)
    seconds = []
    for data in (work / "empty", lake / "data"):
        command = [python, "-c", "from neptune_exporter.main import cli; cli()", "load", "--loader", "mlflow"]
        command += ["--mlflow-tracking-uri", uri, "--data-path", str(data), "--files-path", str(lake / "files")]
        command += ["--project-ids", project, *(part for run_id in run_ids for part in ("--runs", run_id))]
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, check=False, cwd=work, capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
    points = points_in(work / "mlflow.db")
    if not points:
        raise SystemExit(f"neptune-exporter loaded nothing: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return points, max(seconds[1] - seconds[0], 1e-9)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=Path, help="an existing lake; one is made if left out")
    parser.add_argument("--runs", type=int, default=10, help="runs of the lake that is made")
    parser.add_argument("--series", type=int, default=20)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--slow-runs", type=int, default=2, help="runs that the slow side gets")
    parser.add_argument("--peer-python", default="", help="Python with neptune-exporter's dependencies")
    parser.add_argument("--peer-src", default="", help="neptune-exporter's src folder")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="mlflow-load-"))
    try:
        lake = options.lake
        if lake is None:
            lake = work / "lake"
            small_lake(lake, options.runs, options.series, options.points)
        settings = LakeSettings(root=str(lake))
        project = Lake(settings).projects()[0]
        run_ids = list(Lake(settings).project(project).records())
        points, seconds = ours(settings, project, work / "ours")
        rate = points / seconds
        loaded = f"{points:,} points of {len(run_ids):,} runs"
        print(f"MLflow, ours: {loaded} in {seconds:.2f} s, verified: {rate:,.0f} points/s")
        if not (options.peer_python and options.peer_src):
            print("MLflow, neptune-exporter: not measured (no --peer-python and --peer-src)")
            return
        few = run_ids[: options.slow_runs]
        points, seconds = peer(options.peer_python, options.peer_src, lake, project, few, work / "peer")
        slow = points / seconds
        print(
            f"MLflow, neptune-exporter: {points:,} points of {len(few):,} runs in {seconds:.2f} s: {slow:,.0f} points/s"
        )
        print(f"MLflow, ratio of rates: {rate / slow:.1f} (the slow side loaded {len(few):,} of {len(run_ids):,} runs)")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
