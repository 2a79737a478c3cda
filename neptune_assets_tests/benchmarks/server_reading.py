"""What the server takes to answer the real neptune-query over a large lake: seconds, its CPU seconds and peak memory.

``python -m neptune_assets_tests.benchmarks.server_reading`` makes the lake of ``made_runs`` (10,000 runs in one
project, 100 million points in another; minutes, about half a GB), serves it, and asks. ``--lake`` takes one that was
made before.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import neptune_query as nq
from neptune_query import filters
from neptune_query import runs as nq_runs

from neptune_assets_tests.benchmarks.exporting import cpu_of
from neptune_assets_tests.benchmarks.made_runs import POINTS, TABLE, Made, write_made_lake
from neptune_assets_tests.support.server import ServerProcess, server_process

Question = tuple[str, Callable[[], Any]]


def forget_peak(server: ServerProcess) -> None:
    """Let the peak memory of the server process begin at what it holds now."""
    assert server.process is not None
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


def peak_megabytes(server: ServerProcess) -> float:
    """Peak memory of the server process since it was forgotten last."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def table_questions(shape: Made) -> Iterator[Question]:
    """Questions about many runs of few points."""
    project = shape.project
    half = "run-0[0-4].*"
    yield "first question: list_runs", lambda: nq_runs.list_runs(project=project)
    yield "list_experiments, regex", lambda: nq.list_experiments(project=project, experiments=half)
    yield "list_attributes, all", lambda: nq.list_attributes(project=project)
    yield "list_attributes of half of the runs", lambda: nq.list_attributes(project=project, experiments=half)
    by_metric = filters.Attribute("metrics/m001", type="float_series")
    yield (
        "table, 20 best by a metric",
        lambda: nq.fetch_experiments_table(
            project=project, attributes="params/p00.*", sort_by=by_metric, sort_direction="asc", limit=20
        ),
    )
    yield (
        "table of all runs, 4 metrics and 4 parameters",
        lambda: nq.fetch_experiments_table(
            project=project, attributes=r"metrics/m.*|params/p00[0-3]", type_suffix_in_column_names=True
        ),
    )
    query = filters.Filter.gt(by_metric, 0.5) & filters.Filter.lt(filters.Attribute("params/p000", type="float"), 0.0)
    yield (
        "table of runs by metric and parameter",
        lambda: nq.fetch_experiments_table(project=project, experiments=query, attributes="sys/tags"),
    )
    yield (
        "metrics of 1,000 runs",
        lambda: nq.fetch_metrics(project=project, experiments="run-00.*", attributes="metrics/m000"),
    )


def point_questions(shape: Made) -> Iterator[Question]:
    """Questions about few runs of many points."""
    project, last = shape.project, f"fork-{shape.forks}"
    series = "metrics/m00[0-9]"

    def metrics(experiments: Any, attributes: str, **options: Any) -> Callable[[], Any]:
        return lambda: nq.fetch_metrics(project=project, experiments=experiments, attributes=attributes, **options)

    def buckets(experiments: str, attributes: str) -> Callable[[], Any]:
        return lambda: nq.fetch_metric_buckets(project=project, experiments=experiments, y=attributes, limit=200)

    yield "first question: list_runs", lambda: nq_runs.list_runs(project=project)
    yield (
        "table of all runs, all metrics",
        lambda: nq.fetch_experiments_table(project=project, attributes=r"metrics/.*|long/.*"),
    )
    yield "one series of all runs, whole", metrics("run-.*", "metrics/m000")
    yield "tails of 100 points of all series", metrics(".*", "metrics/.*", tail_limit=100)
    yield "1,000 steps in the middle of all series", metrics(".*", "metrics/.*", step_range=(90_000.0, 90_999.0))
    yield "the longest series, whole", metrics(["run-00000"], "long/series")
    yield "the longest series, 1,000 steps", metrics(["run-00000"], "long/series", step_range=(5e6, 5e6 + 999))
    yield "buckets of 10 series of all runs", buckets("run-.*", series)
    yield "buckets of the longest series", buckets("run-00000", "long/series")
    yield "buckets of all series", buckets("run-.*", "metrics/.*")
    yield "10 series of the last fork, to the root", metrics([last], series)
    yield "10 series of the last fork, its own points", metrics([last], series, lineage_to_the_root=False)
    yield "eight at a time: four series, whole", lambda: at_once(8, metrics(["run-00001"], "metrics/m00[0-3]"))
    yield "eight at a time: buckets of the longest", lambda: at_once(8, buckets("run-00000", "long/series"))


def at_once(count: int, ask: Callable[[], Any]) -> Any:
    """Ask the same from several threads at the same time; return the last answer."""
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(ask())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(answers) != count:
        raise SystemExit("some of the questions failed")
    return answers[-1]


def size_of(answer: Any) -> str:
    """Say how much was answered."""
    return " x ".join(f"{length:,}" for length in answer.shape) if hasattr(answer, "shape") else f"{len(answer):,}"


def report(lake: Path, work: Path, shapes: list[Made], options: list[str]) -> Iterator[str]:
    """Ask everything and tell it line by line."""
    asked = dict(zip((TABLE.project, POINTS.project), (table_questions, point_questions), strict=True))
    with server_process(work / "store", lake=lake, options=options) as server:
        nq.set_api_token(server.token)
        yield f"the server, started: {peak_megabytes(server):.0f} MB"
        for shape in shapes:
            yield f"{shape.project}: {shape.runs + shape.forks:,} runs, {shape.total:,} points"
            for name, ask in asked[shape.project](shape):
                forget_peak(server)
                before, begin = cpu_of(server), time.perf_counter()
                answer = ask()
                wall, cpu = time.perf_counter() - begin, cpu_of(server) - before
                yield (
                    f"  {name:46} {size_of(answer):>18}  {wall:7.2f} s, server {cpu:6.2f} s CPU, "
                    f"peak {peak_megabytes(server):5.0f} MB"
                )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=Path, help="root of a lake that made_runs wrote")
    parser.add_argument("--only", choices=["table", "points"], help="one of the projects")
    parser.add_argument("--memory-mb", default="512", help="the server's option of this name")
    given = parser.parse_args()
    shapes = [shape for shape in (TABLE, POINTS) if given.only is None or shape.project.endswith(given.only)]
    work = Path(tempfile.mkdtemp(prefix="neptune_assets-bench-"))
    try:
        if given.lake is None:
            write_made_lake(work / "lake", shapes)
        lake = given.lake or work / "lake"
        for line in report(lake, work, shapes, ["--memory-mb", given.memory_mb]):
            print(line, flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
