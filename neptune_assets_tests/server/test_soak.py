"""Scripts log, the server is killed again and again, exports run meanwhile: at the end every point is there once.

Real clients, a real server process, the real command. The short form runs with the tests, the long one with
`make proofs`.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from neptune_assets.lake.reader import Lake
from neptune_assets.schema import AttributeType
from neptune_assets.settings import LakeSettings
from neptune_assets_tests.support.server import ServerProcess, server_process

PROJECT = "soak/project"

WRITER = """
import json, sys, time
from neptune_scale import Run

def main():
    number, seconds, pause = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    logged = 0
    # One client after the other resumes the run, as a training that is started again does.
    for _ in range(2):
        with Run(project="soak/project", run_id=f"writer-{number}", log_directory=sys.argv[4],
                 enable_console_log_capture=False, source_tracking_config=None) as run:
            run.log_configs({"number": number})
            end = time.monotonic() + seconds / 2
            while time.monotonic() < end:
                run.log_metrics({f"metric/{name}": logged * 10 + name + 0.1 for name in range(5)}, step=logged * 0.25)
                run.log_string_series({"line": f"line {logged}"}, step=logged * 0.25)
                logged += 1
                time.sleep(pause)
            run.add_tags([f"steps {logged}"])
    print(json.dumps(logged))

if __name__ == "__main__":
    main()
"""

NEPTUNE_COMMAND = "from neptune_scale.cli.commands import main; main()"
"""The command `neptune` of neptune-scale; neptune-client has one of the same name."""

DEFINITIONS = """
import dagster as dg
from neptune_assets.build import build_defs
from neptune_assets.settings import Settings
defs = dg.Definitions.merge(*(
    build_defs(Settings.model_validate(settings), ["soak/project"], prefix=name)
    for name, settings in {settings!r}.items()
))
"""


@dataclass(frozen=True)
class Soak:
    """How long, how many writers and kills, and how often to export."""

    seconds: float
    writers: int
    kills: int
    export_every: float
    pause: float


def soak(root: Path, plan: Soak) -> None:
    """Run the soak and compare both lakes with what the scripts say they logged."""
    (root / "writer.py").write_text(WRITER, encoding="utf-8")
    with server_process(root / "store") as server, ExitStack() as stack:
        exports = Exports(root, server)
        environment = {**os.environ, "NEPTUNE_API_TOKEN": server.token, "NEPTUNE_LOGGER_LEVEL": "error"}
        writers = [
            stack.enter_context(
                subprocess.Popen(
                    [
                        sys.executable,
                        str(root / "writer.py"),
                        str(number),
                        str(plan.seconds),
                        str(plan.pause),
                        str(root),
                    ],
                    env=environment,
                    stdout=subprocess.PIPE,
                    cwd=root,
                )
            )
            for number in range(plan.writers)
        ]
        stack.callback(lambda: [writer.kill() for writer in writers])
        chance = random.Random(7)
        begun = time.monotonic()
        moments = sorted(chance.uniform(0.1, 0.9) * plan.seconds for _ in range(plan.kills))
        next_export = plan.export_every
        while any(writer.poll() is None for writer in writers):
            now = time.monotonic() - begun
            if moments and now >= moments[0]:
                moments.pop(0)
                server.kill()
                time.sleep(chance.uniform(0.0, 1.0))
                server.start()
            if now >= next_export:
                exports.start()
                next_export = time.monotonic() - begun + plan.export_every
            time.sleep(0.1)
        assert not moments, "the writers ended before every kill was made"
        counts = [json.loads(writer.communicate()[0]) for writer in writers]
        assert [writer.returncode for writer in writers] == [0] * plan.writers
        synchronize_leavings(root, environment)
        exports.finish()
        exports.start()
        assert exports.finish() == 0
    for name in exports.lakes:
        project = Lake(LakeSettings(root=str(root / name))).project(PROJECT)
        assert sorted(project.records()) == [f"writer-{number}" for number in range(plan.writers)]
        for number, count in enumerate(counts):
            assert count > 10
            check(pa.Table.from_batches(project.run(f"writer-{number}").batches()), count)
            assert project.records()[f"writer-{number}"].complete


def synchronize_leavings(root: Path, environment: dict[str, str]) -> None:
    """Send what a client kept that found no server when it began: it gives up then and says `neptune sync`."""
    for database in sorted(root.glob("*/run_operations.sqlite3")):
        subprocess.run(
            [sys.executable, "-c", NEPTUNE_COMMAND, "sync", str(database)], env=environment, cwd=root, check=True
        )
    assert not list(root.glob("*/run_operations.sqlite3"))


def check(rows: pa.Table, count: int) -> None:
    """Every point of a writer is there once, with its exact value."""
    steps = [(index * 250_000, index) for index in range(count)]
    for name in range(5):
        series = rows.filter(pc.field("attribute_path") == f"metric/{name}")
        values = [struct.pack("<d", value) for value in series["float_value"].to_pylist()]
        assert [round(step * 1_000_000) for step in series["step"].to_pylist()] == [step for step, _ in steps]
        assert values == [struct.pack("<d", index * 10 + name + 0.1) for _, index in steps]
    lines = rows.filter(
        (pc.field("attribute_path") == "line") & (pc.field("attribute_type") == AttributeType.STRING_SERIES.value)
    )
    assert lines["string_value"].to_pylist() == [f"line {index}" for index in range(count)]
    (tags,) = rows.filter(pc.field("attribute_path") == "sys/tags")["string_set_value"].to_pylist()
    assert f"steps {count}" in tags


class Exports:
    """The command that materializes the project twice: from the store, and over the network."""

    lakes = ("store_lake", "network_lake")

    def __init__(self, root: Path, server: ServerProcess) -> None:
        sources = ({"server": {"store": str(server.store)}}, {"neptune3": {"projects": [PROJECT]}})
        settings = {
            name: {"source": source, "lake": {"root": str(root / name)}}
            for name, source in zip(self.lakes, sources, strict=True)
        }
        self._file = root / "soak_definitions.py"
        self._file.write_text(DEFINITIONS.format(settings=settings), encoding="utf-8")
        self._home = root / "home"
        self._home.mkdir()
        self._token = server.token
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to materialize both lakes, unless the last time is not over yet."""
        if self._running is not None and self._running.poll() is None:
            return
        command = ["asset", "materialize", "-f", str(self._file), "--partition", PROJECT]
        command += ["--select", " or ".join(f'key:"{name}/lake/runs"' for name in self.lakes)]
        with (self._home.parent / "exports.log").open("ab") as log:
            self._running = subprocess.Popen(
                [str(Path(sys.executable).with_name("dagster")), *command],
                env={**os.environ, "DAGSTER_HOME": str(self._home), "NEPTUNE_API_TOKEN": self._token},
                stdout=log,
                stderr=log,
            )

    def finish(self) -> int:
        """Wait for the last one and return its exit status."""
        return 0 if self._running is None else self._running.wait(600)


def test_two_scripts_and_a_kill(tmp_path: Path) -> None:
    soak(tmp_path, Soak(seconds=16, writers=2, kills=1, export_every=60, pause=0.05))


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_ten_scripts_for_ten_minutes_and_ten_kills(tmp_path: Path) -> None:
    soak(tmp_path, Soak(seconds=600, writers=10, kills=10, export_every=60, pause=0.2))
