"""Loading a lake into a real `mlflow server` over HTTP, our way and neptune-exporter's: points a second, their ratio.

``python -m neptune_assets_tests.benchmarks.mlflow_http_load [--lake DIR] --peer-python PY --peer-src SRC``. The lake is
only read, by both; without ``--lake`` one is made. Each side gets a server of its own over an empty SQLite file, one
after the other. Ours is given with and without reading everything back, which neptune-exporter does not do; from its
time, that of its command over an empty directory is taken off. The server's CPU time is named because it is the limit.
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
from dataclasses import dataclass
from pathlib import Path

from neptune_assets.lake.reader import Lake, LakeProject
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.mlflow.settings import MlflowSettings
from neptune_assets_tests.benchmarks.lakes import export_lake
from neptune_assets_tests.support.mlflow_server import RunningServer, mlflow_server


@dataclass(frozen=True)
class Figure:
    """What one load took. ``written`` is the part before the first run was read back, summed over runs."""

    points: int
    seconds: float
    written: float
    server: float

    def line(self, who: str, runs: int) -> str:
        """Return one line of the report."""
        return (
            f"MLflow over HTTP, {who}: {self.points:,} points of {runs:,} runs in {self.seconds:.2f} s: "
            f"{self.points / self.seconds:,.0f} points/s; server: {self.points / self.server:,.0f} points/CPU s"
        )


def points_in(server: RunningServer) -> int:
    """Count metric points with raw SQL."""
    with closing(sqlite3.connect(server.database)) as db:
        return int(db.execute("SELECT count(*) FROM metrics").fetchone()[0])


def cpu_seconds(server: RunningServer) -> float:
    """Return the CPU time of the server and its workers so far, from /proc; 0 where there is none."""
    ticks, port = 0, server.url.rpartition(":")[2]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            group = (folder / "stat").read_text().rpartition(")")[2].split()
            leader = Path(f"/proc/{group[2]}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if port.encode() in leader:
            ticks += int(group[11]) + int(group[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def ours(settings: LakeSettings, project: LakeProject, server: RunningServer, work: Path, connections: int) -> Figure:
    """Load the runs; return what it took."""
    from neptune_assets_tests.benchmarks.reading_back import ReadingBack

    reading = ReadingBack()
    target = MlflowSettings(tracking_uri=server.url, http_connections=connections)
    ledger = Ledger(LakeSettings(root=str(work)), "mlflow", project.project_id)
    cpu, started = cpu_seconds(server), time.perf_counter()
    report = load_project(project, lambda: reading.open(target, settings), ledger)
    seconds = time.perf_counter() - started
    if report.failed:
        raise SystemExit(f"our load failed: {report.failed}")
    held = points_in(server)
    if held != report.written["float_series"]:
        raise SystemExit(f"{held:,} points are in MLflow where {report.written['float_series']:,} were written")
    return Figure(report.points, seconds, seconds - reading.seconds, cpu_seconds(server) - cpu)


def peer(
    python: str, source: str, lake: Path, project: str, run_ids: list[str], server: RunningServer, work: Path
) -> Figure:
    """Load some runs with neptune-exporter; return what it took, without imports."""
    (work / "empty").mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": source, "MLFLOW_DISABLE_TELEMETRY": "true"}
    seconds, cpu = [], []
    for data in (work / "empty", lake / "data"):
        command = [python, "-c", "from neptune_exporter.main import cli; cli()", "load", "--loader", "mlflow"]
        command += ["--mlflow-tracking-uri", server.url, "--data-path", str(data), "--files-path", str(lake / "files")]
        command += ["--project-ids", project, *(part for run_id in run_ids for part in ("--runs", run_id))]
        before, started = cpu_seconds(server), time.perf_counter()
        done = subprocess.run(command, env=environment, check=False, cwd=work, capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
        cpu.append(cpu_seconds(server) - before)
    points = points_in(server)
    if not points:
        raise SystemExit(f"neptune-exporter loaded nothing: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    taken = max(seconds[1] - seconds[0], 1e-9)
    return Figure(points, taken, taken, max(cpu[1], 1e-9))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=Path, help="an existing lake; one is made if left out")
    parser.add_argument("--series", type=int, default=40)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=2, help="runs that our side gets")
    parser.add_argument("--slow-runs", type=int, default=2, help="runs that the slow side gets")
    parser.add_argument("--workers", type=int, default=4, help="the server's workers")
    parser.add_argument("--connections", type=int, default=4, help="our requests at once")
    parser.add_argument("--peer-python", default="", help="Python with neptune-exporter's dependencies")
    parser.add_argument("--peer-src", default="", help="neptune-exporter's src folder")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="mlflow-http-load-"))
    try:
        lake = options.lake
        if lake is None:
            runs = max(options.runs, options.slow_runs)
            lake = export_lake(work / "made", runs, options.series, options.points)
        settings = LakeSettings(root=str(lake))
        whole = Lake(settings).project(Lake(settings).projects()[0])
        run_ids = list(whole.records())
        some = whole.only(run_ids[: options.runs])
        (work / "a").mkdir()
        with mlflow_server(work / "a", workers=options.workers) as server:
            fast = ours(settings, some, server, work / "a", options.connections)
        print(fast.line("ours, read back and compared", options.runs))
        print(f"MLflow over HTTP, ours without reading back: {fast.points / fast.written:,.0f} points/s")
        if not (options.peer_python and options.peer_src):
            print("MLflow over HTTP, neptune-exporter: not measured (no --peer-python and --peer-src)")
            return
        few = run_ids[: options.slow_runs]
        (work / "b").mkdir()
        with mlflow_server(work / "b", workers=options.workers) as server:
            slow = peer(options.peer_python, options.peer_src, lake, whole.project_id, few, server, work / "peer")
        print(slow.line("neptune-exporter, not read back", len(few)))
        rate = slow.points / slow.seconds
        print(
            f"MLflow over HTTP, ratio of rates: {fast.points / fast.written / rate:.1f} for the same work, "
            f"{fast.points / fast.seconds / rate:.1f} with ours read back"
        )
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
