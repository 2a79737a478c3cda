"""Exports of one Neptune 3 server, ours beside neptune-exporter's: seconds, CPU seconds, peak memory, points a second.

``python -m neptune_assets_tests.benchmarks.neptune3_export --peer-python ... --peer-src ...`` makes a lake, serves it
with this project's own server, and lets both export the same projects from it, one after the other, each time from a
server that just started. Without the peer only our side is measured. The server's own CPU seconds are told for every
export, and how many points a second it serves to a client that throws them away and takes in from one that logs. The
wide tables of neptune-exporter take several gigabytes on the disjoint steps, so that only ours exports the larger of
those projects; both are compared by points a second.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from neptune_assets.schema import TIME_TYPE
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.rows import decimal_steps
from neptune_assets.testing.lakes import TableRun, TableSource, as_table, params, write_lake
from neptune_assets_tests.benchmarks.exporting import (
    Measured,
    Shape,
    compared,
    measure,
    ours,
    peers,
    points_in,
    start_anew,
    told,
)
from neptune_assets_tests.support.server import ServerProcess, server_process

BASE_MS = 1_740_830_400_000


TINY = Shape("tiny", runs=1, series=2, points=5, parameters=2)
"""Exported first by everybody and not told: it fills the caches of compiled modules."""
SHAPES = {
    "dense": Shape("dense", runs=100, series=40, points=1_000, parameters=20),
    "disjoint": Shape("disjoint", runs=4, series=128, points=1_000, parameters=20, disjoint=True),
    "disjoint_large": Shape("disjoint_large", runs=32, series=128, points=1_000, parameters=20, disjoint=True),
    "small": Shape("small", runs=1_000, series=5, points=10, parameters=10),
}
_TOO_LARGE = "disjoint_large"
"""What neptune-exporter has no memory for."""
FULL = {
    "dense": Shape("dense", runs=200, series=40, points=1_000, parameters=20),
    "disjoint": Shape("disjoint", runs=8, series=128, points=1_000, parameters=20, disjoint=True),
    "disjoint_large": Shape("disjoint_large", runs=64, series=128, points=1_000, parameters=20, disjoint=True),
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


def serve_only(project: str) -> None:
    """Ask for all points of a project and throw the answers away."""
    from neptune_assets.sources.live import read_token
    from neptune_assets.sources.neptune3.client import Client
    from neptune_assets.sources.neptune3.rows import FloatPart, Request
    from neptune_assets.sources.neptune3.settings import Neptune3Source

    settings = Neptune3Source(projects=[project])
    client = Client(settings, read_token(settings))
    points = 0
    begin = time.perf_counter()
    found = client.attributes(project, client.list_runs(project), ["float_series"])
    requests = [Request(run.run, item.path, item.type) for run in found for item in run.attributes]
    for group in client.groups(requests):
        left = group
        while left:
            page = client.page(project, left)
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


def exports(
    shape: Shape, options: argparse.Namespace, work: Path, server: ServerProcess, environment: dict[str, str]
) -> Iterator[tuple[str, Measured, int]]:
    """Export one project by everybody, one after the other; who, what it took, how many points there are then."""
    start_anew(server, shape.project)
    root = work / f"ours-{shape.name}"
    command = ours("neptune3", shape.project, root, {"projects": [shape.project]})
    yield "ours", measure(command, environment, server), points_in(root / "data")
    shutil.rmtree(root)
    if options.peer_python and shape.name != _TOO_LARGE:
        start_anew(server, shape.project)
        place = work / f"peer-{shape.name}"
        place.mkdir()
        command = peers("neptune3", options.peer_python, shape.project, place)
        measured = measure(command, {**environment, "PYTHONPATH": options.peer_src}, server)
        yield "neptune-exporter", measured, points_in(place / "data")
        shutil.rmtree(place)


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
        list(exports(TINY, options, work, server, environment))
        idle = {who: measured for who, measured, _ in exports(TINY, options, work, server, environment)}
        for who, measured in idle.items():
            yield f"{who}, one run of next to nothing: {measured.wall:.1f} s wall, {measured.cpu:.1f} s CPU"
        wide: tuple[int, Measured] | None = None
        for name, shape in shapes.items():
            yield f"\n{name}: {shape.runs:,} runs, {shape.series} series of {shape.points:,} points = {shape.total:,}"
            start_anew(server, shape.project)
            served = measure([*module, "--serve-only", shape.project], environment, server)
            points, seconds = json.loads(served.output.split()[-2] + served.output.split()[-1])
            yield (
                f"  served to a client that keeps nothing: {points / seconds:,.0f} points/s, "
                f"{points / max(served.server_cpu, 0.01):,.0f} points per CPU second of the server"
            )
            results = {}
            for who, measured, found in exports(shape, options, work, server, environment):
                yield told(who, shape.runs, found, measured)
                results[who] = measured
                if found != shape.total:
                    raise SystemExit(f"{who} exported {found:,} points of {shape.total:,}")
            if name == _TOO_LARGE and wide is not None:
                points, theirs = wide
                for who, mine in results.items():
                    ratio = (shape.total / mine.wall) / (points / theirs.wall)
                    yield f"  {who}: {ratio:.1f} times as many points a second as neptune-exporter of 'disjoint'"
            if "neptune-exporter" in results:
                theirs = results.pop("neptune-exporter")
                if name == "disjoint":
                    wide = shape.total, theirs
                for who, mine in results.items():
                    yield compared(theirs, mine)
                    without = theirs.less(idle["neptune-exporter"]), mine.less(idle[who])
                    yield compared(*without, note=", without imports and session")


def main() -> None:
    """Command line; the first option is for a process that this one starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve-only", help=argparse.SUPPRESS)
    parser.add_argument("--peer-python", help="a Python that has neptune-exporter's dependencies")
    parser.add_argument("--peer-src", help="the src folder of neptune-exporter's checkout")
    parser.add_argument("--only", nargs="*", default=list(SHAPES), choices=list(SHAPES), help="projects to measure")
    parser.add_argument("--full", action="store_true", help="larger projects, which take the peer long")
    options = parser.parse_args()
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
