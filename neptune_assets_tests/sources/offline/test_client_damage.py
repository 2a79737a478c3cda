"""Recordings of neptune-client that are torn, garbled, incomplete or hostile, and files of theirs that are gone."""

from __future__ import annotations

import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.errors import FileGoneError, UnsafePathError
from neptune_assets_tests.support import client_recorder as recorded
from neptune_assets_tests.support.client_reading import (
    NAME,
    floats,
    op,
    read_one,
    write_log,
)


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
    assert len(read.errors) == 2
    assert ["1 records a second time" in note for note in read.notes] == [True]


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
    (listed,) = read.members("art").values()
    assert [item["metadata"] for item in json.loads(listed)] == [[{"key": "location", "value": "s3://bucket/key"}]]
    assert sum("/no/such/*.csv" in message for message in read.errors) == 2
    assert sum("s3://bucket/key" in message for message in read.notes) == 1
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
