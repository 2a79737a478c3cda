"""A thousand kills at random moments of all that writes: nothing is lost, doubled, or half taken for whole.

They hit the work of the power cuts' scenarios, and one in twenty more the real command on a project of 300 runs.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from neptune_assets.lake.layout import safe_name
from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings
from neptune_assets_tests.powercut.disk import Tree, fast_place, put
from neptune_assets_tests.powercut.scenarios import SCENARIOS

PROJECT = "bench/project"
RUNS = 300
KILLS = int(os.environ.get("KILLS", "1000"))
"""KILLS=50 make proofs: fewer, where half an hour is too long."""

# Every victim is a process of its own, forked from one that has imported everything: a start costs no imports.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "adbc_driver_sqlite.dbapi",
        "anyio._backends._asyncio",
        "dagster._cli",
        "h2.connection",
        "mlflow.store.tracking.sqlalchemy_store",
        "neptune_assets.definitions",
        "neptune_assets.targets.mlflow.load",
        "neptune_assets.targets.wandb.load",
        "neptune_assets_tests.powercut.scenarios",
        "neptune_assets_tests.support.ingest",
        "neptune_assets_tests.support.server",
        "uvicorn.protocols.http.httptools_impl",
        "uvloop",
        "wandb",
    ]
)

DEFINITIONS = """
from neptune_assets.build import build_defs
from neptune_assets.migration_settings import Settings
defs = build_defs(Settings.model_validate({settings!r}), ["bench/project"], prefix="kill")
"""


class Bench:
    """A project of some hundred runs, and the command that materializes it into a lake."""

    def __init__(self, root: Path) -> None:
        self.root = root
        command = [sys.executable, "-m", "neptune_assets_tests.benchmarks.generate", "--out", str(root / "export")]
        subprocess.run([*command, "--runs", str(RUNS), "--points", "20"], check=True)

    def start(self, lake: Path) -> BaseProcess:
        export = {"data": str(self.root / "export/data"), "files": str(self.root / "export/files")}
        settings = {"source": {"export": export}, "lake": {"root": str(lake)}}
        file = self.root / "kill_definitions.py"
        file.write_text(DEFINITIONS.format(settings=settings), encoding="utf-8")
        home = self.root / "home"
        home.mkdir(exist_ok=True)
        command = ["asset", "materialize", "-f", str(file), "--select", 'key:"kill/lake/runs"', "--partition", PROJECT]
        process = FORKS.Process(target=dagster_command, args=(command, str(home)))
        process.start()
        return process

    def touch(self) -> None:
        """Give every part a new time, so that every run counts as changed and is replaced."""
        now = time.time()
        for part in (self.root / "export/data").rglob("*.parquet"):
            os.utime(part, (now, now))

    def finish(self, lake: Path) -> float:
        start = time.monotonic()
        process = self.start(lake)
        process.join(300)
        assert process.exitcode == 0
        return time.monotonic() - start


def dagster_command(arguments: list[str], home: str) -> None:
    """Do what the command `dagster` does, quietly, and end with its exit status."""
    from dagster._cli import create_dagster_cli

    os.environ["DAGSTER_HOME"] = home
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    create_dagster_cli()(arguments)


def digests(lake: Path) -> dict[str, tuple[str, str, int]]:
    records = Lake(LakeSettings(root=str(lake))).project(PROJECT).records()
    return {run_id: (record.digest, record.state, record.total_rows) for run_id, record in records.items()}


def whole_runs(lake: Path) -> dict[str, int]:
    """Runs that a reader of the bare format takes for complete (they have a part 0), and the rows it would read."""
    rows: dict[str, int] = {}
    for first in (lake / "data" / safe_name(PROJECT)).glob("*_part_0.parquet"):
        parts = first.parent.glob(first.name.replace("_part_0.parquet", "_part_*.parquet"))
        run_id = pq.read_table(first, columns=["run_id"])["run_id"][0].as_py()
        rows[run_id] = sum(pq.ParquetFile(part).metadata.num_rows for part in parts)
    return rows


class Victim:
    """The work of a scenario in a process that is killed, and what it had said by then."""

    def __init__(self, name: str, root: Path) -> None:
        self.labels: set[str] = set()
        self._said, says = FORKS.Pipe(duplex=False)
        self._process = FORKS.Process(target=work, args=(name, root, says))
        self._process.start()
        says.close()
        assert self._said.recv_bytes() == b"begun"

    def kill(self) -> bool:
        """Kill it and return True, or False if it had ended by itself."""
        self._process.kill()
        self._process.join()
        assert self._process.exitcode in {0, -signal.SIGKILL}
        with self._said, suppress(EOFError):
            while True:
                self.labels.add(self._said.recv_bytes().decode())
        return self._process.exitcode != 0

    def finish(self) -> float:
        """Let it end by itself; return the seconds that took."""
        start = time.monotonic()
        self._process.join()
        assert not self.kill()
        return time.monotonic() - start


def work(name: str, root: Path, says: Connection) -> None:
    """Do the work of a scenario, quietly."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    says.send_bytes(b"begun")
    SCENARIOS[name].work(root, lambda text: says.send_bytes(text.encode()))
    says.send_bytes(b"done")


class Killing:
    """Kills the work of one scenario at random moments, each time on what its user had before."""

    def __init__(self, name: str, base: Path) -> None:
        self.name, self.scenario, self.base, self.root = name, SCENARIOS[name], base, base / "root"
        base.mkdir()
        self.scenario.prepare(self.root)
        found = [path for path in (self.root, *self.root.rglob("*")) if path.exists()]
        self.before: Tree = {
            str(path.relative_to(base)): None if path.is_dir() else path.read_bytes() for path in found
        }
        self.ended = 0
        self.seconds = Victim(name, self.root).finish()

    def kill(self, chance: random.Random) -> None:
        """Kill it once; what is left must be right, and the work done again must end as if nothing had been."""
        while True:
            put(self.before, self.base, self.root)
            victim = Victim(self.name, self.root)
            moment = chance.uniform(0, self.seconds)
            time.sleep(moment)
            # How long the work takes changes with what else the machine does: two kills in three are to hit.
            if victim.kill():
                self.seconds *= 1.02
                break
            self.ended += 1
            self.seconds *= 0.96
        try:
            self.scenario.check(self.root, frozenset(victim.labels))
            self.scenario.converge(self.root)
        except Exception as error:
            raise AssertionError(f"{self.name}: killed after {moment:.3f} s, had said {victim.labels}") from error


@pytest.fixture
def place() -> Iterator[Path]:
    with fast_place() as path:
        yield path


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_work_that_was_killed_leaves_the_old_or_the_new_and_is_done_again(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(20260306)
    start = time.monotonic()
    killings = [Killing(name, place / str(number)) for number, name in enumerate(SCENARIOS)]
    for kill in range(1, KILLS + 1):
        killings[kill % len(killings)].kill(chance)
        if kill % 50 == 0 or kill == KILLS:
            with capsys.disabled():
                print(f"\n{kill:5,} kills in {time.monotonic() - start:.0f} s", end="", flush=True)
    for number, killing in enumerate(killings):
        hit = len(range(1, KILLS + 1)[(number - 1) % len(killings) :: len(killings)])
        with capsys.disabled():
            print(f"\n{hit:5,} kills of: {killing.name} ({killing.ended} more came after its end)", end="", flush=True)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_killed_materialization_is_repaired_by_the_next_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    undisturbed = tmp_path / "undisturbed"
    bench.finish(tmp_path / "first")  # the imports are in the time of this one
    seconds = bench.finish(undisturbed)
    expected = digests(undisturbed)
    assert len(expected) == RUNS
    assert {state for _, state, _ in expected.values()} == {"complete"}
    chance = random.Random(20260305)
    interrupted = 0
    lake = tmp_path / "lake"
    kills = max(1, KILLS // 20)
    for kill in range(kills):
        # Fresh lakes, and lakes whose runs all changed: half of the kills hit runs that are being replaced.
        if kill % 2 == 0:
            shutil.rmtree(lake, ignore_errors=True)
        else:
            bench.touch()
        process = bench.start(lake)
        time.sleep(chance.uniform(0.3, 0.95) * seconds)
        # On a machine that got faster since it was timed, some processes are done before their kill.
        interrupted += process.is_alive()
        process.kill()
        process.join()
        if (lake / "data" / safe_name(PROJECT)).exists():
            for run_id, rows in whole_runs(lake).items():
                assert rows == expected[run_id][2], f"{run_id} looks whole after kill {kill} and is not"
            committed = digests(lake) if PROJECT in Lake(LakeSettings(root=str(lake))).projects() else {}
            assert committed.items() <= expected.items()
        bench.finish(lake)
        assert digests(lake) == expected
        assert whole_runs(lake) == {run_id: rows for run_id, (_, _, rows) in expected.items()}
    assert interrupted > kills // 2, "most kills came after the end: the moments do not test anything"
