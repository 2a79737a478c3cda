from __future__ import annotations

import getpass
import io
import json
import math
import platform
import re
import sqlite3
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from neptune_api.proto.neptune_pb.ingest.v1.common_pb2 import Run, UpdateRunSnapshot

RECORDINGS = Path(__file__).resolve().parent.parent / "demo" / "recordings"
EXPECTED: dict[str, dict[str, dict[str, Any]]] = json.loads((RECORDINGS / "expected.json").read_text())
SCALE_RUNS = sorted((RECORDINGS / "scale" / ".neptune").glob("*/run_operations.sqlite3"))
CLIENT_RUNS = sorted((RECORDINGS / "client" / ".neptune" / "offline").glob("run__*"))

# Paths of a machine: where homes, work trees and temporary files lie on Linux, macOS and Windows.
PATHS = re.compile(
    rb"/(?:home|root|tmp|work|Users|mnt|var|private|opt|usr|workspace)/|/root\b|[A-Za-z]:\\\\?Users", re.ASCII
)
# Names too short or too common to be told from ordinary text say nothing about a machine.
COMMON_NAMES = {"", "root", "user", "vm", "localhost", "runner", "recorder"}


def _files() -> list[Path]:
    return sorted(path for path in RECORDINGS.rglob("*") if path.is_file())


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    data = path.read_bytes()
    yield path.name, data
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield f"{path.name}/{name}", archive.read(name)
    if path.suffix == ".png":
        for kind, chunk in _png_chunks(data):
            if kind in {b"tEXt", b"eXIf"}:
                yield f"{path.name}/{kind.decode()}", chunk
            elif kind in {b"zTXt", b"iTXt"}:
                yield f"{path.name}/{kind.decode()}", zlib.decompress(chunk.split(b"\0", 1)[1].lstrip(b"\0"))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    position = 8
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        yield data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        position += length + 12


def _operations(database: Path) -> tuple[str, str, Run, list[UpdateRunSnapshot]]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        version, project, run_id = connection.execute("SELECT version, project, run_id FROM metadata").fetchone()
        rows = connection.execute(
            "SELECT operation_type, operation FROM run_operations ORDER BY sequence_id"
        ).fetchall()
    assert version == "v5"
    assert [kind for kind, _ in rows] == [1] + [0] * (len(rows) - 1)
    return project, run_id, Run.FromString(rows[0][1]), [UpdateRunSnapshot.FromString(data) for _, data in rows[1:]]


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "data-1.log").read_text().splitlines()]


def test_recordings_are_there_and_small() -> None:
    assert len(SCALE_RUNS) == len(EXPECTED["demo/vision"]) >= 6
    assert len(CLIENT_RUNS) == len(EXPECTED["demo/tabular"]) >= 5
    assert sum(path.stat().st_size for path in _files()) < 6 * 2**20


@pytest.mark.parametrize("path", _files(), ids=lambda path: path.relative_to(RECORDINGS).as_posix())
def test_no_file_tells_of_the_machine_that_recorded_it(path: Path) -> None:
    names = {name.lower() for name in (platform.node(), getpass.getuser())} - COMMON_NAMES
    for place, data in [("its own path", path.relative_to(RECORDINGS).as_posix().encode()), *_contents(path)]:
        assert not PATHS.search(data), place
        for name in names:
            assert not re.search(rb"\b" + re.escape(name.encode()) + rb"\b", data.lower()), (place, name)


def test_the_search_for_paths_finds_them() -> None:
    for text in (
        b"x/home/ann/",
        b"/tmp/a",
        b"'/root'",
        b"/mnt/x",
        b"C:\\Users\\ann",
        b'"C:\\\\Users\\\\ann"',
        b"/Users/a/",
    ):
        assert PATHS.search(text), text
    assert not PATHS.search(b"train/loss /recorded/files/a.csv workspace/project")


def test_nothing_is_left_of_an_open_database_or_of_the_rewriting() -> None:
    assert not [path for path in _files() if path.name.endswith(("-wal", "-shm", "-journal", ".tmp", ".pyc"))]
    for database in SCALE_RUNS:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
            assert connection.execute("PRAGMA freelist_count").fetchone() == (0,)
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("database", SCALE_RUNS, ids=lambda path: path.parent.name)
def test_neptune_scale_stored_what_was_logged(database: Path) -> None:
    project, run_id, create, updates = _operations(database)
    assert project == "demo/vision"
    expected = EXPECTED[project][run_id]
    assert create.experiment_id == expected["name"]
    if expected["parent"] is None:
        assert not create.HasField("fork_point")
    else:
        step = create.fork_point.step
        assert (create.fork_point.parent_run_id, step.whole + step.micro / 1e6) == (
            expected["parent"],
            expected["fork_step"],
        )
        assert create.inherit_configs
    rows: Counter[str] = Counter()
    metrics: dict[str, list[tuple[float, float]]] = {}
    tags: dict[str, set[str]] = {}
    parameters: dict[str, Any] = {}
    series = {
        "float64": "float_series",
        "string": "string_series",
        "histogram": "histogram_series",
        "file_ref": "file_series",
    }
    for update in updates:
        for path, change in update.modify_sets.items():
            tags.setdefault(path, set()).update(change.string.values)
        for path, value in update.assign.items():
            kind = value.WhichOneof("value")
            names = {"float64": "float", "int64": "int", "timestamp": "datetime", "file_ref": "file"}
            rows[names.get(kind, kind)] += 1
            if kind in {"float64", "int64", "string", "bool"}:
                parameters[path] = getattr(value, kind)
        for path, value in update.append.items():
            kind = value.WhichOneof("value")
            rows[series[kind]] += 1
            if kind == "float64":
                metrics.setdefault(path, []).append((update.step.whole + update.step.micro / 1e6, value.float64))
    assert dict(rows) == expected["rows"]
    assert sorted(tags["sys/tags"]) == expected["tags"]
    assert sorted(tags["sys/group_tags"]) == expected["group_tags"]
    for path, value in parameters.items():
        assert repr(_number(expected["parameters"][path])) == repr(_number(value)), path
    assert set(metrics) == set(expected["metrics"])
    for path, points in metrics.items():
        _same_metric(points, expected["metrics"][path])


@pytest.mark.parametrize("database", SCALE_RUNS, ids=lambda path: path.parent.name)
def test_neptune_scale_files_lie_beside_the_database_under_neutral_paths(database: Path) -> None:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        run_id = connection.execute("SELECT run_id FROM metadata").fetchone()[0]
        rows = connection.execute("SELECT source_path, size_bytes FROM file_upload_requests").fetchall()
    expected = EXPECTED["demo/vision"][run_id]
    stored = []
    for source_path, size in rows:
        assert source_path.startswith("/recorded/")
        data = (database.parent / source_path.rpartition("/")[2]).read_bytes()
        assert len(data) == size
        stored.append(sha256(data).hexdigest())
    logged = [file["sha256"] for file in expected["files"].values()]
    logged += [picture["sha256"] for pictures in expected["pictures"].values() for picture in pictures]
    assert sorted(stored) == sorted(logged)


@pytest.mark.parametrize("folder", CLIENT_RUNS, ids=lambda path: path.name)
def test_neptune_client_stored_what_was_logged(folder: Path) -> None:
    metadata = json.loads((folder / "metadata.json").read_text())
    assert (metadata["structureVersion"], metadata["mode"], metadata["os"]) == (3, "offline", "Linux")
    expected = EXPECTED["demo/tabular"][metadata["containerId"]]
    records = _records(folder)
    assert [record["version"] for record in records] == list(range(1, len(records) + 1))
    assert int((folder / "last_put_version").read_text()) == len(records)
    values: dict[str, Any] = {}
    points: dict[str, list[tuple[float | None, float]]] = {}
    rows: Counter[str] = Counter()
    for operation in (record["obj"] for record in records):
        path = "/".join(operation["path"])
        kind = operation["type"]
        if kind in {"AssignFloat", "AssignInt", "AssignBool", "AssignString"}:
            values[path] = operation["value"]
        elif kind == "DeleteAttribute":
            del values[path]
        elif kind == "LogFloats":
            points.setdefault(path, []).extend((item["step"], item["value"]) for item in operation["values"])
        elif kind in {"LogStrings", "LogImages"}:
            rows[{"LogStrings": "string_series", "LogImages": "file_series"}[kind]] += len(operation["values"])
    assert values.pop("sys/name") == expected["name"]
    assert values.pop("sys/failed") is expected["failed"]
    assert {values.pop(name) for name in ("sys/hostname", "monitoring/hostname") if name in values} <= {"recorder"}
    logged = {
        path: value
        for path, value in values.items()
        if path.partition("/")[0] not in {"sys", "monitoring", "source_code"}
    }
    times = {path for path, value in expected["parameters"].items() if re.fullmatch(r"\d{4}-\d\d-\d\dT.*", str(value))}
    sets = {path for path, value in expected["parameters"].items() if isinstance(value, list)}
    assert logged == {path: value for path, value in expected["parameters"].items() if path not in times | sets}
    assert set(points) == set(expected["metrics"])
    for path, series in points.items():
        _same_metric(series, expected["metrics"][path])
    assert dict(rows) == {
        kind: expected["rows"][kind] for kind in ("string_series", "file_series") if kind in expected["rows"]
    }


@pytest.mark.parametrize("folder", CLIENT_RUNS, ids=lambda path: path.name)
def test_neptune_client_names_only_files_that_are_published_with_it(folder: Path) -> None:
    home = RECORDINGS / "client"
    for operation in (record["obj"] for record in _records(folder)):
        for path in [operation.get("file_path"), *operation.get("file_globs", [])]:
            assert path is None or (home / path.removeprefix("/recorded/")).is_file(), path
        for path, _ in operation.get("entries", []):
            assert (home / path).is_file()
        if operation.get("tmp_file_name"):
            assert (folder / "upload_path" / operation["tmp_file_name"]).is_file()


def test_the_recordings_show_every_kind_of_attribute_and_trouble() -> None:
    runs = [run for project in EXPECTED.values() for run in project.values()]
    kinds = {kind for run in runs for kind in run["attributes"]}
    assert kinds == {
        *(
            "float",
            "int",
            "string",
            "bool",
            "datetime",
            "string_set",
            "float_series",
            "string_series",
            "histogram_series",
        ),
        *("file", "file_series", "file_set", "artifact"),
    }
    metrics = [metric for run in runs for metric in run["metrics"].values()]
    assert any(metric["nan"] and metric["positive_infinity"] for metric in metrics)
    assert any(metric["first_step"] == 0.05 for metric in metrics)
    assert any(metric["first_step"] is None for metric in metrics)
    assert sum(run["failed"] for run in runs) == 1
    forks = [run for run in EXPECTED["demo/vision"].values() if run["parent"]]
    assert [run["parent"] in EXPECTED["demo/vision"] for run in forks] == [True]


def test_the_model_files_open_without_pickle() -> None:
    numpy = pytest.importorskip("numpy")
    for path in (RECORDINGS / "scale").rglob("*.zip"):
        with numpy.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as weights:
            assert {name: weights[name].shape for name in weights} == {
                "hidden": (64, 32),
                "hidden_bias": (32,),
                "output": (32, 10),
                "output_bias": (10,),
            }


def _number(value: Any) -> Any:
    return float(value) if value in {"NaN", "Infinity", "-Infinity"} else value


def _same_metric(points: list[tuple[float | None, float]], expected: dict[str, Any]) -> None:
    values = [value for _, value in points]
    finite = [value for value in values if math.isfinite(value)]
    assert len(values) == expected["count"]
    assert sum(map(math.isnan, values)) == expected["nan"]
    assert values.count(math.inf) == expected["positive_infinity"]
    assert values.count(-math.inf) == expected["negative_infinity"]
    for value, name in ((values[0], "first"), (values[-1], "last")):
        assert repr(value) == repr(_number(expected[name]))
    assert (min(finite, default=None), max(finite, default=None)) == (
        expected["smallest_finite"],
        expected["largest_finite"],
    )
    assert math.fsum(finite) == expected["sum_of_finite"]
    steps = (points[0][0], points[-1][0])
    assert steps == (expected["first_step"], expected["last_step"])
