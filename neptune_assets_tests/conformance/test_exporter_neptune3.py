"""neptune-exporter's export of a Neptune 3 server beside ours: row by row, with raw pyarrow, every difference named.

Real peer, real server. Fetches nothing: see test_exporter.py for PEER_PYTHON and PEER_SRC.
"""

from __future__ import annotations

import math
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import Filters, LakeSettings
from neptune_assets.sources.neptune3.settings import Neptune3Source
from neptune_assets.sources.neptune3.source import Neptune3
from neptune_assets_tests.conformance.test_exporter import MAIN, plain
from neptune_assets_tests.support.export_factory import exported_name
from neptune_assets_tests.support.server import server_in_thread
from neptune_assets_tests.support.wire_logging import WireLogger

pytestmark = pytest.mark.peer

PROJECT = "peer/neptune3"
RUNS = [f"run-{number}" for number in range(5)]
BEYOND = 2**53 + 1
Key = tuple[str, str, str, Any]

VALUES = ("int_value", "float_value", "string_value", "bool_value", "datetime_value", "histogram_value")


@dataclass
class Exports:
    """Rows of both exports by run, path, type and step; files are told by their contents."""

    ours: dict[Key, Any]
    theirs: dict[Key, Any]


def rows_of(data: Path, files: Path) -> dict[Key, Any]:
    """Time and value of every row; two rows at one key are an error of the test."""
    found: dict[Key, Any] = {}
    for path in data.rglob("*_part_*.parquet"):
        for row in pq.read_table(path).to_pylist():
            key = (row["run_id"], row["attribute_path"], row["attribute_type"], row["step"])
            if row["file_value"] is not None and row["file_value"]["path"] is not None:
                place = files / exported_name(PROJECT) / row["file_value"]["path"]
                value: Any = place.read_bytes()
            elif row["string_set_value"] is not None:
                value = sorted(row["string_set_value"])
            else:
                value = next((row[name] for name in VALUES if row[name] is not None), None)
            assert key not in found, key
            found[key] = (row["timestamp"], plain(value))
    return found


def log(logger: WireLogger) -> None:
    """Runs that differ in what they have, and values that are hard to keep."""
    for number, run_id in enumerate(RUNS):
        fork = {"parent": RUNS[0], "fork_step": 3.0} if number == 4 else {}
        logger.create(run_id, experiment_id="experiment", **fork)  # type: ignore[arg-type]
        logger.configs(
            run_id, {"lr": 0.1 * number, "seed": number, "same": BEYOND, "flag": number % 2 == 0, "text": f"é {number}"}
        )
        points = [(step * 0.25, math.nan if step % 5 == 4 else step / 7) for step in range(20)]
        logger.metrics(
            run_id, {"m/loss": points, f"m/own{number}": [(float(step * 5 + number), 1.0) for step in range(10)]}
        )
        logger.strings(run_id, {"log/text": [(float(step), f"line {step}\nmore") for step in range(5)]})
        logger.file(run_id, "files/text", f"{run_id}/note.txt", f"note of {run_id}".encode(), "text/plain")
    logger.configs(RUNS[1], {"only/int": BEYOND, "only/float": math.nan, "only/text": ""})
    logger.file(RUNS[2], "files/lost", "run-2/lost.bin", None, "application/octet-stream", size=10)
    logger.file(RUNS[3], "files/a.b", "run-3/dot.txt", b"dot", "text/plain")
    logger.file(RUNS[3], "files/a_b", "run-3/line.txt", b"line", "text/plain")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exports]:
    python, source = os.environ.get("PEER_PYTHON", ""), os.environ.get("PEER_SRC", "")
    if not (Path(python).is_file() and (Path(source) / "neptune_exporter").is_dir()):
        pytest.fail("set PEER_PYTHON (a Python with neptune-exporter's dependencies) and PEER_SRC (its src folder)")
    root = tmp_path_factory.mktemp("peer3")
    with server_in_thread(root / "store") as served, pytest.MonkeyPatch.context() as environment:
        log(WireLogger(served, PROJECT))
        environment.setenv("NEPTUNE_API_TOKEN", served.token)
        environment.delenv("DISABLE_NEPTUNE_LOGGING", raising=False)
        ours = Neptune3(Neptune3Source(projects=[PROJECT]), Filters())
        report = LakeWriter(LakeSettings(root=str(root / "lake")), ours).write_project(PROJECT)
        assert not report.failed
        assert report.partial == [RUNS[2]], "the lost file makes its run partial, no other"
        places = [
            "-d",
            str(root / "data"),
            "-f",
            str(root / "files"),
            "--error-report-file",
            str(root / "errors.jsonl"),
        ]
        places += ["--log-file", str(root / "log.txt"), "--no-progress"]
        command = [python, "-c", MAIN, "export", "--exporter", "neptune3", "-p", PROJECT, *places]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": source}, text=True, capture_output=True, timeout=500
        )
        assert done.returncode == 0, done.stdout + done.stderr
        yield Exports(rows_of(root / "lake" / "data", root / "lake" / "files"), rows_of(root / "data", root / "files"))


def difference(key: Key, ours: Any, theirs: Any) -> str:
    """The name of a known error of neptune-exporter, or a text that names the rows."""
    _, path, kind, _ = key
    if ours is None and theirs is not None and theirs[1] is None:
        return "row without a value for an attribute the run does not have"
    if ours is not None and theirs is not None:
        if kind in {"float_series", "float"} and ours[1] == "nan" and theirs[1] is None:
            return "NaN turned into null"
        if kind == "int" and ours[1] == BEYOND and theirs[1] == BEYOND - 1:
            return "int rounded to a float"
        if kind == "file" and path in {"files/a.b", "files/a_b"} and theirs[1] in {plain(b"dot"), plain(b"line")}:
            return "two files in one place"
        if kind == "file" and ours[1] is None and theirs[1] is None:
            return ""
    return f"unknown: {key}: ours {ours}, theirs {theirs}"


def test_every_difference_is_a_known_error_of_the_peer(exports: Exports) -> None:
    keys = exports.ours.keys() | exports.theirs.keys()
    found = Counter(
        difference(key, exports.ours.get(key), exports.theirs.get(key))
        for key in keys
        if exports.ours.get(key) != exports.theirs.get(key)
    )
    print(f"{len(keys)} rows, {found}")
    assert not [name for name in found if name.startswith("unknown")], found
    # Counted from what was logged: 4 NaN in each loss, and one NaN parameter.
    assert found["NaN turned into null"] == 4 * len(RUNS) + 1
    assert found["int rounded to a float"] == 1
    assert found["row without a value for an attribute the run does not have"] >= 3 * (len(RUNS) - 1)
    assert len(exports.ours) > 250


def test_our_rows_are_what_was_logged(exports: Exports) -> None:
    loss = [value for (run, path, _, _), (_, value) in exports.ours.items() if run == RUNS[0] and path == "m/loss"]
    assert Counter(value == "nan" for value in loss) == {False: 16, True: 4}
    assert exports.ours[RUNS[1], "only/int", "int", None][1] == BEYOND
    assert exports.ours[RUNS[3], "files/a.b", "file", None][1] == plain(b"dot")
    assert exports.ours[RUNS[3], "files/a_b", "file", None][1] == plain(b"line")
