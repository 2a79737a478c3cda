"""Thirty kills at random moments of a load into each target: the next load ends as an undisturbed one does.

Real processes, real SIGKILL. Processes are forked from one that has imported everything, so that the moments lie in
the load and not in Python's start.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.testing.lakes import file, files, histograms, make_lake, metric, params, texts
from neptune_assets.testing.targets import BORN, PROJECT, Held, Place, load, settings_of
from neptune_assets_tests.targets.mlflow.place import MlflowPlace
from neptune_assets_tests.targets.wandb.test_conformance import StagedPlace

KILLS = 30
RUNS = 8

NURSERY = """
import importlib, os, sys
from pathlib import Path
import pandas
from neptune_assets.testing.targets import load
Place = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
target = Place(Path(sys.argv[3])).open()
target.check()
target.close()
for line in sys.stdin:
    root = Path(line.rstrip("\\n"))
    pid = os.fork()
    if pid == 0:
        os._exit(0 if load(Place(root), root).ok else 1)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """Starts loads of the lake beneath a directory, each in a process of its own."""

    def __init__(self, place_class: type[Place], root: Path) -> None:
        command = [sys.executable, "-c", NURSERY, place_class.__module__, place_class.__name__, str(root)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _line(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def start(self, root: Path) -> int:
        """Begin a load and return the id of its process."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{root}\n")
        self._process.stdin.flush()
        return self._line()

    def wait(self) -> int:
        """Return the exit code of the load that was started last."""
        return self._line()

    def finish(self, root: Path) -> float:
        start = time.monotonic()
        self.start(root)
        assert self.wait() == 0
        return time.monotonic() - start

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def rows(run: int, version: int) -> list[dict[str, Any]]:
    shift = version * 1_000 + run
    return [
        *params({"sys/creation_time": BORN, "lr": shift / 7, "name": f"run {shift}", "sys/tags": [f"v{version}"]}),
        *(row for key in range(4) for row in metric(f"m/{key}", [shift + n / 3 for n in range(250 + 50 * version)])),
        *metric("fraction", [float(shift), 2.0], [Decimal("0.25"), Decimal("0.5")]),
        *texts("log", [f"line {n} of {shift}" for n in range(100)]),
        *histograms("h", [([0.0, 1.0, 2.0], [float(shift), float(n)]) for n in range(10)]),
        *files("series", [f"{shift} {n}".encode() for n in range(3)], extension="txt"),
        file("data", f"{shift}".encode() * 10_000, "data.bin"),
    ]


def write_lake(root: Path, version: int) -> None:
    runs = {f"RUN-{run}": rows(run, version) for run in range(RUNS)}
    make_lake(root / "lake", {PROJECT: runs}, settings=settings_of(root))


def held(place: Place) -> dict[str, Held]:
    """What the target holds of each run, without the target's own ids, which are new where a run is made again."""
    found = place.held(PROJECT)
    assert all(len(same) == 1 for same in found.values()), "a run is there twice"
    return {run_id: replace(same[0], target_id="") for run_id, same in found.items()}


@pytest.fixture(params=[StagedPlace, MlflowPlace], ids=["wandb", "mlflow"])
def place_class(request: pytest.FixtureRequest) -> type[Place]:
    chosen: type[Place] = request.param
    return chosen


@pytest.fixture
def nursery(place_class: type[Place], tmp_path: Path) -> Iterator[Nursery]:
    warm = tmp_path / "warm"
    warm.mkdir()
    made = Nursery(place_class, warm)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_killed_load_is_repaired_by_the_next_one(place_class: type[Place], nursery: Nursery, tmp_path: Path) -> None:
    expected, seconds = [], []
    for version in range(2):
        root = tmp_path / f"undisturbed_{version}"
        write_lake(root, version)
        place = place_class(root)
        seconds.append(nursery.finish(root))
        expected.append(held(place))
        assert len(expected[version]) == RUNS
        assert all(run.digest for run in expected[version].values())
    chance = random.Random(20260306)
    interrupted = 0
    root, version = tmp_path, 0
    for kill in range(KILLS):
        # Empty targets, and targets whose runs all changed since they were loaded.
        version = 0 if kill % 2 == 0 else 1
        if version == 0:
            root = tmp_path / f"kill_{kill}"
        write_lake(root, version)
        place = place_class(root)
        process = nursery.start(root)
        time.sleep(chance.uniform(0.02, 0.95) * seconds[version])
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        code = nursery.wait()
        interrupted += code == -signal.SIGKILL
        assert code in {0, -signal.SIGKILL}
        if code == 0:
            seconds[version] *= 0.7  # the machine was busier when this was measured: kill earlier from now on
        for run_id, run in held(place).items():
            if run.digest is not None:
                assert run in [side[run_id] for side in expected], f"{run_id} looks whole after kill {kill} and is not"
        nursery.finish(root)
        assert held(place) == expected[version], f"after kill {kill}"
        again = load(place, root)
        assert (again.loaded, len(again.skipped), again.ok) == ([], RUNS, True)
        assert not list((root / "lake/wandb").glob(".staging/*/*"))
    assert interrupted > KILLS // 2, "most kills came after the end: the moments do not test anything"
