"""A source whose runs are made while they are read: lakes of any size without holding, or writing, an export first.

``python -m neptune_assets_tests.benchmarks.made_runs --out DIR`` writes the lake that ``server_reading`` serves: a
project of 10,000 runs and one of 100 million points. The same number of a run always gives the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from neptune_assets.errors import FileGoneError
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.schema import TIME_TYPE, Scope
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import Issue, RunEnd, RunInfo, RunRows, SourceFile
from neptune_assets.sources.rows import decimal_steps
from neptune_assets.testing.lakes import as_table, params

BASE_MS = 1_740_830_400_000
_BLOCK = 131_072


@dataclass(frozen=True)
class Made:
    """A project: so many runs, each with so many parameters and float series of so many points.

    ``long`` is the number of points of one more series, ``long/series``, which only the first run has. Every run of
    ``forks`` more is forked from the one before it, the first of them from the first run, in the middle of its series,
    and has a tenth of a run's points of its own after that.
    """

    project: str
    runs: int
    parameters: int
    series: int
    points: int
    long: int = 0
    forks: int = 0

    @property
    def total(self) -> int:
        """Float points of all runs."""
        return self.runs * self.series * self.points + self.long + self.forks * self.series * (self.points // 10)

    def run_ids(self) -> list[str]:
        """Ids of all runs: run-00000 ..., then fork-1 ..."""
        runs = [f"run-{number:05d}" for number in range(self.runs)]
        return runs + [f"fork-{number}" for number in range(1, self.forks + 1)]

    def fork_step(self, number: int) -> int:
        """The step at which the n-th fork, counted from 1, leaves its parent."""
        return self.points // 2 + (number - 1) * (self.points // 20)

    def first_step(self, number: int) -> int:
        """The first step of a run's own points."""
        return 0 if number < self.runs else self.fork_step(number - self.runs + 1) + 1

    def length(self, number: int) -> int:
        """How many points every series of a run has of its own."""
        return self.points if number < self.runs else self.points // 10


def series_values(number: int, series: int, count: int) -> np.ndarray:
    """Return the values of a run's series: walks that come from 32-bit floats, as most metrics do."""
    random = np.random.default_rng([number, series])
    return (np.cumsum(random.standard_normal(count, np.float32)) / 8).astype(np.float32).astype(np.float64)


def parameters_of(shape: Made, number: int) -> dict[str, object]:
    """Return the parameters of a run, those of the system first."""
    run_id = shape.run_ids()[number] if number >= shape.runs else f"run-{number:05d}"
    found: dict[str, object] = {
        "sys/id": f"MADE-{number + 1}",
        "sys/custom_run_id": run_id,
        "sys/name": run_id,
        "sys/creation_time": datetime.fromtimestamp(BASE_MS / 1_000 + number, UTC),
        "sys/tags": [f"group-{number % 4}"],
    }
    if number >= shape.runs:
        fork = number - shape.runs + 1
        found["sys/forking/parent"] = "run-00000" if fork == 1 else f"fork-{fork - 1}"
        found["sys/forking/step"] = float(shape.fork_step(fork))
    random = np.random.default_rng([number])
    for index in range(shape.parameters):
        value = float(random.standard_normal())
        found[f"params/p{index:03d}"] = (value, int(value * 1_000), f"text {value:.3f}", value > 0)[index % 4]
    return found


class MadeSource:
    """All of the projects; memory does not grow with them."""

    kind = "made"

    def __init__(self, shapes: Sequence[Made]) -> None:
        self._shapes = {shape.project: shape for shape in shapes}

    def projects(self) -> list[str]:
        """Names of all projects."""
        return sorted(self._shapes)

    def runs(self, project_id: str, scope: Scope = Scope.RUNS) -> list[RunInfo]:
        """All runs; there are no models."""
        return [RunInfo(run_id, "1") for run_id in self._shapes[project_id].run_ids()] if scope is Scope.RUNS else []

    def read(self, project_id: str, run_ids: Sequence[str], scope: Scope = Scope.RUNS) -> Iterator[RunRows | RunEnd]:
        """Make the runs' rows, a block of a series at a time."""
        shape = self._shapes[project_id]
        numbers = {run_id: number for number, run_id in enumerate(shape.run_ids())}
        for run_id in run_ids:
            for table in self._tables(shape, numbers[run_id]):
                for batch in as_table(project_id, run_id, table).to_batches():
                    yield RunRows(run_id, batch)
            yield RunEnd(run_id)

    def files(self, project_id: str, run_id: str, reference: str, scope: Scope = Scope.RUNS) -> Sequence[SourceFile]:
        """There are none."""
        raise FileGoneError(f"{reference!r} is not there.", hint="Made runs have no files.")

    def problems(self, project_id: str) -> Sequence[Issue]:
        """There are none."""
        return ()

    def _tables(self, shape: Made, number: int) -> Iterator[pa.Table]:
        yield as_table(shape.project, "", params(parameters_of(shape, number)))
        names = [(f"metrics/m{index:03d}", index, shape.length(number)) for index in range(shape.series)]
        if number == 0 and shape.long:
            names.append(("long/series", shape.series, shape.long))
        first = shape.first_step(number)
        small: list[pa.Table] = []
        for path, index, count in names:
            values = series_values(number, index, count)
            for start in range(0, count, _BLOCK):
                block = values[start : start + _BLOCK]
                steps = np.arange(first + start, first + start + len(block), dtype=np.int64)
                small.append(_points(path, steps, block))
            if sum(table.num_rows for table in small) >= _BLOCK:
                yield from small
                small = []
        if small:
            yield pa.concat_tables(small).combine_chunks()


def _points(path: str, steps: np.ndarray, values: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "attribute_path": pa.repeat(pa.scalar(path), len(steps)),
            "attribute_type": pa.repeat(pa.scalar("float_series"), len(steps)),
            "step": decimal_steps(steps * 1_000_000),
            "timestamp": pa.array(BASE_MS + steps * 10).cast(TIME_TYPE),
            "float_value": pa.array(values),
        }
    )


TABLE = Made("scale/table", runs=10_000, parameters=20, series=4, points=25)
POINTS = Made("scale/points", runs=8, parameters=20, series=57, points=200_000, long=5_380_000, forks=3)


def write_made_lake(root: Path, shapes: Sequence[Made]) -> None:
    """Write all projects into a lake."""
    writer = LakeWriter(LakeSettings(root=str(root)), MadeSource(shapes))
    for shape in shapes:
        report = writer.write_project(shape.project)
        if report.failed or report.partial:
            raise SystemExit(f"the lake could not be made: {report.failed or report.partial}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="root of the lake")
    write_made_lake(parser.parse_args().out, [TABLE, POINTS])


if __name__ == "__main__":
    main()
