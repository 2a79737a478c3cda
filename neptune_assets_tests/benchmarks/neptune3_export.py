"""Exports of one Neptune 3 server, ours beside neptune-exporter's: seconds, CPU seconds, peak memory, points a second.

``python -m neptune_assets_tests.benchmarks.neptune3_export --peer-python ... --peer-src ...`` makes a lake, serves it
with this project's own server, and lets both export the same projects from it, one after the other. Without the peer
only our side is measured. The server's own CPU seconds are told for every export, and how many points a second it
serves to a client that throws them away and takes in from one that logs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from neptune_assets.schema import TIME_TYPE
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.rows import decimal_steps
from neptune_assets.testing.lakes import params, write_lake
from neptune_assets.testing.tables import TableRun, TableSource, as_table
from neptune_assets_tests.support.server import ServerProcess, server_process

BASE_MS = 1_740_830_400_000


@dataclass(frozen=True)
class Shape:
    """A project: so many runs, float series of so many points, parameters. ``disjoint``: no two series share a step."""

    name: str
    runs: int
    series: int
    points: int
    parameters: int
    disjoint: bool = False

    @property
    def project(self) -> str:
        """Name of the project."""
        return f"bench/{self.name}"

    @property
    def total(self) -> int:
        """Float points of all runs."""
        return self.runs * self.series * self.points


TINY = Shape("tiny", runs=1, series=2, points=5, parameters=2)
"""Exported first by everybody and not told: it fills the caches of compiled modules."""
SHAPES = {
    "dense": Shape("dense", runs=40, series=40, points=1_000, parameters=20),
    "disjoint": Shape("disjoint", runs=4, series=100, points=300, parameters=20, disjoint=True),
    "small": Shape("small", runs=1_000, series=5, points=10, parameters=10),
}
FULL = {
    "dense": Shape("dense", runs=100, series=40, points=1_000, parameters=20),
    "disjoint": Shape("disjoint", runs=8, series=128, points=1_000, parameters=20, disjoint=True),
    "small": Shape("small", runs=1_000, series=5, points=10, parameters=10),
}


def run_table(shape: Shape, number: int) -> pa.Table:
    """Rows of one run; the same number always gives the same rows."""
    random = np.random.default_rng(number)
    count = shape.series * shape.points
    series = np.repeat(np.arange(shape.series), shape.points)
    place = np.tile(np.arange(shape.points), shape.series)
    steps = place * shape.series + series if shape.disjoint else place
    points = pa.table(
        {
            "attribute_path": pa.array([f"metrics/m{index:03d}" for index in series]),
            "attribute_type": pa.array(["float_series"] * count),
            "step": decimal_steps(steps * 1_000_000),
            "timestamp": pa.array(BASE_MS + steps * 10, pa.int64()).cast(TIME_TYPE),
            "float_value": pa.array(random.normal(size=count)),
        }
    )
    run_id = f"run-{number:05d}"
    rows = params({f"params/p{index:03d}": float(random.normal()) for index in range(shape.parameters)})
    tables = [as_table(shape.project, run_id, part) for part in (points, rows)]
    return pa.concat_tables(tables)


def make_lake(root: Path, shapes: dict[str, Shape]) -> None:
    """Write all projects into a lake."""
    for shape in shapes.values():
        numbers = range(shape.runs)
        runs = {f"run-{number:05d}": TableRun(run_table(shape, number), fingerprint=str(number)) for number in numbers}
        write_lake(LakeSettings(root=str(root)), TableSource({shape.project: runs}))


@dataclass
class Measured:
    """One process: wall seconds, CPU seconds of it, peak memory in MB, CPU seconds of the server meanwhile."""

    wall: float
    cpu: float
    megabytes: float
    server_cpu: float
    output: str


def measure(command: list[str], environment: dict[str, str], server: ServerProcess) -> Measured:
    """Run a command to its end."""
    # A process of its own in between: the peak of a child begins with that of the process it was forked from.
    script = (
        "import json, resource, subprocess, sys, time\n"
        "begin = time.perf_counter()\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)\n"
        "wall = time.perf_counter() - begin\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(done.stdout[-20000:])\n"
        "print(json.dumps([done.returncode, wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))"
    )
    before = cpu_of(server)
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    output, _, last = done.stdout.rstrip().rpartition("\n")
    code, wall, cpu, megabytes = json.loads(last)
    if code:
        raise SystemExit(f"{' '.join(command)} failed:\n{output[-4000:]}")
    return Measured(wall, cpu, megabytes, cpu_of(server) - before, output)


def cpu_of(server: ServerProcess) -> float:
    """CPU seconds of the server process so far."""
    assert server.process is not None
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def export_ours(project: str, root: Path, client: str) -> None:
    """Bring one project from the server of NEPTUNE_API_TOKEN into a lake, as the asset does."""
    from neptune_assets.lake.writer import LakeWriter
    from neptune_assets.settings import Filters, Neptune3Source
    from neptune_assets.sources.neptune3.source import Neptune3

    settings = Neptune3Source.model_validate({"client": client, "projects": [project]})
    report = LakeWriter(LakeSettings(root=str(root)), Neptune3(settings, Filters())).write_project(project)
    if report.failed or report.partial:
        raise SystemExit(f"failed: {report.failed}, partial: {report.partial}")


def serve_only(project: str) -> None:
    """Ask for all points of a project and throw the answers away."""
    from neptune_assets.settings import Neptune3Source
    from neptune_assets.sources.neptune3 import fast
    from neptune_assets.sources.neptune3.access import find_access
    from neptune_assets.sources.neptune3.model import FloatPart, Request

    reader = fast.FastReader(Neptune3Source(projects=[project]), find_access(Neptune3Source()))
    points = 0
    begin = time.perf_counter()
    found = reader.attributes(project, reader.list_runs(project), ["float_series"])
    requests = [Request(run.run, item.path, item.type) for run in found for item in run.attributes]
    for group in reader.groups(requests):
        left = group
        while left:
            page = reader.page(project, left)
            points += sum(len(part.steps) for part in page.parts if isinstance(part, FloatPart))
            left = list(page.rest)
    print(json.dumps([points, time.perf_counter() - begin]))


def ingest_only(store: Path, url: str, token: str, points: int) -> float:
    """Log points to the server and return how many a second it took in."""
    from neptune_assets_tests.support.server import Served
    from neptune_assets_tests.support.wire_logging import WireLogger

    logger = WireLogger(Served(url, token, store), "bench/logged")
    logger.create("logged")
    series = {f"m{number}": [(float(step), step * 0.1) for step in range(points // 50)] for number in range(50)}
    begin = time.perf_counter()
    logger.metrics("logged", series)
    return points / (time.perf_counter() - begin)


def peer_command(python: str, project: str, work: Path) -> list[str]:
    """The peer's own command line."""
    main = "import sys; from neptune_exporter.main import main; sys.exit(main())"
    places = ["-d", str(work / "data"), "-f", str(work / "files"), "--error-report-file", str(work / "errors.jsonl")]
    places += ["--log-file", str(work / "log.txt")]
    return [python, "-c", main, "export", "--exporter", "neptune3", "-p", project, "--no-progress", *places]


def points_in(data: Path) -> int:
    """Float points in all Parquet files below a directory."""
    total = 0
    for path in data.rglob("*_part_*.parquet"):
        kinds = pq.read_table(path, columns=["attribute_type"])["attribute_type"].to_pylist()
        total += kinds.count("float_series")
    return total


def exports(
    shape: Shape,
    options: argparse.Namespace,
    work: Path,
    server: ServerProcess,
    module: list[str],
    environment: dict[str, str],
) -> dict[str, tuple[Measured, Path]]:
    """Export one project by everybody, one after the other; return what it took and where the Parquet lies."""
    results = {}
    for client in options.clients:
        root = work / f"ours-{client}-{shape.name}"
        command = [*module, "--export", shape.project, "--root", str(root), "--client", client]
        results[f"ours, {client}"] = (measure(command, environment, server), root / "data")
    if options.peer_python:
        peer = work / f"peer-{shape.name}"
        peer.mkdir()
        command = peer_command(options.peer_python, shape.project, peer)
        results["neptune-exporter"] = (
            measure(command, {**environment, "PYTHONPATH": options.peer_src}, server),
            peer / "data",
        )
    return results


def report(options: argparse.Namespace, work: Path) -> Iterator[str]:
    """Measure everything and tell it line by line."""
    shapes = {name: shape for name, shape in (FULL if options.full else SHAPES).items() if name in options.only}
    make_lake(work / "lake", {"tiny": TINY, **shapes})
    with server_process(work / "store", lake=work / "lake") as server:
        environment = {
            "NEPTUNE_API_TOKEN": server.token,
            "PYTHONPYCACHEPREFIX": str(work / "compiled"),
            "PYTHONDONTWRITEBYTECODE": "",
        }
        module = [sys.executable, "-m", __spec__.name if __spec__ else "neptune3_export"]
        yield f"ingested, one client: {ingest_only(work / 'store', server.url, server.token, 100_000):,.0f} points/s"
        exports(TINY, options, work, server, module, environment)
        for name, shape in shapes.items():
            yield f"\n{name}: {shape.runs:,} runs, {shape.series} series of {shape.points:,} points = {shape.total:,}"
            served = measure([*module, "--serve-only", shape.project], environment, server)
            points, seconds = json.loads(served.output.split()[-2] + served.output.split()[-1])
            yield f"  served to a client that keeps nothing: {points / seconds:,.0f} points/s, "
            yield f"    {points / max(served.server_cpu, 0.01):,.0f} points per CPU second of the server"
            results = exports(shape, options, work, server, module, environment)
            for who, (measured, data) in results.items():
                found = points_in(data)
                yield (
                    f"  {who:18} {measured.wall:7.1f} s wall, {measured.cpu:6.1f} s CPU, {measured.megabytes:6.0f} MB, "
                    f"{found:,} points: {found / measured.wall:,.0f}/s, {found / measured.cpu:,.0f} per CPU s, "
                    f"{shape.runs / measured.wall:,.1f} runs/s; the server used {measured.server_cpu:.1f} s CPU"
                )


def main() -> None:
    """Command line; the first three options are for processes that this one starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--client", default="fast", help=argparse.SUPPRESS)
    parser.add_argument("--serve-only", help=argparse.SUPPRESS)
    parser.add_argument("--peer-python", help="a Python that has neptune-exporter's dependencies")
    parser.add_argument("--peer-src", help="the src folder of neptune-exporter's checkout")
    parser.add_argument("--only", nargs="*", default=list(SHAPES), choices=list(SHAPES), help="projects to measure")
    parser.add_argument("--clients", nargs="*", default=["fast"], choices=["fast", "public"], help="ways to read")
    parser.add_argument("--full", action="store_true", help="larger projects, which take the peer long")
    options = parser.parse_args()
    if options.export:
        export_ours(options.export, options.root, options.client)
        return
    if options.serve_only:
        serve_only(options.serve_only)
        return
    work = Path(tempfile.mkdtemp(prefix="neptune_assets-bench-"))
    try:
        for line in report(options, work):
            print(line, flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
