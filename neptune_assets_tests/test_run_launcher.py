"""Killed runs block nothing: with the instance that this project ships, from the command line and from the daemon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from neptune_assets.lake.reader import Lake
from neptune_assets.settings import LakeSettings

PROJECT = "bench/project"
HOME = Path(__file__).parent.parent / "dagster_home"

DEFINITIONS = """
import time
from pathlib import Path
import dagster as dg
from neptune_assets.build import build_defs
from neptune_assets.migration_settings import Settings
from neptune_assets.sources.registry import open_source

settings = Settings.model_validate({settings!r})

class Held:
    '''The source, which does not list its runs while a file exists.'''

    def __init__(self, source):
        self._source = source

    def __getattr__(self, name):
        return getattr(self._source, name)

    def runs(self, *arguments):
        while Path({hold!r}).exists():
            Path({reached!r}).touch()
            time.sleep(0.05)
        return self._source.runs(*arguments)

source = dg.ResourceDefinition(lambda _: Held(open_source(settings)))
defs = build_defs(settings, ["bench/project"], prefix="kill", resource_overrides={{"kill_source": source}})
"""


class Instance:
    """A home with the shipped dagster.yaml, a small export, and a source that can be held."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hold, self.reached = root / "hold", root / "reached"
        self.home = root / "home"
        self.home.mkdir()
        shutil.copy(HOME / "dagster.yaml", self.home)
        export = root / "export"
        command = [sys.executable, "-m", "neptune_assets_tests.benchmarks.generate", "--out", str(export)]
        subprocess.run([*command, "--runs", "3", "--points", "5"], check=True)
        settings = {
            "source": {"export": {"data": str(export / "data"), "files": str(export / "files")}},
            "lake": {"root": str(root / "lake")},
        }
        text = DEFINITIONS.format(settings=settings, hold=str(self.hold), reached=str(self.reached))
        (root / "kill_definitions.py").write_text(text, encoding="utf-8")

    def command(self, *arguments: str, name: str = "dagster") -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(Path(sys.executable).with_name(name)), *arguments, "-f", str(self.root / "kill_definitions.py")],
            env={**os.environ, "DAGSTER_HOME": str(self.home)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def materialize(self) -> subprocess.Popen[bytes]:
        return self.command("asset", "materialize", "--select", 'key:"kill/lake/runs"', "--partition", PROJECT)

    def kill_one(self) -> None:
        """Start the command, and kill it once its step lists the source's runs."""
        self.hold.touch()
        process = self.materialize()
        wait_for(self.reached.exists, "the step to list its runs")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.hold.unlink()
        self.reached.unlink()

    @contextmanager
    def runs(self) -> Iterator[Callable[[], list[dg.DagsterRunStatus]]]:
        """States of all runs, the oldest first."""
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            yield lambda: [run.status for run in reversed(instance.get_runs())]

    def complete(self) -> int:
        lake = Lake(LakeSettings(root=str(self.root / "lake")))
        return sum(record.complete for record in lake.project(PROJECT).records().values())


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} s in vain for {what}"
        time.sleep(0.2)


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    return Instance(tmp_path)


def test_a_killed_command_is_recognized_and_does_not_block_the_next_one(instance: Instance) -> None:
    instance.kill_one()
    with dg.DagsterInstance.from_config(str(instance.home)) as dagster:
        (killed,) = dagster.get_runs()
        assert killed.status == dg.DagsterRunStatus.STARTED, "Dagster itself does not notice"
        health = dagster.run_launcher.check_run_worker_health(killed)
        assert health.status.value == "FAILED"
        assert "has ended without finishing it" in str(health.msg)
    assert instance.materialize().wait(timeout=180) == 0
    assert instance.complete() == 3


def test_a_run_whose_process_works_is_healthy(instance: Instance) -> None:
    instance.hold.touch()
    process = instance.materialize()
    try:
        wait_for(instance.reached.exists, "the step to list its runs")
        with dg.DagsterInstance.from_config(str(instance.home)) as dagster:
            (running,) = dagster.get_runs()
            assert dagster.run_launcher.check_run_worker_health(running).status.value == "RUNNING"
    finally:
        instance.hold.unlink()
        assert process.wait(timeout=180) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_after_three_kills_commands_and_queued_runs_go_on(instance: Instance) -> None:
    for _ in range(3):
        instance.kill_one()
    assert instance.materialize().wait(timeout=180) == 0
    with instance.runs() as states:
        assert [state.value for state in states()] == ["STARTED"] * 3 + ["SUCCESS"]
        tags = json.dumps({"dagster/partition": PROJECT})
        launch = ["job", "launch", "-j", "kill_lake", "--tags", tags]
        daemon = instance.command("run", name="dagster-daemon")
        try:
            assert instance.command(*launch).wait(timeout=180) == 0
            wait_for(lambda: [state.value for state in states()] == ["FAILURE"] * 3 + ["SUCCESS"] * 2, "the queue", 400)
            # A run that the daemon started, killed with its whole process group of workers.
            instance.hold.touch()
            assert instance.command(*launch).wait(timeout=180) == 0
            wait_for(instance.reached.exists, "the queued run to list its runs", 300)
            for pid in worker_pids(instance):
                os.kill(pid, signal.SIGKILL)
            instance.hold.unlink()
            instance.reached.unlink()
            assert instance.command(*launch).wait(timeout=180) == 0
            wait_for(lambda: [state.value for state in states()[5:]] == ["FAILURE", "SUCCESS"], "the queue again", 400)
        finally:
            os.killpg(daemon.pid, signal.SIGTERM)
            daemon.wait()
    assert instance.complete() == 3


def worker_pids(instance: Instance) -> list[int]:
    with dg.DagsterInstance.from_config(str(instance.home)) as dagster:
        started = dagster.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        events = [dagster.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_START) for run in started]
    return [record.event_log_entry.dagster_event.pid for event in events for record in event.records]
