"""A soak: scripts log, the server is killed again and again, exports run meanwhile. Real processes only.

Belongs here: who runs when, and what is compared at the end. Does not belong here: how a client logs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.lake.reader import Lake
from neptune_assets.schema import AttributeType
from neptune_assets.settings import LakeSettings
from neptune_assets_tests.support.server import Served, ServerProcess, server_process

PROJECT = "soak/project"
METRICS = 5
STEP = 0.25
"""A tick's metrics and its line are at its number times this step."""

_READY_SECONDS = 1_200
_DEFINITIONS = """
import dagster as dg
from neptune_assets.build import build_defs
from neptune_assets.migration_settings import Settings
defs = dg.Definitions.merge(*(
    build_defs(Settings.model_validate(settings), [{project!r}], prefix=name)
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


@dataclass(frozen=True)
class Scripts:
    """What logs, and how its work is read back.

    ``writer`` is a script that is called with its number, seconds, pause and a directory; it touches ``ready-<number>``
    in the directory once it logs, and prints how many ticks it logged, as JSON. ``synchronize`` sends what clients left
    in the directory, with this environment. ``source`` are settings of the source that reads over the network.
    """

    writer: str
    source: Mapping[str, Any]
    synchronize: Callable[[Path, Mapping[str, str]], None]
    environment: Mapping[str, str] = field(default_factory=dict)


def soak(root: Path, plan: Soak, scripts: Scripts) -> dict[str, list[pa.Table]]:
    """Run the soak and check metrics and lines of both lakes; returns each lake's runs by the number of the writer."""
    (root / "writer.py").write_text(scripts.writer, encoding="utf-8")
    with server_process(root / "store") as server, ExitStack() as stack:
        environment = {**os.environ, **scripts.environment, "NEPTUNE_API_TOKEN": server.token}
        _make_project(server)
        exports = Exports(root, server, scripts.source, environment)
        writers = [_writer(root, number, plan, environment) for number in range(plan.writers)]
        stack.callback(lambda: [_end(writer) for writer in writers])
        _wait_for_all(root, writers)
        chance = random.Random(7)
        begun = time.monotonic()
        # One in each of as many spans: there is work between two of them.
        moments = [(0.1 + 0.8 * (kill + chance.random()) / plan.kills) * plan.seconds for kill in range(plan.kills)]
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
        scripts.synchronize(root, environment)
        exports.finish()
        exports.start()
        assert exports.finish() == 0
    return {name: _checked(root / name, counts) for name in exports.lakes}


class Exports:
    """The command that materializes the project twice: from the store, and over the network."""

    lakes = ("store_lake", "network_lake")

    def __init__(
        self, root: Path, server: ServerProcess, source: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        sources = ({"server": {"store": str(server.store)}}, source)
        settings = {
            name: {"source": source, "lake": {"root": str(root / name)}}
            for name, source in zip(self.lakes, sources, strict=True)
        }
        self._file = root / "soak_definitions.py"
        self._file.write_text(_DEFINITIONS.format(project=PROJECT, settings=settings), encoding="utf-8")
        self._home = root / "home"
        self._home.mkdir()
        self._environment = {**environment, "DAGSTER_HOME": str(self._home)}
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
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def finish(self) -> int:
        """Wait for the last one and return its exit status."""
        return 0 if self._running is None else self._running.wait(600)


def _make_project(server: ServerProcess) -> None:
    """Make the project, which clients of 2.x expect to be there."""
    workspace, name = PROJECT.split("/")
    with Served(server.url, server.token, server.store).client() as http:
        body = {"organizationIdentifier": workspace, "name": name}
        http.post("/api/backend/v1/projects", json=body).raise_for_status()


def _writer(root: Path, number: int, plan: Soak, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # What a client starts beside itself must end with it, whatever happens: a session of its own.
    return subprocess.Popen(
        [sys.executable, str(root / "writer.py"), str(number), str(plan.seconds), str(plan.pause), str(root)],
        env=dict(environment),
        stdout=subprocess.PIPE,
        cwd=root,
        start_new_session=True,
    )


def _wait_for_all(root: Path, writers: list[subprocess.Popen[bytes]]) -> None:
    """Wait until every writer logs: how long clients take to start must not decide what is killed."""
    deadline = time.monotonic() + _READY_SECONDS
    while not all((root / f"ready-{number}").exists() for number in range(len(writers))):
        assert all(writer.poll() is None for writer in writers), "a writer ended before it logged"
        assert time.monotonic() < deadline, "the writers did not begin"
        time.sleep(0.1)


def _end(writer: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(writer.pid, signal.SIGKILL)
    writer.wait(60)
    if writer.stdout is not None:
        writer.stdout.close()


def _checked(root: Path, counts: list[int]) -> list[pa.Table]:
    """Return the runs of a lake by their writers, after a look at each: complete, every point there once, exactly."""
    project = Lake(LakeSettings(root=str(root))).project(PROJECT)
    runs: dict[int, pa.Table] = {}
    for run in project.runs():
        rows = pa.Table.from_batches(run.batches())
        assert run.record.complete
        (number,) = rows.filter(pc.field("attribute_path") == "number")["int_value"].to_pylist()
        assert number not in runs
        runs[number] = rows
    assert sorted(runs) == list(range(len(counts)))
    for number, count in enumerate(counts):
        assert count > 10
        check(runs[number], count)
    return [rows for _, rows in sorted(runs.items())]


def check(rows: pa.Table, count: int) -> None:
    """Every point of a writer is there once, with its exact value."""
    steps = [round(index * STEP * 1_000_000) for index in range(count)]
    for name in range(METRICS):
        series = rows.filter(pc.field("attribute_path") == f"metric/{name}")
        values = [struct.pack("<d", value) for value in series["float_value"].to_pylist()]
        assert [round(step * 1_000_000) for step in series["step"].to_pylist()] == steps
        assert values == [struct.pack("<d", index * 10 + name + 0.1) for index in range(count)]
    lines = rows.filter(
        (pc.field("attribute_path") == "line") & (pc.field("attribute_type") == AttributeType.STRING_SERIES.value)
    )
    assert lines["string_value"].to_pylist() == [f"line {index}" for index in range(count)]
    (tags,) = rows.filter(pc.field("attribute_path") == "sys/tags")["string_set_value"].to_pylist()
    assert f"steps {count}" in tags
