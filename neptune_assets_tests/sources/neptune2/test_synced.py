"""The demo's recordings of neptune-client, sent to a real server by the real `neptune sync` and exported again.

What comes out is what the offline source makes of the same recordings, but for what is named here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.settings import Filters
from neptune_assets.sources.neptune2.settings import Neptune2Source
from neptune_assets.sources.neptune2.source import Neptune2
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.offline.source import Offline
from neptune_assets.sources.protocol import RunRows, Source
from neptune_assets_tests.support.server import Served, server_in_thread

pytestmark = pytest.mark.slow

RECORDINGS = Path(__file__).resolve().parents[3] / "demo" / "recordings" / "client"
PROJECT = "demo/tabular"
SYNC = "from neptune.cli.commands import sync; sync()"
"""The command itself: the `neptune` script that holds it does not start with setuptools of today."""

GIVEN_BY_THE_SERVER = {
    "sys/creation_time",
    "sys/id",
    "sys/modification_time",
    "sys/monitoring_time",
    "sys/owner",
    "sys/ping_time",
    "sys/running_time",
    "sys/size",
    "sys/state",
    "sys/trashed",
}
LOST_BY_SYNC = {"artifact": {"data/table"}, "string_set": {"data/classes"}}
"""Artifacts of offline runs carry the project they were recorded in, a placeholder, and are never made. Sets of
strings are refused by Neptune's servers, and by ours, everywhere but at tags.
"""
CUT = timedelta(milliseconds=1)
"""The client cuts times off after milliseconds when it sends them; the offline source rounds them."""

Row = tuple[Any, ...]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recordings as they were before they were published: with the paths of files that are there."""
    folder = tmp_path_factory.mktemp("recorded")
    shutil.copytree(RECORDINGS, folder, dirs_exist_ok=True)
    for log in (folder / ".neptune" / "offline").glob("*/data-1.log"):
        log.write_text(log.read_text().replace('"/recorded/', f'"{folder}/'))
    return folder


@pytest.fixture(scope="module")
def offline(recorded: Path) -> dict[str, dict[Row, Any]]:
    """What the offline source makes of them, before they are sent: sending removes them."""
    settings = OfflineSource(paths=[str(recorded)], project=PROJECT)
    return contents(Offline(settings, Filters()))


@pytest.fixture(scope="module")
def served(
    recorded: Path, offline: dict[str, dict[Row, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with server_in_thread(tmp_path_factory.mktemp("server") / "store") as running:
        project = {"name": "tabular", "organizationIdentifier": "demo", "projectKey": "TAB"}
        running.client().post("/api/backend/v1/projects", json={"projectToCreate": project}).raise_for_status()
        environment = {**os.environ, "NEPTUNE_API_TOKEN": running.token, "OAUTHLIB_INSECURE_TRANSPORT": "1"}
        command = [sys.executable, "-W", "ignore", "-c", SYNC, "--path", ".", "--offline-only", "--project", PROJECT]
        done = subprocess.run(command, cwd=recorded, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        yield running


@pytest.fixture(scope="module")
def exported(served: Served) -> Iterator[dict[str, dict[Row, Any]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEPTUNE_API_TOKEN", served.token)
        yield contents(Neptune2(Neptune2Source(), Filters()))


def contents(source: Source) -> dict[str, dict[Row, Any]]:
    """Rows of every run by the run's name: attribute, type and step; then time and value, or the files' hashes."""
    found: dict[str, dict[Row, Any]] = {}
    run_ids = [info.run_id for info in source.runs(PROJECT)]
    for run_id in run_ids:
        rows: dict[Row, Any] = {}
        for chunk in source.read(PROJECT, [run_id]):
            if not isinstance(chunk, RunRows):
                continue
            for row in chunk.batch.to_pylist():
                values = [row[name] for name in row if name.endswith("_value") and name != "file_value"]
                if row["file_value"] is not None:
                    members = source.files(PROJECT, run_id, row["file_value"]["path"])
                    values = [{item.relative_path: sha256(item.open().read()).hexdigest() for item in members}]
                    if row["attribute_type"] != "file_set":
                        values = [list(values[0].values())]
                rows[row["attribute_path"], row["attribute_type"], row["step"]] = (row["timestamp"], repr(values))
        name = next(value for key, value in rows.items() if key[0] == "sys/name")[1]
        found[name] = rows
    return found


def test_all_runs_arrive(offline: dict[str, dict[Row, Any]], exported: dict[str, dict[Row, Any]]) -> None:
    assert len(offline) == 6
    assert set(exported) == set(offline)


def test_every_row_is_the_same_but_for_what_the_server_gives_and_sync_loses(
    offline: dict[str, dict[Row, Any]], exported: dict[str, dict[Row, Any]]
) -> None:
    compared = 0
    for name, expected in offline.items():
        kept = {
            key: value
            for key, value in expected.items()
            if key[0] not in GIVEN_BY_THE_SERVER and key[0] not in LOST_BY_SYNC.get(key[1], ())
        }
        found = {key: value for key, value in exported[name].items() if key[0] not in GIVEN_BY_THE_SERVER}
        assert set(found) == set(kept), name
        assert [key for key in kept if found[key][1] != kept[key][1]] == [], name
        late = {key: when - found[key][0] for key, (when, _) in kept.items() if when is not None}
        assert set(late.values()) <= {timedelta(0), CUT}, name
        compared += len(kept)
    assert compared > 1_000


def test_what_sync_loses_was_there(offline: dict[str, dict[Row, Any]], exported: dict[str, dict[Row, Any]]) -> None:
    lost = {
        (key[1], key[0])
        for name, rows in offline.items()
        for key in rows
        if key[0] not in GIVEN_BY_THE_SERVER and key not in exported[name]
    }
    assert lost == {(kind, path) for kind, paths in LOST_BY_SYNC.items() for path in paths}


def test_the_server_gives_a_run_what_it_always_gives(exported: dict[str, dict[Row, Any]]) -> None:
    for rows in exported.values():
        assert {key[0] for key in rows} >= GIVEN_BY_THE_SERVER
