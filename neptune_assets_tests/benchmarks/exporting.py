"""Measured exports: ours and neptune-exporter's, each in a process of its own, from a server that just started.

``python -m neptune_assets_tests.benchmarks.exporting neptune3 bench/dense LAKE`` is what is measured of ours: it
imports nothing but what an export takes, while the benchmarks themselves import servers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neptune_assets_tests.support.server import ServerProcess


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


@dataclass
class Measured:
    """One process: wall seconds, CPU seconds of it, peak memory in MB, CPU seconds of the server meanwhile."""

    wall: float
    cpu: float
    megabytes: float
    server_cpu: float
    output: str

    def less(self, idle: Measured) -> Measured:
        """What it took beyond what an export of nothing takes."""
        return Measured(
            max(self.wall - idle.wall, 0.01),
            max(self.cpu - idle.cpu, 0.01),
            self.megabytes,
            max(self.server_cpu - idle.server_cpu, 0.0),
            self.output,
        )


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


def start_anew(server: ServerProcess, project: str) -> None:
    """Start the server anew and have it look at a project: what it keeps of one export must not help the next."""
    server.stop()
    with server.start().client() as client:
        client.post(
            "/api/leaderboard/v1/proto/leaderboard/entries/search/",
            params={"projectIdentifier": project, "type": "run"},
            json={"attributeFilters": [{"path": "sys/id"}], "pagination": {"limit": 1, "offset": 0}},
        ).raise_for_status()


def ours(kind: str, project: str, root: Path, settings: dict[str, Any]) -> list[str]:
    """The command of our export."""
    module = [sys.executable, "-W", "ignore", "-m", "neptune_assets_tests.benchmarks.exporting"]
    return [*module, kind, project, str(root), "--settings", json.dumps(settings)]


def peers(kind: str, python: str, project: str, work: Path) -> list[str]:
    """The peer's own command line."""
    main = "import sys; from neptune_exporter.main import main; sys.exit(main())"
    places = ["-d", str(work / "data"), "-f", str(work / "files"), "--error-report-file", str(work / "errors.jsonl")]
    places += ["--log-file", str(work / "log.txt")]
    return [python, "-c", main, "export", "--exporter", kind, "-p", project, "--no-progress", *places]


def points_in(data: Path) -> int:
    """Float points in all Parquet files below a directory."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    total = 0
    for path in data.rglob("*_part_*.parquet"):
        kinds = pq.read_table(path, columns=["attribute_type"], read_dictionary=["attribute_type"])["attribute_type"]
        total += pc.sum(pc.equal(kinds.cast("string"), "float_series")).as_py() or 0
    return total


def told(who: str, runs: int, found: int, measured: Measured) -> str:
    """One line of figures."""
    return (
        f"  {who:16} {measured.wall:7.1f} s wall, {measured.cpu:6.1f} s CPU, {measured.megabytes:6.0f} MB; "
        f"the server {measured.server_cpu:5.1f} s CPU; {found:,} points, {found / measured.wall:,.0f} points/s, "
        f"{runs / measured.wall:,.1f} runs/s"
    )


def compared(their: Measured, our: Measured, note: str = "") -> str:
    """How many times as fast, and how many times as small, we are."""
    together = (their.cpu + their.server_cpu) / (our.cpu + our.server_cpu)
    return (
        f"  ratio: {their.wall / our.wall:.1f} by the wall, {their.cpu / our.cpu:.1f} by CPU of the exporter, "
        f"{together:.1f} by CPU of exporter and server, {their.megabytes / our.megabytes:.1f} by peak memory{note}"
    )


def main() -> None:
    """Bring one project from the server of NEPTUNE_API_TOKEN into a lake, as the asset does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["neptune2", "neptune3"])
    parser.add_argument("project")
    parser.add_argument("root", help="the lake")
    parser.add_argument("--settings", type=json.loads, default={}, help="settings of the source, as JSON")
    options = parser.parse_args()
    from neptune_assets.lake.writer import LakeWriter
    from neptune_assets.settings import Filters, LakeSettings
    from neptune_assets.sources.neptune2.settings import Neptune2Source
    from neptune_assets.sources.neptune3.settings import Neptune3Source

    source: Any
    if options.kind == "neptune2":
        from neptune_assets.sources.neptune2.source import Neptune2

        source = Neptune2(Neptune2Source.model_validate(options.settings), Filters())
    else:
        from neptune_assets.sources.neptune3.source import Neptune3

        source = Neptune3(Neptune3Source.model_validate(options.settings), Filters())
    report = LakeWriter(LakeSettings(root=options.root), source).write_project(options.project)
    if report.failed or report.partial:
        raise SystemExit(f"failed: {report.failed}, partial: {report.partial}")
    print(f"new {len(report.new):,}, changed {len(report.changed):,}, skipped {len(report.skipped):,}")
    if options.kind == "neptune2":
        print(f"{source.requests:,} requests")


if __name__ == "__main__":
    main()
