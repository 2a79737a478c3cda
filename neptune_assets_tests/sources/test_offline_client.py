"""Recordings of neptune-client: real engine. Old layouts, records of old clients and damage are made from real ones.

The asynchronous mode cannot be recorded without a server; async folders are offline ones moved as `neptune sync` does.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from neptune_assets.errors import FileGoneError, SourceError, UnsafePathError
from neptune_assets.schema import SCHEMA, Scope
from neptune_assets.settings import Filters, OfflineSource
from neptune_assets.sources.offline.client_log import Garbage, Log, json_objects
from neptune_assets.sources.offline.client_values import micro_steps, milliseconds
from neptune_assets.sources.offline.source import Offline
from neptune_assets.sources.protocol import RunEnd, RunRows
from neptune_assets_tests.conformance.sources import SourceCase, SourceContract
from neptune_assets_tests.support import client_recorder as recorded

PROJECT = "team/old"
UUID = "01234567-89ab-cdef-0123-456789abcdef"
RUN_ID = "OFFLINE-0123456789ab"
NAME = f"run__{UUID}__77__abcdefgh"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class Read:
    source: Offline
    run_id: str
    scope: Scope
    rows: list[dict[str, Any]]
    end: RunEnd

    def values(self, path: str) -> list[Any]:
        return [_value(row) for row in self.rows if row["attribute_path"] == path]

    def value(self, path: str) -> Any:
        (value,) = self.values(path)
        return value

    def kinds(self, path: str) -> set[str]:
        return {row["attribute_type"] for row in self.rows if row["attribute_path"] == path}

    def points(self, path: str) -> list[tuple[Decimal, Any]]:
        return [(row["step"], _value(row)) for row in self.rows if row["attribute_path"] == path]

    def members(self, path: str, index: int = 0) -> dict[str, bytes]:
        files = self.source.files(PROJECT, self.run_id, self.values(path)[index], self.scope)
        content = {}
        for file in files:
            with file.open() as stream:
                content[file.relative_path] = stream.read()
        return content

    @property
    def errors(self) -> list[str]:
        return [issue.message for issue in self.end.errors]

    @property
    def notes(self) -> list[str]:
        return [issue.message for issue in self.end.notes]


def _value(row: dict[str, Any]) -> Any:
    kind = row["attribute_type"]
    if kind.startswith(("file", "artifact")):
        return row["file_value"]["path"]
    return row[f"{kind.removesuffix('_series')}_value"]


def read_all(*paths: Path, scope: Scope = Scope.RUNS, **options: Any) -> dict[str, Read]:
    settings = OfflineSource(paths=[str(path) for path in paths], **{"project": PROJECT, **options})
    source = Offline(settings, Filters())
    found = {}
    for info in source.runs(PROJECT, scope):
        rows: list[dict[str, Any]] = []
        for chunk in source.read(PROJECT, [info.run_id], scope):
            if isinstance(chunk, RunRows):
                assert chunk.batch.schema == SCHEMA
                chunk.batch.validate(full=True)
                rows.extend(chunk.batch.to_pylist())
            else:
                found[info.run_id] = Read(source, info.run_id, scope, rows, chunk)
    return found


def read_one(*paths: Path, **options: Any) -> Read:
    (found,) = read_all(*paths, **options).values()
    return found


def write_log(folder: Path, *operations: dict[str, Any], first: int = 1, at: float = 1_700_000_000.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"obj": operation, "version": first + number, "at": at + number}) + "\n"
        for number, operation in enumerate(operations)
    ]
    (folder / f"data-{first}.log").write_text("".join(lines))
    return folder


def op(kind: str, path: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "path": path.split("/"), **fields}


def floats(path: str, *values: float) -> dict[str, Any]:
    return op("LogFloats", path, values=[{"value": value, "step": None, "ts": 1.5} for value in values])


def tree(root: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path.relative_to(root)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(root.rglob("*"))
    }


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("client")
    recorded.record("everything", path)
    return path


@pytest.fixture(scope="session")
def both(folder: Path) -> dict[str, Read]:
    return {read.value("sys/name"): read for read in read_all(folder).values()}


@pytest.fixture
def run(both: dict[str, Read]) -> Read:
    return both["first"]


@pytest.fixture
def offline(tmp_path: Path) -> Path:
    return tmp_path / ".neptune" / "offline"


@pytest.fixture
def real(folder: Path, tmp_path: Path) -> Path:
    """A copy of the first run's folder, free to be damaged."""
    for path in (folder / ".neptune" / "offline").iterdir():
        if '"first"' in (path / "data-1.log").read_text()[:400]:
            return Path(shutil.copytree(path, tmp_path / ".neptune" / "offline" / path.name))
    raise AssertionError("the first run is not there")


class TestContract(SourceContract):
    @pytest.fixture
    def case(self, folder: Path, both: dict[str, Read]) -> SourceCase:
        settings = OfflineSource(paths=[str(folder)], project=PROJECT)
        return SourceCase(
            open=lambda filters: Offline(settings, filters),
            roots=(folder,),
            project=PROJECT,
            run_ids=frozenset(read.run_id for read in both.values()),
            series_run=both["first"].run_id,
            series="m/points",
            parameter="p/float",
        )


def test_single_values_are_what_was_logged(run: Read) -> None:
    assert run.value("p/float") == 1.5
    assert run.kinds("p/float") == {"float"}
    assert run.value("p/int") == -(2**31)
    assert run.kinds("p/int") == {"int"}
    assert run.value("p/yes") is True
    assert run.value("p/no") is False
    assert run.value("p/string") == recorded.STRING
    assert run.value("p/empty") == ""
    assert run.value("p/when") == recorded.WHEN
    assert run.value("p/twice") == 3
    assert run.value(recorded.LONG_NAME) == "long"
    assert run.value("Case") == 1
    assert run.value("case") == 2
    assert run.value("sys/name") == "first"
    assert run.value("sys/description") == ""
    assert run.value("sys/failed") is False


def test_string_sets(run: Read) -> None:
    assert run.value("sys/tags") == ["a", "b"]
    assert run.value("s/changed") == ["x", "z"]
    assert run.value("s/cleared") == []
    assert run.kinds("s/cleared") == {"string_set"}


def test_points_are_exact(run: Read) -> None:
    rows = [row for row in run.rows if row["attribute_path"] == "m/points"]
    assert [row["float_value"].hex() for row in rows] == [float(value).hex() for value, *_ in recorded.POINTS]
    assert [row["step"] for row in rows] == [Decimal(str(step)) for _, step, *_ in recorded.POINTS]
    times = [(row["timestamp"] - EPOCH) / timedelta(milliseconds=1) for row in rows]
    assert times == [milliseconds for *_, milliseconds in recorded.POINTS]
    assert run.points("m/bulk") == [(Decimal(2 * n), float(n)) for n in range(250)]


def test_points_without_a_step_are_numbered(run: Read) -> None:
    assert run.points("m/numbered") == [(Decimal(0), 7.0), (Decimal(1), 8.0), (Decimal(2), 9.0)]
    assert run.points("m/from") == [(Decimal(10), 1.0), (Decimal(11), 2.0)]
    assert run.values("m/texts") == recorded.TEXTS
    assert run.kinds("m/texts") == {"string_series"}
    # numbered 3, from 1, texts 4, assigned 2, again 1, texts_again 1, images cleared 1
    assert run.end.repairs == {"steps_numbered": 13}


def test_clears_and_deletes_take_points_back(run: Read) -> None:
    assert run.points("m/assigned") == [(Decimal(0), 1.0), (Decimal(1), 2.0)]
    assert run.points("m/emptied") == []
    assert run.points("m/again") == [(Decimal(0), 3.0)]
    assert run.values("m/texts_again") == ["kept"]
    assert run.value("m/retyped") == "a string now"
    assert run.values("p/deleted") == []
    assert run.values("m/deleted") == []
    assert any("m/assigned" in note for note in run.notes)


def test_files(run: Read) -> None:
    assert run.members("f/path") == {"path.bin": b"weights"}
    assert run.members("f/text") == {"text.md": "text ☃".encode()}
    assert run.members("f/bytes") == {"bytes.bin": recorded.BYTES}
    assert run.members("f/replaced") == {"replaced.txt": b"new"}


def test_file_sets(run: Read) -> None:
    content = recorded.FILES
    assert run.members("f/set") == {name: content[name] for name in ("tree/a.txt", "tree/deep/b.txt", "model.bin")}
    assert run.members("f/shrunk") == {name: content[name] for name in content if name != "tree/a.txt"}
    assert run.members("f/pruned") == {name: content[name] for name in ("tree/a.txt", "model.bin")}
    assert run.members("f/reset") == {"tree/deep/c.csv": b"1,2"}
    assert run.values("source_code/files") == []


def test_artifact_lists_its_files(run: Read, folder: Path) -> None:
    (content,) = run.members("a/tracked").values()
    listed = json.loads(content)
    expected = {"deep/er/model.bin": "model.bin", "a.txt": "tree/a.txt"}
    expected |= {"deep/b.txt": "tree/deep/b.txt", "deep/c.csv": "tree/deep/c.csv"}
    assert [entry["filePath"] for entry in listed] == sorted(expected)
    for entry in listed:
        data = recorded.FILES[expected[entry["filePath"]]]
        assert entry["fileHash"] == hashlib.sha1(data).hexdigest()
        assert entry["size"] == len(data)
        assert entry["type"] == "Local"
        where = {item["key"]: item["value"] for item in entry["metadata"]}
        assert where["file_path"] == f"file://{(folder / expected[entry['filePath']]).resolve()}"
        assert where["last_modified"][:2] == "20"


def test_artifact_of_which_only_the_hash_is_known_is_an_error(run: Read) -> None:
    (message,) = run.errors
    assert "'a/hash'" in message
    assert recorded.ARTIFACT_HASH in message


def test_images(run: Read) -> None:
    assert run.kinds("i/images") == {"file_series"}
    assert [step for step, _ in run.points("i/images")] == [Decimal(3), Decimal(4)]
    for index, colour in enumerate([(255, 0, 0), (0, 0, 255)]):
        ((name, data),) = run.members("i/images", index).items()
        assert name == "images.png"
        picture = Image.open(io.BytesIO(data))
        assert picture.size == recorded.PICTURE_SIZE
        assert picture.getpixel((0, 0)) == colour
    assert any("i/images" in note and "2 images" in note for note in run.notes)
    ((_, data),) = run.members("i/cleared").items()
    assert Image.open(io.BytesIO(data)).getpixel((0, 0)) == (0, 128, 0)


def test_copies_within_and_between_runs(both: dict[str, Read]) -> None:
    assert both["first"].value("c/float") == 1.5
    second = both["second"]
    assert second.value("c/string") == recorded.STRING
    assert second.value("c/again") == recorded.STRING
    assert second.value("c/when") == recorded.WHEN
    assert second.value("c/int") == 2, "the value as it was when it was copied, not as it became"
    assert second.errors == []


def test_copy_from_a_run_that_is_not_here_is_an_error(folder: Path, tmp_path: Path) -> None:
    for path in (folder / ".neptune" / "offline").iterdir():
        if '"second"' in (path / "data-1.log").read_text()[:400]:
            shutil.copytree(path, tmp_path / ".neptune" / "offline" / path.name)
    second = read_one(tmp_path)
    assert second.values("c/string") == []
    assert len(second.errors) == 4
    assert all("paths" in message for message in second.errors)


def test_copies_in_a_circle_end(offline: Path) -> None:
    other = UUID.replace("0", "9")
    copy = {"container_type": "run", "source_attr_name": "Float"}
    write_log(offline / NAME, op("CopyAttribute", "x", container_id=other, source_path=["x"], **copy))
    write_log(
        offline / f"run__{other}__1__abcdefgh", op("CopyAttribute", "x", container_id=UUID, source_path=["x"], **copy)
    )
    for read in read_all(offline).values():
        assert read.values("x") == []
        assert len(read.errors) == 1


def test_ids_and_times_are_stable(folder: Path, both: dict[str, Read], tmp_path: Path) -> None:
    copied = shutil.copytree(folder / ".neptune", tmp_path / "elsewhere" / ".neptune")
    assert set(read_all(copied)) == {read.run_id for read in both.values()}
    for path in (folder / ".neptune" / "offline").iterdir():
        run_id = "OFFLINE-" + path.name.split("__")[1].replace("-", "")[:12]
        metadata = json.loads((path / "metadata.json").read_text())
        created = datetime.fromisoformat(metadata["createdAt"])
        (read,) = [read for read in both.values() if read.run_id == run_id]
        assert read.value("sys/id") == run_id
        assert read.value("sys/creation_time") == created.replace(microsecond=created.microsecond // 1000 * 1000)
        (info,) = [info for info in read.source.runs(PROJECT) if info.run_id == run_id]
        assert info.created_at == created
        assert info.modified_at is not None
        assert info.modified_at >= created


def test_promise_counts_what_was_read(run: Read) -> None:
    seen: dict[str, set[str]] = {}
    for row in run.rows:
        seen.setdefault(row["attribute_type"], set()).add(row["attribute_path"])
    assert run.end.promised == {kind: len(paths) for kind, paths in seen.items()}


def test_recordings_are_never_changed(folder: Path) -> None:
    before = tree(folder)
    for read in read_all(folder).values():
        for row in read.rows:
            if row["file_value"] is not None:
                for file in read.source.files(PROJECT, read.run_id, row["file_value"]["path"]):
                    file.open().close()
    assert tree(folder) == before


def test_files_are_found_by_a_source_that_did_not_read(run: Read, folder: Path) -> None:
    fresh = Offline(OfflineSource(paths=[str(folder)], project=PROJECT), Filters())
    for path, expected in (("f/set", 3), ("a/tracked", 1), ("i/images", 1), ("f/text", 1)):
        assert len(fresh.files(PROJECT, run.run_id, run.values(path)[0])) == expected
    with pytest.raises(FileGoneError):
        fresh.files(PROJECT, run.run_id, run.value("f/text") + "1")


def test_project_must_be_named(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"source\.offline\.project"):
        Offline(OfflineSource(paths=[str(folder)]), Filters()).projects()


@pytest.mark.parametrize(
    "place",
    [
        f"async/{NAME}",
        f"async/{NAME}__0",
        f"async/run__{UUID}/exec-1700000000.5-2023-11-14_22.13.20.500000-77",
        f"async/{UUID}/exec-1700000000.5-2023-11-14_22.13.20.500000-77",
        f"offline/run__{UUID}",
        f"offline/{UUID}",
    ],
)
def test_every_layout_is_the_same_run(real: Path, folder: Path, tmp_path: Path, place: str) -> None:
    as_recorded = read_one(real, search_files_in=[str(folder)])
    target = tmp_path / "moved" / ".neptune" / place
    target.parent.mkdir(parents=True)
    real.rename(target)
    metadata = target / "metadata.json"
    if "exec-" in place:
        metadata.unlink()
    read = read_one(tmp_path / "moved", search_files_in=[str(folder)])
    assert read.run_id == RUN_ID
    # Without metadata nothing says that the copy of a value within the run is one.
    missing = set() if metadata.exists() else {"c/float"}
    rows = [row["attribute_path"] for row in as_recorded.rows if row["attribute_path"] not in missing]
    assert rows == [row["attribute_path"] for row in read.rows]
    assert len(read.errors) == 1 + len(missing)
    assert len(json.loads(next(iter(read.members("a/tracked").values())))) == 4
    assert read.points("m/points") == as_recorded.points("m/points")
    assert read.members("f/bytes") == {"bytes.bin": recorded.BYTES}
    first_at = json.loads((target / "data-1.log").read_text().splitlines()[0])["at"]
    if not metadata.exists():
        assert abs(read.value("sys/creation_time").timestamp() - first_at) < 0.001


@pytest.mark.parametrize(("kind", "scope"), [("model", Scope.MODELS), ("model_version", Scope.MODEL_VERSIONS)])
def test_models_have_their_own_scope(tmp_path: Path, kind: str, scope: Scope) -> None:
    write_log(tmp_path / "async" / f"{kind}__{UUID}__7__abcdefgh", op("AssignInt", "x", value=1))
    write_log(tmp_path / "async" / NAME, op("AssignInt", "x", value=2))
    assert read_one(tmp_path).value("x") == 2
    assert read_one(tmp_path, scope=scope).value("x") == 1


def test_metadata_of_a_project_is_left_out_and_told(tmp_path: Path) -> None:
    write_log(tmp_path / "async" / f"project__{UUID}__7__abcdefgh", op("AssignInt", "x", value=1))
    write_log(tmp_path / "async" / NAME, op("AssignInt", "x", value=2))
    (problem,) = read_one(tmp_path).source.problems(PROJECT)
    assert "project__" in problem.message


def test_unknown_structure_is_refused(real: Path) -> None:
    metadata = json.loads((real / "metadata.json").read_text())
    (real / "metadata.json").write_text(json.dumps(metadata | {"structureVersion": 4}))
    write_log(real.parent / NAME, op("AssignInt", "x", value=2))
    (problem,) = read_one(real.parent).source.problems(PROJECT)
    assert str(real) in problem.message
    assert "structureVersion 4" in problem.message


def test_log_without_a_name_is_refused_and_foreign_logs_are_ignored(tmp_path: Path) -> None:
    write_log(tmp_path / "async" / NAME, op("AssignInt", "x", value=2))
    write_log(tmp_path / "renamed", op("AssignInt", "x", value=3))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "data-1.log").write_text("12:00 all is well\n")
    (tmp_path / "sync" / NAME / "upload_path").mkdir(parents=True)
    (problem,) = read_one(tmp_path).source.problems(PROJECT)
    assert str(tmp_path / "renamed") in problem.message


def test_a_file_among_the_paths_is_no_problem(offline: Path) -> None:
    execution = write_log(offline / NAME, op("AssignInt", "x", value=1))
    read = read_one(offline, execution / "data-1.log")
    assert read.value("x") == 1
    assert list(read.source.problems(PROJECT)) == []


def test_executions_are_merged_in_time_order(tmp_path: Path) -> None:
    base = tmp_path / "async"
    write_log(base / f"run__{UUID}__2__bbbbbbbb", op("AssignInt", "x", value=2), floats("m", 3.0), at=1_700_000_100.0)
    write_log(base / f"run__{UUID}__1__cccccccc", op("AssignInt", "x", value=1), floats("m", 1.0, 2.0))
    write_log(base / f"run__{UUID}__3__aaaaaaaa", op("AssignInt", "y", value=5), at=1_700_000_100.5)
    read = read_one(tmp_path)
    assert read.value("x") == 2
    assert read.value("y") == 5
    assert read.points("m") == [(Decimal(0), 1.0), (Decimal(1), 2.0), (Decimal(2), 3.0)]


def test_clear_in_a_later_execution(tmp_path: Path) -> None:
    base = tmp_path / "async"
    write_log(base / f"run__{UUID}__1__cccccccc", floats("m", 1.0, 2.0))
    later = (op("ClearFloatLog", "m"), floats("m", 3.0))
    write_log(base / f"run__{UUID}__2__bbbbbbbb", *later, at=1_700_000_100.0)
    assert read_one(tmp_path).points("m") == [(Decimal(0), 3.0)]


def test_copies_of_one_execution_count_once(tmp_path: Path) -> None:
    write_log(tmp_path / "a" / "offline" / NAME, floats("m", 1.0))
    write_log(tmp_path / "b" / "offline" / NAME, floats("m", 1.0), floats("m", 2.0))
    read = read_one(tmp_path)
    assert read.points("m") == [(Decimal(0), 1.0), (Decimal(1), 2.0)]
    assert any(str(tmp_path / "a") in note for note in read.notes)


def test_log_files_are_read_in_order_of_their_numbers(offline: Path) -> None:
    for first, value in ((1, 0.0), (2, 1.0), (3, 2.0)):
        write_log(offline / NAME, *[floats("m", value)], first=first)
    write_log(offline / NAME, *[floats("m", float(n)) for n in range(3, 9)], first=4)
    write_log(offline / NAME, floats("m", 9.0), first=10)
    read = read_one(offline)
    assert [value for _, value in read.points("m")] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]


def test_process_killed_while_logging(tmp_path: Path) -> None:
    recorded.record("killed", tmp_path)
    (execution,) = (tmp_path / ".neptune" / "offline").iterdir()
    put = int((execution / "last_put_version").read_text())
    text = (execution / "data-1.log").read_text()
    whole = text.count("}\n")
    read = read_one(tmp_path)
    values = [value for _, value in read.points("m/loss")]
    assert values == [float(n) for n in range(len(values))]
    assert 0 < len(values) < whole
    assert whole < put, "the buffer was flushed by chance; log more"
    assert any(str(put) in message for message in read.errors)
    assert read.end.promised is None


def test_torn_record_is_dropped_and_noted(offline: Path) -> None:
    execution = write_log(offline / NAME, floats("m", 1.0), floats("m", 2.0))
    log = execution / "data-1.log"
    whole = log.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first + 1, len(whole) - 1, 5):
        log.write_bytes(whole[:cut])
        read = read_one(offline)
        assert read.points("m") == [(Decimal(0), 1.0)]
        assert read.errors == []
        assert [str(log) in note and str(first) in note for note in read.notes] == [True]


def test_operations_that_never_reached_the_disk(offline: Path) -> None:
    execution = write_log(offline / NAME, floats("m", 1.0), floats("m", 2.0))
    (execution / "last_put_version").write_text("5")
    read = read_one(offline)
    (message,) = read.errors
    assert "3 to 5" in message
    assert len(read.points("m")) == 2


@pytest.mark.parametrize("garbage", [b"\0" * 5_000, b"%&! no json\n", b'{"obj": {"type": "Assi', b"\xff\xfe" * 700_000])
def test_garbage_in_the_middle_makes_the_run_partial(offline: Path, garbage: bytes) -> None:
    execution = write_log(offline / NAME, *[floats("m", float(n)) for n in range(5)])
    log = execution / "data-1.log"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2]) + garbage + b"".join(lines[3:]))
    read = read_one(offline)
    start = len(b"".join(lines[:2]))
    assert [value for _, value in read.points("m")] == [0.0, 1.0, 3.0, 4.0]
    assert any(str(log) in message and f" {start} " in message for message in read.errors)
    assert any("3 to 3" in message for message in read.errors)
    assert read.end.promised is None


def test_garbage_inside_the_values_of_a_record(offline: Path) -> None:
    execution = write_log(offline / NAME, *[floats("m", float(n)) for n in range(3)])
    write_log(offline / NAME, op("ClearFloatLog", "n"), floats("n", 5.0), first=4)
    log = execution / "data-1.log"
    lines = log.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"step"', b"\0step\0")
    log.write_bytes(b"".join(lines))
    read = read_one(offline)
    assert [value for _, value in read.points("m")] == [0.0, 2.0]
    assert any(str(log) in message and f" {len(lines[0])} " in message for message in read.errors)
    assert any("2 to 2" in message for message in read.errors)
    assert read.points("n") == [(Decimal(0), 5.0)]
    assert len(read.errors) == 2
    assert read.end.promised is None


def test_records_on_one_line(offline: Path) -> None:
    execution = write_log(offline / NAME, *[floats("m", float(n)) for n in range(3)], op("AssignInt", "x", value=1))
    log = execution / "data-1.log"
    log.write_bytes(log.read_bytes().replace(b"\n", b""))
    read = read_one(offline)
    assert [value for _, value in read.points("m")] == [0.0, 1.0, 2.0]
    assert read.value("x") == 1
    assert read.errors == []


def test_paths_of_all_kinds(offline: Path) -> None:
    names = ['a"b', "back\\slash", "☃", '[x], "y', "tab\t", '], "values": [', "nul\0"]
    segments = [[name, "s"] for name in names]
    write_log(
        offline / NAME,
        *[{**floats("x", float(number)), "path": path} for number, path in enumerate(segments)],
        {**floats("x", 1.0), "path": [1, 2]},
        {**floats("x", 1.0), "path": []},
    )
    read = read_one(offline)
    for number, path in enumerate(segments):
        assert read.points("/".join(path)) == [(Decimal(0), float(number))]
    assert len(read.errors) == 2


def test_gap_names_the_range(offline: Path) -> None:
    write_log(offline / NAME, floats("m", 1.0))
    execution = write_log(offline / NAME, floats("m", 2.0), first=7)
    (message,) = read_one(offline).errors
    assert "2 to 6" in message
    assert str(execution) in message


def test_acknowledged_operations_are_read_while_they_are_there(tmp_path: Path) -> None:
    execution = write_log(tmp_path / "async" / NAME, floats("m", 1.0), floats("m", 2.0))
    (execution / "last_put_version").write_text("2")
    (execution / "last_ack_version").write_text("2")
    read = read_one(tmp_path)
    assert len(read.points("m")) == 2
    assert read.errors == []


def test_acknowledged_operations_that_are_gone(tmp_path: Path) -> None:
    execution = write_log(tmp_path / "async" / NAME, floats("m", 1.0), first=101)
    (execution / "last_ack_version").write_text("100")
    read = read_one(tmp_path)
    (message,) = read.errors
    assert "1 to 100" in message
    assert "acknowledged" in message
    assert read.points("m") == [(Decimal(0), 1.0)]


def test_repeated_versions_and_records_that_are_none(offline: Path) -> None:
    execution = write_log(offline / NAME, floats("m", 1.0))
    log = execution / "data-1.log"
    good = log.read_text()
    log.write_text(good + good + '{"obj": 5, "version": 2}\n' + '{"other": 1}\n')
    read = read_one(offline)
    assert read.points("m") == [(Decimal(0), 1.0)]
    assert len(read.errors) == 3


def test_numbers_of_every_size(offline: Path) -> None:
    write_log(
        offline / NAME,
        op("AssignInt", "max", value=2**63 - 1),
        op("AssignInt", "min", value=-(2**63)),
        op("AssignInt", "over", value=2**63),
        op("AssignFloat", "nan", value=float("nan")),
        op("AssignFloat", "inf", value=float("-inf")),
        op("AssignFloat", "whole", value=3),
        op("AssignInt", "wrong", value="text"),
        floats("m", float("nan"), float("inf"), -0.0),
        op("AssignDatetime", "when", value=-1),
        op("Invented", "new"),
        op("LogFloats", "odd", values=[{"value": 1, "step": 1e12, "ts": 1}, {"value": 2, "step": 2, "ts": None}]),
    )
    read = read_one(offline)
    assert read.value("max") == 2**63 - 1
    assert read.value("min") == -(2**63)
    assert read.value("nan") != read.value("nan")
    assert read.value("inf") == float("-inf")
    assert read.value("whole") == 3.0
    assert read.value("when") == EPOCH - timedelta(milliseconds=1)
    assert [value.hex() for value in read.values("m")] == ["nan", "inf", "-0x0.0p+0"]
    assert read.points("odd") == [(Decimal(2), 2.0)]
    for name in ("over", "wrong", "new", "odd"):
        assert sum(f"'{name}'" in message for message in read.errors) == 1
    assert len(read.errors) == 4


def test_two_types_at_one_path_lose_neither(offline: Path) -> None:
    write_log(offline / NAME, op("AssignInt", "x", value=1), floats("x", 2.0))
    read = read_one(offline)
    assert sorted(read.values("x")) == [1, 2.0]
    assert any("'x'" in note for note in read.notes)


def test_old_forms_of_images_and_files(offline: Path) -> None:
    jpeg = b"\xff\xd8\xff\xe0 rest"
    text = base64.b64encode(jpeg).decode()
    images = [{"value": value, "step": n, "ts": 1} for n, value in enumerate([text, None, {"data": "no base64!"}])]
    content = base64.b64encode(b"inside the log").decode()
    write_log(
        offline / NAME,
        op("LogImages", "i", values=images),
        op("UploadFileContent", "f/old", ext="log", file_content=content),
    )
    read = read_one(offline)
    assert [step for step, _ in read.points("i")] == [Decimal(0)]
    assert read.members("i") == {"i.jpg": jpeg}
    assert read.members("f/old") == {"old.log": b"inside the log"}
    assert len(read.errors) == 2


def upload(path: str, **fields: Any) -> dict[str, Any]:
    return op("UploadFile", path, **{"ext": "txt", "file_path": None, "tmp_file_name": None, **fields})


def test_files_that_are_gone_are_looked_for(offline: Path, tmp_path: Path) -> None:
    for name, text in (("one/data/x.txt", "one"), ("two/data/x.txt", "two"), ("one/y.txt", "y")):
        (tmp_path / "kept" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "kept" / name).write_text(text)
    write_log(
        offline / NAME,
        upload("x", file_path="/no/such/two/data/x.txt"),
        upload("y", file_path="C:\\Users\\me\\y.txt"),
        upload("tie", file_path="/no/such/x.txt"),
        upload("z", file_path="/no/such/z.txt"),
        op("UploadFileSet", "set", file_globs=["/no/such/y.txt", "/no/such/*.csv"], reset="False"),
        op("UploadFileSet", "empty", file_globs=["/no/such/*.csv"], reset="True"),
        op("TrackFilesToArtifact", "art", entries=[["/no/such/dir", None], ["s3://bucket/key", None]], project_id="p"),
    )
    read = read_one(offline, search_files_in=[str(tmp_path / "kept")])
    assert read.members("x") == {"x.txt": b"two"}
    assert read.members("y") == {"y.txt": b"y"}
    for name in ("tie", "z"):
        with pytest.raises(FileGoneError, match=f"/no/such/{'x' if name == 'tie' else 'z'}.txt"):
            read.members(name)
    assert read.members("set") == {"y.txt": b"y"}
    assert read.values("empty") == []
    assert read.values("art") == []
    assert sum("/no/such/*.csv" in message for message in read.errors) == 2
    assert sum("s3://bucket/key" in message for message in read.errors) == 1
    assert sum("/no/such/dir" in message for message in read.errors) == 1


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "..", "", "a/b", "link"])
def test_uploads_never_leave_their_folder(offline: Path, tmp_path: Path, name: str) -> None:
    execution = write_log(offline / NAME, upload("x", tmp_file_name=name))
    (execution / "upload_path").mkdir()
    (execution / "secret").write_text("secret")
    (execution / "upload_path" / "link").symlink_to(execution / "secret")
    with pytest.raises(UnsafePathError):
        read_one(offline).members("x")


def test_relative_file_path_is_refused(offline: Path) -> None:
    write_log(offline / NAME, upload("x", file_path="../../x.txt"))
    with pytest.raises(UnsafePathError):
        read_one(offline).members("x")


def test_file_changed_after_it_was_logged_is_noted(offline: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    target.write_text("now")
    os.utime(target, (1_700_000_500, 1_700_000_500))
    write_log(offline / NAME, upload("x", file_path=str(target)))
    assert any(str(target) in note for note in read_one(offline).notes)


def test_file_set_outside_the_working_directory(offline: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    away = tmp_path_factory.mktemp("away")
    (away / "in" / "deep").mkdir(parents=True)
    (away / "in" / "a.txt").write_text("a")
    (away / "in" / "deep" / "b.txt").write_text("b")
    globs = [f"{away}/in/**"]
    write_log(
        offline / NAME,
        op("UploadFileSet", "set", file_globs=globs, reset="False"),
        op("UploadFileSet", "one", file_globs=[f"{away}/in/deep/b.txt"], reset="False"),
    )
    read = read_one(offline)
    assert read.members("set") == {"a.txt": b"a", "deep/b.txt": b"b"}
    assert read.members("one") == {"b.txt": b"b"}


def test_fingerprint_follows_the_recording(real: Path, tmp_path: Path) -> None:
    source = Offline(OfflineSource(paths=[str(tmp_path)], project=PROJECT), Filters())

    def fingerprint() -> str:
        return source.runs(PROJECT)[0].fingerprint

    first = fingerprint()
    assert fingerprint() == first
    for path in (real / "data-1.log", real / "metadata.json", min((real / "upload_path").iterdir())):
        with path.open("ab") as file:
            file.write(b" ")
        assert fingerprint() != first
        first = fingerprint()


def test_filters_leave_attributes_out(real: Path) -> None:
    settings = OfflineSource(paths=[str(real)], project=PROJECT)
    source = Offline(settings, Filters.model_validate({"attributes": {"include": ["^m/points$"]}}))
    (info,) = source.runs(PROJECT)
    chunks = list(source.read(PROJECT, [info.run_id]))
    end = chunks[-1]
    assert isinstance(end, RunEnd)
    assert end.promised == {"float_series": 1}
    assert sum(chunk.batch.num_rows for chunk in chunks if isinstance(chunk, RunRows)) == len(recorded.POINTS)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1_700_000_000.0005, 1_700_000_000_000),
        (1_700_000_000.0015, 1_700_000_000_002),
        (1_700_000_000.00151, 1_700_000_000_002),
        (-0.0005, 0),
        (-0.0015, -2),
        (0.0025, 2),
        (12, 12_000),
    ],
)
def test_milliseconds_are_rounded_half_even(seconds: float, expected: int) -> None:
    assert milliseconds(seconds) == expected


@pytest.mark.parametrize(
    "step", ["0.000001", "0.0000005", "0.0000015", "8796093.0000005", "123456789012.123456", "-7.5"]
)
def test_steps_are_rounded_like_decimals(step: str) -> None:
    assert micro_steps(float(step)) == round(Decimal(repr(float(step))) * 1_000_000)


def chunks_of(data: bytes, tmp_path: Path) -> list[Any]:
    path = tmp_path / "data-1.log"
    path.write_bytes(data)
    return list(json_objects(path))


def test_objects_need_no_lines_and_may_hold_raw_characters(tmp_path: Path) -> None:
    big = json.dumps({"obj": {"text": "x" * 3_000_000}})
    text = '{"obj": 1}{"obj": "raw \n and \t ☃"}\n\n ' + big + '{"obj": "\\u2603"}'
    found = chunks_of(text.encode(), tmp_path)
    assert [value["obj"] for _, value in found if isinstance(value, dict)][:2] == [1, "raw \n and \t ☃"]
    start = text.encode().index(big.encode())
    assert [offset for offset, _ in found] == [0, 10, start, start + len(big)]
    assert found[2][1] == json.loads(big)
    assert found[3][1] == {"obj": "☃"}


def test_deep_nesting_and_wrong_bytes_are_garbage(tmp_path: Path) -> None:
    good = b'{"obj": 2}\n'
    deep = b'{"a":' * 200_000 + b"1" + b"}" * 200_000 + b"\n"
    found = chunks_of(deep + good + b'{"obj": "\xff"}\n' + good, tmp_path)
    assert [item for item in found if isinstance(item, Garbage)] == [
        Garbage(0, len(deep)),
        Garbage(len(deep) + len(good), len(deep) + len(good) + len(b'{"obj": "\xff"}\n')),
    ]
    assert [item[1] for item in found if not isinstance(item, Garbage)] == [{"obj": 2}, {"obj": 2}]


def test_records_are_read_with_bounded_memory(offline: Path) -> None:
    import tracemalloc

    execution = write_log(offline / NAME)
    text = "y" * 10_000
    with (execution / "data-1.log").open("w") as log:
        for version in range(1, 4_001):
            values = [{"value": text, "step": version, "ts": 1}]
            log.write(json.dumps({"obj": op("LogStrings", "s", values=values), "version": version}) + "\n")

    def consume() -> Iterator[int]:
        for entry in Log.of(execution, ("data-1.log",)).entries():
            yield entry.version

    tracemalloc.start()
    assert sum(consume()) == 4_000 * 4_001 // 2
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * 1024 * 1024
