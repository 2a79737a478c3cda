"""Exports of one Neptune 2 server, ours beside neptune-exporter's: runs and points a second, CPU seconds, peak memory.

``python -m neptune_assets_tests.benchmarks.neptune2_export --peer-python ... --peer-src ...`` fills a store, serves it
with this project's own server, and lets both export the same projects from it, one after the other. Without the peer
only our side is measured. ``many`` holds 25,000 runs created in one millisecond, which only ours exports, twice: the
second time nothing may be read. The server's own CPU seconds are told for every export.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from neptune_assets.schema import AttributeType
from neptune_assets.server.store.projects import Store
from neptune_assets.server.store.runs import NewRun, encode
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
from neptune_assets_tests.support.server import server_process

BASE_MS = 1_740_830_400_000
SCALE = 1_000_000
"""Micro-steps."""


def fill(store: Store, shape: Shape) -> None:
    """Put a project into the store, in one transaction."""
    random = np.random.default_rng(shape.runs)
    project = store.project(shape.project, create=True, key=shape.name[:4].upper())
    steps = [step * SCALE for step in range(shape.points)]
    times = [BASE_MS + step * 10 for step in range(shape.points)]
    with project.write() as writing:
        for number in range(shape.runs):
            run = writing.create_run(NewRun(None, generation="2", created_at=BASE_MS, owner="bench"))
            operations = writing.operations(run)
            operations.assign("sys/name", AttributeType.STRING, f"run {number}")
            for index in range(shape.parameters):
                value = encode(AttributeType.FLOAT, float(random.normal()))
                operations.assign(f"params/p{index:03d}", AttributeType.FLOAT, value)
            for index in range(shape.series):
                attribute = operations.attribute(f"metrics/m{index:03d}", AttributeType.FLOAT_SERIES)
                assert attribute is not None
                operations.append_floats(attribute, steps, times, random.normal(size=shape.points).tolist())


def report(options: argparse.Namespace, work: Path) -> Iterator[str]:
    """Measure everything and tell it line by line."""
    shapes = {
        "small": Shape("small", options.runs, series=5, points=20, parameters=10),
        "long": Shape("long", options.long_runs, series=5, points=options.points, parameters=10),
        "many": Shape("many", options.many, series=0, points=0, parameters=2),
        "empty": Shape("empty", 0, series=0, points=0, parameters=0),
    }
    store = Store(work / "store")
    for shape in shapes.values():
        if shape.name in [*options.only, "empty"]:
            fill(store, shape)
    store.close()
    with server_process(work / "store") as server:
        environment = {
            "NEPTUNE_API_TOKEN": server.token,
            "OAUTHLIB_INSECURE_TRANSPORT": "1",
            "PYTHONPYCACHEPREFIX": str(work / "compiled"),
            "PYTHONDONTWRITEBYTECODE": "",
        }

        def by_us(shape: Shape) -> tuple[Measured, int]:
            start_anew(server, shape.project)
            root = work / f"ours-{shape.name}"
            measured = measure(ours("neptune2", shape.project, root, {}), environment, server)
            return measured, points_in(root / "data")

        def by_peer(shape: Shape) -> tuple[Measured, int]:
            start_anew(server, shape.project)
            place = work / f"peer-{shape.name}"
            place.mkdir(exist_ok=True)
            command = peers("neptune2", options.peer_python, shape.project, place)
            measured = measure(command, {**environment, "PYTHONPATH": options.peer_src}, server)
            return measured, points_in(place / "data")

        idle = {}
        # The first time fills the caches of compiled modules.
        for _ in range(2):
            idle["ours"] = by_us(shapes["empty"])[0]
            if options.peer_python:
                idle["neptune-exporter"] = by_peer(shapes["empty"])[0]
        for who, measured in idle.items():
            yield f"{who}, an empty project (imports, session): {measured.wall:.1f} s, {measured.cpu:.1f} s CPU"
        for name in options.only:
            shape = shapes[name]
            yield f"\n{name}: {shape.runs:,} runs, {shape.series} series of {shape.points:,} points = {shape.total:,}"
            mine, found = by_us(shape)
            yield told("ours", shape.runs, _complete(shape, found), mine)
            yield f"    {', '.join(mine.output.splitlines()[-2:])}"
            if name == "many":
                again, _ = by_us(shape)
                yield f"  again: {again.wall:.1f} s, {', '.join(again.output.splitlines()[-2:])}"
            elif options.peer_python:
                theirs, found = by_peer(shape)
                yield told("neptune-exporter", shape.runs, _complete(shape, found), theirs)
                yield compared(theirs, mine)
                without = theirs.less(idle["neptune-exporter"]), mine.less(idle["ours"])
                yield compared(*without, note=", without imports and session")


def _complete(shape: Shape, found: int) -> int:
    if found != shape.total:
        raise SystemExit(f"exported {found:,} points of {shape.total:,}")
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="a Python that has neptune-exporter's dependencies")
    parser.add_argument("--peer-src", help="the src folder of neptune-exporter's checkout")
    names = ["small", "long", "many"]
    parser.add_argument("--only", nargs="*", default=names, choices=names, help="projects to measure")
    parser.add_argument("--runs", type=int, default=500, help="runs of the project of small runs")
    parser.add_argument("--long-runs", type=int, default=8, help="runs of the project of long runs")
    parser.add_argument("--points", type=int, default=20_000, help="points of each of their 5 series")
    parser.add_argument("--many", type=int, default=25_000, help="runs of the project of runs of one moment")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="neptune_assets-bench-"))
    try:
        for line in report(options, work):
            print(line, flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
