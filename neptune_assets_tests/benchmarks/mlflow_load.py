"""Loading a lake into MLflow's databases, our way and neptune-exporter's: points a second, memory, and their ratio.

``python -m neptune_assets_tests.benchmarks.mlflow_load [--lake DIR] --peer-python PY --peer-src SRC``. The lake is only
read, by both; without ``--lake`` one is made. Both load into a SQLite file and into a PostgreSQL server that is started
here and keeps its promises (fsync on). The slow side gets ``--slow-runs`` of the runs, and rates are compared.
All start on a database that is migrated. Ours is timed after its imports and given with and without reading everything
back; from the peer's time, that of its command over an empty directory is taken off, and it reads nothing back.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.mlflow.settings import MlflowSettings
from neptune_assets_tests.benchmarks.lakes import export_lake
from neptune_assets_tests.support.postgres import PostgresServer

MIGRATE = (
    "import sys; from mlflow import MlflowClient;"
    "MlflowClient(tracking_uri=sys.argv[1]).search_experiments(max_results=1)"
)


class SqliteStore:
    """A SQLite file in a directory of its own."""

    name = "SQLite"

    def __init__(self, work: Path) -> None:
        work.mkdir(parents=True)
        self.file = work / "mlflow.db"
        self.uri = f"sqlite:///{self.file}"

    def points(self) -> int:
        """Count metric points with raw SQL."""
        with closing(sqlite3.connect(self.file)) as db:
            return int(db.execute("SELECT count(*) FROM metrics").fetchone()[0])

    def close(self) -> None:
        """Nothing runs."""


class PostgresStore:
    """A PostgreSQL server of its own."""

    name = "PostgreSQL"

    def __init__(self, work: Path) -> None:
        work.mkdir(parents=True)
        self.server = PostgresServer(durable=True, options=["shared_buffers=512MB", "max_wal_size=2GB"])
        self.server.create("mlflow")
        self.uri = self.server.url("mlflow", "postgresql+psycopg")

    def points(self) -> int:
        """Count metric points with raw SQL."""
        return int(self.server.sql("mlflow", "SELECT count(*) FROM metrics"))

    def close(self) -> None:
        """Stop the server."""
        self.server.stop()


def load_here(lake: Path, run_ids: list[str], uri: str, work: Path) -> None:
    """Load runs in this process, which has nothing else to do, and print what it took as JSON."""
    from neptune_assets_tests.benchmarks.reading_back import ReadingBack

    reading = ReadingBack()
    settings = LakeSettings(root=str(lake))
    target = MlflowSettings(tracking_uri=uri, artifact_root=str(work / "artifacts"))
    opened = reading.open(target, settings)
    opened.check()
    opened.close()
    project = Lake(settings).project(Lake(settings).projects()[0]).only(run_ids)
    ledger = Ledger(LakeSettings(root=str(work)), "mlflow", project.project_id)
    cpu, started = time.process_time(), time.perf_counter()
    report = load_project(project, lambda: reading.open(target, settings), ledger)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    if report.failed:
        raise SystemExit(f"our load failed: {report.failed}")
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps([report.written["float_series"], report.points, seconds, seconds - reading.seconds, cpu, megabytes])
    )


def ours(store: SqliteStore | PostgresStore, lake: Path, run_ids: list[str], work: Path) -> float:
    """Load in a fresh process, print a line, and return points a second without reading back and with it."""
    options = ["--here", store.uri, "--lake", str(lake), "--work", str(work)]
    code = "import sys; from neptune_assets_tests.benchmarks.mlflow_load import main; main()"
    # The ids go through a file: there may be more of them than a command line takes.
    (work / "run_ids.json").write_text(json.dumps(run_ids))
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"our load failed: {done.stdout[-2000:]}{done.stderr[-4000:]}")
    written, points, seconds, writing, cpu, megabytes = json.loads(done.stdout.splitlines()[-1])
    held = store.points()
    if held != written:
        raise SystemExit(f"{held:,} points are in MLflow where {written:,} were written")
    rate = float(points / seconds)
    print(
        f"MLflow into {store.name}, ours, every point read back and compared: {points:,} points of {len(run_ids):,} "
        f"runs in {seconds:.2f} s: {rate:,.0f} points/s ({points / cpu:,.0f} a CPU second); "
        f"without reading back {points / writing:,.0f} points/s; peak {megabytes:.0f} MB"
    )
    return rate


def peer(
    store: SqliteStore | PostgresStore, python: str, source: str, lake: Path, run_ids: list[str], work: Path
) -> float:
    """Load some runs with neptune-exporter, print a line, and return points a second without imports."""
    (work / "empty").mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": source, "MLFLOW_DISABLE_TELEMETRY": "true"}
    project = Lake(LakeSettings(root=str(lake))).projects()[0]
    seconds, cpu, megabytes = [], [], 0.0
    for data in (work / "empty", lake / "data"):
        command = [python, "-c", "from neptune_exporter.main import cli; cli()", "load", "--loader", "mlflow"]
        command += ["--mlflow-tracking-uri", store.uri, "--data-path", str(data), "--files-path", str(lake / "files")]
        command += ["--project-ids", project, *(part for run_id in run_ids for part in ("--runs", run_id))]
        started = time.perf_counter()
        with (work / "log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, cwd=work, stdout=log, stderr=log)
            _, _, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - started)
        cpu.append(usage.ru_utime + usage.ru_stime)
        megabytes = usage.ru_maxrss / 1024
    points = store.points()
    if not points:
        raise SystemExit(f"neptune-exporter loaded nothing: {(work / 'log').read_text()[-4000:]}")
    taken, worked = max(seconds[1] - seconds[0], 1e-9), max(cpu[1] - cpu[0], 1e-9)
    print(
        f"MLflow into {store.name}, neptune-exporter, nothing read back: {points:,} points of {len(run_ids):,} runs "
        f"in {taken:.2f} s: {points / taken:,.0f} points/s "
        f"({points / worked:,.0f} a CPU second); peak {megabytes:.0f} MB"
    )
    return points / taken


def compare(kind: type[SqliteStore] | type[PostgresStore], options: argparse.Namespace, lake: Path, work: Path) -> None:
    """Measure both sides on one kind of database, one after the other."""
    run_ids = list(
        Lake(LakeSettings(root=str(lake))).project(Lake(LakeSettings(root=str(lake))).projects()[0]).records()
    )
    fast_ids = run_ids[: options.fast_runs or None]
    store = kind(work / "ours")
    try:
        fast = ours(store, lake, fast_ids, work / "ours")
    finally:
        store.close()
    if not (options.peer_python and options.peer_src):
        print(f"MLflow into {kind.name}, neptune-exporter: not measured (no --peer-python and --peer-src)")
        return
    few = run_ids[: options.slow_runs]
    store = kind(work / "peer")
    try:
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [options.peer_python, "-c", MIGRATE, store.uri]
        subprocess.run(command, env=environment, check=True, cwd=work, capture_output=True)
        slow = peer(store, options.peer_python, options.peer_src, lake, few, work / "peer" / "cli")
    finally:
        store.close()
    print(
        f"MLflow into {kind.name}, ratio of rates, ours read back: {fast / slow:.1f} "
        f"(the slow side loaded {len(few):,} runs, ours {len(fast_ids):,})"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=Path, help="an existing lake; one is made if left out")
    parser.add_argument("--runs", type=int, default=10, help="runs of the lake that is made")
    parser.add_argument("--series", type=int, default=20)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--fast-runs", type=int, default=0, help="runs that our side gets; 0 is all")
    parser.add_argument("--slow-runs", type=int, default=2, help="runs that the slow side gets")
    parser.add_argument("--stores", default="sqlite,postgresql", help="which of sqlite and postgresql")
    parser.add_argument("--http", action="store_true", help="measure over HTTP too, see mlflow_http_load")
    parser.add_argument("--peer-python", default="", help="Python with neptune-exporter's dependencies")
    parser.add_argument("--peer-src", default="", help="neptune-exporter's src folder")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        load_here(options.lake, json.loads((options.work / "run_ids.json").read_text()), options.here, options.work)
        return
    work = Path(tempfile.mkdtemp(prefix="mlflow-load-"))
    try:
        lake = options.lake
        if lake is None:
            lake = export_lake(work / "made", options.runs, options.series, options.points)
        print(f"machine: {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
        stores = options.stores.split(",")
        if "sqlite" in stores:
            compare(SqliteStore, options, lake, work / "sqlite")
        if "postgresql" in stores:
            compare(PostgresStore, options, lake, work / "postgresql")
        if options.http:
            command = [sys.executable, "-m", "neptune_assets_tests.benchmarks.mlflow_http_load", "--lake", str(lake)]
            command += ["--slow-runs", str(options.slow_runs)]
            command += ["--peer-python", options.peer_python, "--peer-src", options.peer_src]
            subprocess.run(command, check=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
