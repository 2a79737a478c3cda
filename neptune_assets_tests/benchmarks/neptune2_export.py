"""Exports of one Neptune 2 server, ours beside neptune-exporter's: runs and points a second, CPU seconds, peak memory.

``python -m neptune_assets_tests.benchmarks.neptune2_export --peer-python ... --peer-src ...`` fills a store, serves it
with this project's own server, and lets both export the same projects from it, one after the other. Without the peer
only our side is measured. ``many`` holds 25,000 runs created in one millisecond, which only ours exports, twice: the
second time nothing may be read. The server's own CPU seconds are told for every export.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neptune_assets.schema import AttributeType
from neptune_assets.server.store.projects import Store
from neptune_assets.server.store.runs import NewRun
from neptune_assets.server.store.values import encode
from neptune_assets_tests.benchmarks.neptune3_export import BASE_MS, Measured, measure, points_in
from neptune_assets_tests.support.server import server_process

SCALE = 1_000_000
"""Micro-steps."""


@dataclass(frozen=True)
class Shape:
    """A project: so many runs, float series of so many points each, parameters; all runs created at one moment."""

    name: str
    runs: int
    series: int
    points: int
    parameters: int

    @property
    def project(self) -> str:
        """Name of the project."""
        return f"bench/{self.name}"

    @property
    def total(self) -> int:
        """Float points of all runs."""
        return self.runs * self.series * self.points


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


def export_ours(project: str, root: Path, client: str) -> None:
    """Bring one project from the server of NEPTUNE_API_TOKEN into a lake, as the asset does."""
    from neptune_assets.lake.writer import LakeWriter
    from neptune_assets.settings import Filters, LakeSettings, Neptune2Source
    from neptune_assets.sources.neptune2.source import Neptune2

    source = Neptune2(Neptune2Source.model_validate({"client": client}), Filters())
    report = LakeWriter(LakeSettings(root=str(root)), source).write_project(project)
    if report.failed or report.partial:
        raise SystemExit(f"failed: {report.failed}, partial: {report.partial}")
    print(f"new {len(report.new):,}, changed {len(report.changed):,}, skipped {len(report.skipped):,}, ", end="")
    print(f"{source.requests:,} requests")


def peer_command(python: str, project: str, work: Path) -> list[str]:
    """The peer's own command line."""
    main = "import sys; from neptune_exporter.main import main; sys.exit(main())"
    places = ["-d", str(work / "data"), "-f", str(work / "files"), "--error-report-file", str(work / "errors.jsonl")]
    places += ["--log-file", str(work / "log.txt")]
    return [python, "-c", main, "export", "--exporter", "neptune2", "-p", project, "--no-progress", *places]


def told(who: str, shape: Shape, measured: Measured, data: Path) -> str:
    """One line of figures."""
    found = points_in(data)
    return (
        f"  {who:18} {measured.wall:7.1f} s wall, {measured.cpu:6.1f} s CPU, {measured.megabytes:6.0f} MB, "
        f"{found:,} points: {found / measured.wall:,.0f}/s, {shape.runs / measured.wall:,.1f} runs/s; "
        f"the server used {measured.server_cpu:.1f} s CPU"
    )


def since(measured: Measured, idle: Measured) -> tuple[float, float, float]:
    """Seconds by the wall, of CPU, and of CPU with the server's, without those that an empty project takes."""
    cpu = max(measured.cpu - idle.cpu, 0.01)
    return max(measured.wall - idle.wall, 0.01), cpu, cpu + max(measured.server_cpu - idle.server_cpu, 0.0)


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
        environment = {"NEPTUNE_API_TOKEN": server.token, "OAUTHLIB_INSECURE_TRANSPORT": "1"}
        module = [sys.executable, "-W", "ignore", "-m", "neptune_assets_tests.benchmarks.neptune2_export"]

        def fresh() -> None:
            """Start the server anew: what it remembers of one export must not help the next."""
            server.stop()
            server.start()

        def ours(shape: Shape, client: str) -> tuple[Measured, Path]:
            fresh()
            root = work / f"ours-{client}-{shape.name}"
            command = [*module, "--export", shape.project, "--root", str(root), "--client", client]
            return measure(command, environment, server), root / "data"

        def peers(shape: Shape) -> tuple[Measured, Path]:
            fresh()
            place = work / f"peer-{shape.name}"
            place.mkdir()
            command = peer_command(options.peer_python, shape.project, place)
            return measure(command, {**environment, "PYTHONPATH": options.peer_src}, server), place / "data"

        idle = {"ours": ours(shapes["empty"], "fast")[0]}
        if options.peer_python:
            idle["neptune-exporter"] = peers(shapes["empty"])[0]
        for who, measured in idle.items():
            yield f"{who}, an empty project (imports, session): {measured.wall:.1f} s, {measured.cpu:.1f} s CPU"
        for name in options.only:
            shape = shapes[name]
            yield f"\n{name}: {shape.runs:,} runs, {shape.series} series of {shape.points:,} points = {shape.total:,}"
            rates = {}
            for client in options.clients:
                measured, data = ours(shape, client)
                yield told(f"ours, {client}", shape, measured, data)
                yield f"    {measured.output.splitlines()[-1]}"
                rates[f"ours, {client}"] = since(measured, idle["ours"])
            if name == "many":
                again, _ = ours(shape, options.clients[0])
                yield f"  again: {again.wall:.1f} s, {again.output.splitlines()[-1]}"
            elif options.peer_python:
                measured, data = peers(shape)
                yield told("neptune-exporter", shape, measured, data)
                theirs = since(measured, idle["neptune-exporter"])
                for who, own in rates.items():
                    wall, client_cpu, all_cpu = (their / mine for their, mine in zip(theirs, own, strict=True))
                    yield (
                        f"  {who}: {wall:.1f} times as fast by the wall, {client_cpu:.1f} by CPU of the exporter, "
                        f"{all_cpu:.1f} by CPU of exporter and server, all without imports and session"
                    )


def main() -> None:
    """Command line; the first three options are for processes that this one starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--client", default="fast", help=argparse.SUPPRESS)
    parser.add_argument("--peer-python", help="a Python that has neptune-exporter's dependencies")
    parser.add_argument("--peer-src", help="the src folder of neptune-exporter's checkout")
    names = ["small", "long", "many"]
    parser.add_argument("--only", nargs="*", default=names, choices=names, help="projects to measure")
    parser.add_argument("--runs", type=int, default=500, help="runs of the project of small runs")
    parser.add_argument("--long-runs", type=int, default=8, help="runs of the project of long runs")
    parser.add_argument("--points", type=int, default=20_000, help="points of each of their 5 series")
    parser.add_argument("--many", type=int, default=25_000, help="runs of the project of runs of one moment")
    parser.add_argument("--clients", nargs="*", default=["fast"], choices=["fast", "public"], help="ways to read")
    options = parser.parse_args()
    if options.export:
        export_ours(options.export, options.root, options.client)
        return
    work = Path(tempfile.mkdtemp(prefix="neptune_assets-bench-"))
    try:
        for line in report(options, work):
            print(line, flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
