"""neptune-exporter and our source export the same Neptune 2 server; every row that differs is one of its known errors.

Real peer, run with its own Python (see test_exporter.py), real client, real server; in three time zones. Both sides are
read with raw pyarrow. ``make conformance-exporter`` runs this.
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neptune_assets_tests.conformance.test_exporter import run_peer
from neptune_assets_tests.support import client_live as logged
from neptune_assets_tests.support.server import Served, server_process

pytestmark = pytest.mark.peer

ZONES = ("UTC", "America/New_York", "Asia/Kolkata")
SCOPES = ("runs", "models", "model_versions")
OURS = """
import sys
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.schema import Scope
from neptune_assets.settings import Filters, LakeSettings
from neptune_assets.sources.neptune2.settings import Neptune2Source
from neptune_assets.sources.neptune2.source import Neptune2
for scope in Scope:
    source = Neptune2(Neptune2Source(), Filters())
    report = LakeWriter(LakeSettings(root=sys.argv[1]), source, scope).write_project(sys.argv[2])
    assert not report.failed and not report.partial, report
"""

Key = tuple[str, str, str, Any]


@dataclass
class Side:
    """What one side wrote: rows by scope, run, attribute, type and step; and the bytes behind a file's row."""

    root: Path
    rows: dict[str, dict[Key, dict[str, Any]]]

    def files(self, scope: str, row: dict[str, Any]) -> dict[str, bytes]:
        """Files by their names: one, or all members of a directory."""
        (project,) = (self.root / ("files" if scope == "runs" else "model_files")).iterdir()
        place = project / row["file_value"]["path"]
        if place.is_file():
            return {place.name: place.read_bytes()}
        return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with server_process(folder / "store") as server:
        running = Served(server.url, server.token, folder / "store")
        logged.log_live(running, folder / "work")
        yield running


@pytest.fixture(scope="module", params=ZONES)
def both(
    request: pytest.FixtureRequest, served: Served, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Side, Side]:
    """The zone, the peer's export, and ours, both made in that zone."""
    zone: str = request.param
    root = tmp_path_factory.mktemp("exports")
    environment = {"TZ": zone, "NEPTUNE_API_TOKEN": served.token, "OAUTHLIB_INSECURE_TRANSPORT": "1"}
    peer, ours = root / "peer", root / "ours"
    peer.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for command, data, files in (
            (["export", "--exporter", "neptune2"], "data", "files"),
            (["export-models"], "model_data", "model_files"),
        ):
            places = ["-d", str(peer / data), "-f", str(peer / files), "--log-file", str(peer / "log")]
            places += ["--error-report-file", str(peer / "errors.jsonl"), "--no-progress"]
            run_peer(*command, "-p", logged.PROJECT, *places, module=False)
        command = [sys.executable, "-W", "ignore", "-c", OURS, str(ours), logged.PROJECT]
        done = subprocess.run(command, env=dict(os.environ), text=True, capture_output=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
    assert not (peer / "errors.jsonl").exists() or not (peer / "errors.jsonl").read_text().strip()
    return zone, Side(peer, rows_of(peer)), Side(ours, rows_of(ours))


def rows_of(root: Path) -> dict[str, dict[Key, dict[str, Any]]]:
    found: dict[str, dict[Key, dict[str, Any]]] = {scope: {} for scope in SCOPES}
    for scope in SCOPES:
        places = [root / "data"] if scope == "runs" else (root / "model_data").glob(f"*/{scope}")
        for part in (part for place in places for part in place.rglob("*_part_*.parquet")):
            if {".staging", ".manifest"} & set(part.parts):
                continue
            for row in pa.Table.to_pylist(pq.read_table(part)):
                key = (row["run_id"], row["attribute_path"], row["attribute_type"], row["step"])
                assert key not in found[scope], key
                found[scope][key] = row
    return found


def value(row: dict[str, Any]) -> Any:
    """What a row says besides its time and its files; floats by their bits."""
    number = row["float_value"]
    strings = row["string_set_value"]
    return (
        row["int_value"],
        None if number is None else struct.pack(">d", number),
        row["string_value"],
        row["bool_value"],
        row["datetime_value"],
        None if strings is None else sorted(strings),
    )


def local_taken_for_utc(moment: datetime, zone: str) -> datetime:
    """What becomes of a moment whose local time is stored as if it were UTC."""
    return moment.astimezone(ZoneInfo(zone)).replace(tzinfo=UTC)


def test_both_hold_the_same_runs_models_and_versions(both: tuple[str, Side, Side]) -> None:
    _, peer, ours = both
    for scope, ids in (
        ("runs", {logged.FIRST, logged.SECOND}),
        ("models", {logged.MODEL}),
        ("model_versions", set(logged.VERSIONS)),
    ):
        assert {key[0] for key in peer.rows[scope]} == ids
        assert {key[0] for key in ours.rows[scope]} == ids


def test_every_row_that_differs_is_a_known_error_of_the_peer(both: tuple[str, Side, Side]) -> None:
    zone, peer, ours = both
    counted: Counter[str] = Counter()
    for scope in SCOPES:
        theirs, mine = dict(peer.rows[scope]), dict(ours.rows[scope])
        for key in list(mine):
            _, path, kind, _ = key
            if path == "sys/state" or path.startswith("source_code/git/"):
                assert key not in theirs
                counted["left out: state and git"] += 1
                del mine[key]
            elif kind == "file_series":
                del mine[key]
        for key in [key for key in theirs if key[2] == "file_series"]:
            assert theirs[key]["timestamp"] is None
            counted["images numbered by their place, without a time"] += 1
            del theirs[key]
        assert set(theirs) == set(mine), scope
        for key, row in mine.items():
            other = theirs[key]
            assert value(row) == value(other), key
            if row["timestamp"] == other["timestamp"]:
                continue
            assert other["timestamp"] == local_taken_for_utc(row["timestamp"], zone), key
            counted["local time stored as UTC"] += 1
    points = len(logged.POINTS) + len(logged.TEXTS) + logged.MANY + 1 + len(logged.VERSIONS)
    assert counted["local time stored as UTC"] == (0 if zone == "UTC" else points)
    assert counted["images numbered by their place, without a time"] == len(logged.PICTURES)
    assert counted["left out: state and git"] == 2 + 1 + len(logged.VERSIONS) + 8
    print(zone, dict(counted))


def test_our_times_are_what_was_logged_in_every_zone(both: tuple[str, Side, Side]) -> None:
    _, _, ours = both
    found = {
        row["step"]: row["timestamp"] for key, row in ours.rows["runs"].items() if key[:2] == (logged.FIRST, "m/points")
    }
    assert found == {Decimal(f"{step:.6f}"): moment for _, step, moment in logged.POINTS}


def test_files_are_the_same_bytes(both: tuple[str, Side, Side]) -> None:
    _, peer, ours = both
    nameless = 0
    for scope in SCOPES:
        for key, row in ours.rows[scope].items():
            if key[2] not in {"file", "artifact", "file_set"}:
                continue
            mine, theirs = ours.files(scope, row), peer.files(scope, peer.rows[scope][key])
            if key[2] == "file_set":  # the peer keeps the archive
                (archive,) = theirs.values()
                with zipfile.ZipFile(io.BytesIO(archive)) as members:
                    theirs = {name: members.read(name) for name in members.namelist() if not name.endswith("/")}
                assert mine == theirs
            elif key[2] == "artifact":
                assert [json.loads(data) for data in mine.values()] == [json.loads(data) for data in theirs.values()]
            else:
                assert list(mine.values()) == list(theirs.values()), key
                nameless += any("." in name for name in mine) and not any("." in name for name in theirs)
    # Streams without an extension get one from the client.
    assert nameless == len(logged.FILES) + 1 + len(logged.VERSIONS), "files whose extension the peer loses"
    assert pictures(ours) == pictures(peer)
    assert len(pictures(ours)) == len(logged.PICTURES)


def pictures(side: Side) -> list[bytes]:
    """Bytes of the images in the order of their steps."""
    rows = [(key[3], row) for key, row in side.rows["runs"].items() if key[2] == "file_series"]
    return [data for _, row in sorted(rows, key=lambda item: item[0]) for data in side.files("runs", row).values()]
