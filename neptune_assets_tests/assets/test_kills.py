"""A thousand kills at random moments of the real command: nothing is lost, doubled, or half taken for whole."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from neptune_assets.lake.layout import safe_name
from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings

PROJECT = "bench/project"
RUNS = 300
KILLS = int(os.environ.get("KILLS", "1000"))
"""KILLS=50 make proofs: fewer, where an hour and a half is too long."""

# Every command is a process of its own, forked from one that has imported everything: a start costs no imports.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["dagster._cli", "neptune_assets.definitions", "neptune_assets.lake.writer"])

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
    for kill in range(KILLS):
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
    assert interrupted > KILLS // 2, "most kills came after the end: the moments do not test anything"
