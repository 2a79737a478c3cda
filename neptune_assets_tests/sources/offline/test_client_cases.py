"""Faults that people met with recordings of neptune-client, on inputs that real clients made (see `cases/`)."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.errors import SourceError
from neptune_assets.settings import Filters
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.offline.source import Offline
from neptune_assets.sources.values import printable, printable_names
from neptune_assets_tests.support.client_reading import (
    NAME,
    PROJECT,
    UUID,
    Read,
    floats,
    op,
    read_all,
    read_one,
    write_log,
)

CASES = Path(__file__).resolve().parents[2] / "cases"
RELEASES = ["0.9.19", "0.10.10", "0.14.3", "0.16.19", "1.3.2", "1.8.6", "1.14.0"]

Unpack = Callable[[str, str], Path]


@pytest.fixture
def unpacked(tmp_path: Path) -> Unpack:
    """Gives a recording of a release and scenario, moved to another directory than the one it was made in."""

    def unpack(release: str, scenario: str) -> Path:
        with tarfile.open(CASES / "neptune-client" / f"{release}.tar.gz") as archive:
            archive.extractall(tmp_path / "moved", filter="data")
        return tmp_path / "moved" / scenario

    return unpack


def case(name: str, tmp_path: Path) -> Path:
    """A copy of a case's input, free to be changed."""
    packed = CASES / f"{name}.tar.gz"
    if packed.exists():
        with tarfile.open(packed) as archive:
            archive.extractall(tmp_path, filter="data")
        return tmp_path / name
    return Path(shutil.copytree(CASES / name, tmp_path / name))


def numbered(*values: Any) -> list[tuple[Decimal, Any]]:
    return [(Decimal(step), value) for step, value in enumerate(values)]


def whole(read: Read) -> bool:
    return read.errors == [] and read.end.promised is not None


def test_records_repeated_by_forked_workers_are_passed_over(tmp_path: Path) -> None:
    read = read_one(case("forked-workers", tmp_path))
    assert whole(read)
    assert read.points("train/loss") == numbered(*[1 / (step + 1) for step in range(12)])
    assert read.points("train/lr") == numbered(*[0.1] * 4, *[0.05] * 4, *[0.025] * 4)
    assert read.points("log") == numbered(*[f"line {number}" for number in range(12)])
    assert read.points("val/acc") == numbered(0.5, 0.6, 0.7)
    assert (read.value("params/lr"), read.value("result")) == (0.1, "ok")
    assert ["a second time" in note for note in read.notes] == [True]


@pytest.mark.parametrize("release", RELEASES)
def test_workers_that_only_read_change_nothing(unpacked: Unpack, release: str) -> None:
    read = read_one(unpacked(release, "readers"))
    assert whole(read)
    assert read.points("loss") == numbered(*[1 / (step + 1) for step in range(12)])
    assert read.points("log") == numbered(*[f"line {number}" for number in range(12)])
    assert (read.value("params/lr"), read.value("result")) == (0.1, "ok")


@pytest.mark.parametrize("release", RELEASES)
def test_what_workers_log_under_versions_of_their_parent_is_kept(unpacked: Unpack, release: str) -> None:
    read = read_one(unpacked(release, "writers"))
    assert whole(read)
    assert read.points("loss") == numbered(1.0, 0.5)
    for worker in range(4):
        assert read.points(f"worker/{worker}/loss") == numbered(*[10.0 * worker + step for step in range(5)])
        assert read.value(f"worker/{worker}/done") is True
    assert (read.value("params/lr"), read.value("result")) == (0.1, "ok")


def test_other_content_under_an_old_version_is_kept_in_the_order_of_the_file(offline: Path) -> None:
    folder = write_log(offline / NAME, floats("m", 1.0), floats("m", 2.0), floats("m", 3.0))
    log = folder / "data-1.log"
    own = write_log(folder / "other", floats("m", 20.0), op("ClearFloatLog", "m"), floats("m", 30.0), first=2)
    child = (own / "data-2.log").read_text()
    shutil.rmtree(own)
    log.write_text(log.read_text() + child + child + "".join(log.read_text().splitlines(keepends=True)[:2]))
    read = read_one(offline)
    assert whole(read)
    assert read.points("m") == numbered(30.0)
    assert ["5 records a second time" in note for note in read.notes] == [True]


def test_a_version_that_comes_late_closes_the_gap(offline: Path) -> None:
    folder = write_log(offline / NAME, floats("m", 1.0), floats("m", 2.0), floats("m", 3.0), floats("m", 4.0))
    lines = (folder / "data-1.log").read_text().splitlines(keepends=True)
    (folder / "data-1.log").write_text("".join([lines[0], lines[3], lines[1]]))
    read = read_one(offline)
    assert [value for _, value in read.points("m")] == [1.0, 4.0, 2.0]
    assert ["Operations 3 to 3 are missing" in message for message in read.errors] == [True]


def test_sessions_without_times_are_in_the_order_of_their_folders(tmp_path: Path) -> None:
    read = read_one(case("execution-order", tmp_path))
    assert whole(read)
    assert (read.value("params/lr"), read.value("params/from")) == (11.0, "part 11")
    assert read.points("auto") == numbered(
        *[0, 1, 12, 13, 24, 25, 36, 37, 48, 49, 60, 61, 72, 73, 84, 85, 96, 97, 108, 109, 120, 121, 132, 133]
    )
    assert set(read.value("sys/tags")) == {f"p{number}" for number in range(12) if number != 4}


@pytest.mark.parametrize("release", ["0.9.19", "0.14.3", "0.16.19"])
def test_sessions_of_every_client_without_times_are_in_order(unpacked: Unpack, release: str) -> None:
    read = read_one(unpacked(release, "sessions"))
    assert whole(read)
    assert read.value("params/from") == 6
    assert read.points("loss") == numbered(*[float(number) for number in range(7)])


def test_sessions_below_several_machines_folders_and_paths_are_one_run(tmp_path: Path) -> None:
    folder = case("execution-order", tmp_path)
    (found,) = (folder / "counters" / ".neptune" / "async").iterdir()
    for number, execution in enumerate(sorted(found.iterdir())):
        place = tmp_path / f"machine-{9 - number % 3}" / ".neptune" / "async" / found.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.move(execution, place / execution.name)
    shutil.rmtree(folder)
    together = read_one(tmp_path)
    apart = read_one(*sorted(tmp_path.glob("machine-*")))
    for read in (together, apart):
        assert whole(read)
        assert read.value("params/lr") == 11.0
        assert [value for _, value in read.points("auto")][-4:] == [120.0, 121.0, 132.0, 133.0]
        assert [step for step, _ in read.points("auto")] == [Decimal(step) for step in range(24)]


@pytest.mark.parametrize(
    "names",
    [
        ["exec-999999999.5-2001-09-09_01.46.39.500000-9", "exec-1000000000.5-2001-09-09_01.46.40.500000-8"],
        ["exec-1700000000.5-2023-11-14_22.13.20.500000", "exec-1700000001.25-2023-11-14_22.13.21.250000-3-x"],
        ["exec-0-offline", "exec-1-2020-01-02 03:04:05", "exec-2-2020-01-02 03:04:05.5"],
        ["exec-9-2020-01-02 03:04:05", "exec-10-2020-01-02 03:04:05"],
    ],
)
def test_folders_names_order_what_has_no_time_at_all(tmp_path: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        folder = tmp_path / ".neptune" / "async" / UUID / name
        folder.mkdir(parents=True)
        record = {"obj": op("AssignInt", "x", value=number), "version": 1}
        (folder / "data-1.log").write_text(json.dumps(record) + "\n")
    assert read_one(tmp_path).value("x") == len(names) - 1


def test_local_dates_are_set_right_by_the_times_of_points(tmp_path: Path) -> None:
    # The first machine's clock is nine hours ahead of the second's; its session was the earlier one.
    for number, (name, ts) in enumerate(
        [("exec-0-2023-11-15 07:13:20", 1_700_000_000.0), ("exec-1-2023-11-15 00:13:20", 1_700_007_200.5)]
    ):
        folder = tmp_path / str(number) / ".neptune" / "async" / UUID / name
        folder.mkdir(parents=True)
        operations = (
            op("AssignInt", "x", value=number),
            op("LogFloats", "m", values=[{"value": 1.0 * number, "step": None, "ts": ts + 1}]),
        )
        lines = [json.dumps({"obj": item, "version": version + 1}) for version, item in enumerate(operations)]
        (folder / "data-1.log").write_text("\n".join(lines) + "\n")
    read = read_one(tmp_path)
    assert read.value("x") == 1
    assert read.points("m") == numbered(0.0, 1.0)


def test_executions_in_which_nothing_was_recorded_make_no_run(tmp_path: Path) -> None:
    folder = case("empty-leftovers", tmp_path)
    source = Offline(OfflineSource(paths=[str(folder)], project=PROJECT), Filters())
    with pytest.raises(SourceError, match="Nothing was recorded in 4 executions"):
        source.projects()
    problems = source.problems(PROJECT)
    assert any("4 executions" in problem.message for problem in problems)
    assert all(problem.notice for problem in problems)


@pytest.mark.parametrize("release", ["1.3.2", "1.8.6"])
def test_leftovers_of_every_client_make_no_run(unpacked: Unpack, release: str) -> None:
    source = Offline(OfflineSource(paths=[str(unpacked(release, "leftovers"))], project=PROJECT), Filters())
    with pytest.raises(SourceError, match="Nothing was recorded in 3 executions"):
        source.projects()
    assert all(problem.notice for problem in source.problems(PROJECT))


def test_leftovers_beside_a_run_neither_change_it_nor_make_another(offline: Path, tmp_path: Path) -> None:
    write_log(offline / NAME, floats("m", 1.0))
    before = read_one(offline)
    case("empty-leftovers", tmp_path)
    empty = offline / f"run__{UUID}__78__zzzzzzzz"
    empty.mkdir()
    (empty / "data-1.log").write_text("")
    torn = offline / "run__99999999-89ab-cdef-0123-456789abcdef__78__zzzzzzzz"
    torn.mkdir()
    (torn / "data-1.log").write_text('{"obj": {"type": "Assig')
    read = read_one(tmp_path)
    assert read.rows == before.rows
    assert whole(read)
    assert any("6 executions" in problem.message for problem in read.source.problems(PROJECT))


def test_what_was_lost_is_not_taken_for_nothing(offline: Path) -> None:
    for number, (content, put) in enumerate([("", "5"), ("\0" * 500, "")]):
        folder = offline / NAME.replace("0123", f"{number}999")
        folder.mkdir(parents=True)
        (folder / "data-1.log").write_text(content)
        (folder / "last_put_version").write_text(put)
    runs = read_all(offline)
    assert len(runs) == 2
    assert all(read.errors and read.end.promised is None for read in runs.values())


def test_operations_that_the_server_took_are_named_as_such(offline: Path) -> None:
    folder = write_log(offline / NAME)
    for name in ("last_put_version", "last_ack_version"):
        (folder / name).write_text("7")
    (message,) = read_one(offline).errors
    assert "1 to 7" in message
    assert "acknowledged by the server" in message


def test_locations_that_were_never_listed_are_data(tmp_path: Path) -> None:
    read = read_one(case("remote-artifact", tmp_path))
    assert whole(read)
    assert len(read.points("loss")) == 3
    for path, location, name in (
        ("data/train", "s3://bucket/some/prefix", ""),
        ("data/val", "s3://bucket/other/val.csv", "val"),
    ):
        ((listed,),) = [json.loads(content) for content in read.members(path).values()]
        assert (listed["filePath"], listed["type"], listed["fileHash"]) == (name, "S3", None)
        assert listed["metadata"] == [{"key": "location", "value": location}]
        assert any(location in note for note in read.notes)


@pytest.mark.parametrize("release", RELEASES[1:])
def test_locations_of_every_release_are_data(unpacked: Unpack, release: str) -> None:
    read = read_one(unpacked(release, "files"))
    assert whole(read)
    ((listed,),) = [json.loads(content) for content in read.members("far").values()]
    assert listed["metadata"] == [{"key": "location", "value": "s3://bucket/prefix"}]
    (names,) = [[item["filePath"] for item in json.loads(content)] for content in read.members("art").values()]
    assert names == ["deep/y.csv", "x.csv"]


@pytest.mark.parametrize("where", ["backup/proj", "backup"])
def test_file_sets_of_a_recording_that_moved_are_found(tmp_path: Path, where: str) -> None:
    folder = case("moved-file-sets", tmp_path)
    read = read_one(folder / "moved", search_files_in=[str(folder / where)])
    assert whole(read)
    assert {name: data.strip() for name, data in read.members("cfg").items()} == {"a.yaml": b"aaa", "b.yaml": b"bbb"}
    assert {name: data.strip() for name, data in read.members("dataset").items()} == {
        "train.csv": b"1,2",
        "val.csv": b"3,4",
    }
    assert set(read.members("source_code/files")) == {"train.py", "src/data.py", "src/models/net.py"}
    assert list(read.members("model/best")) == ["best.ckpt"]
    assert list(read.members("mem")) == ["mem.txt"]
    assert b"train.csv" in read.members("art")["files_list.json"]


def test_what_is_not_below_the_searched_directories_is_named_with_them(tmp_path: Path) -> None:
    folder = case("moved-file-sets", tmp_path)
    read = read_one(folder / "moved", search_files_in=[str(folder / "backup" / "proj" / "src")])
    assert len(read.errors) >= 4
    assert any("/data/old/proj/conf/*.yaml" in message for message in read.errors)
    for message in read.errors:
        assert "backup/proj/src" in message
        assert "add a directory" not in message


@pytest.mark.parametrize("release", RELEASES)
def test_file_sets_move_along_with_their_recording(unpacked: Unpack, release: str) -> None:
    read = read_one(unpacked(release, "files"))
    assert whole(read)
    assert read.members("cfg") == {"conf/a.yaml": b"aaa", "conf/b.yaml": b"bbb"}
    assert read.members("dataset") == {"data/x.csv": b"1,2", "data/deep/y.csv": b"3"}
    assert read.members("all") == read.members("dataset")
    assert read.members("one") == {"one.yaml": b"aaa"}


def test_paths_of_windows_are_understood(offline: Path, tmp_path: Path) -> None:
    project = tmp_path / "kept" / "proj"
    for name in ("conf/a.yaml", "conf/b.yaml", "data/x.csv", "best.bin"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(name)
    folder = write_log(
        offline / NAME,
        op("UploadFileSet", "cfg", file_globs=["C:\\work\\proj\\conf\\*.yaml"], reset="False"),
        op("UploadFileSet", "folder", file_globs=["C:\\work\\proj\\data"], reset="False"),
        op("UploadFileSet", "share", file_globs=["\\\\nas\\me\\proj\\**\\*.csv"], reset="False"),
        op("UploadFile", "one", ext="bin", file_path="D:\\proj\\best.bin", tmp_file_name=None),
        op("TrackFilesToArtifact", "art", entries=[["data\\x.csv", None], ["file://C:/Users/me/proj/data", None]]),
    )
    log = folder / "data-1.log"
    log.write_bytes(log.read_bytes().replace(b"\n", b"\r\n"))
    (folder / "last_put_version").write_bytes(b"5\r\n")
    read = read_one(offline, search_files_in=[str(tmp_path / "kept")])
    assert whole(read)
    assert read.members("cfg") == {"a.yaml": b"conf/a.yaml", "b.yaml": b"conf/b.yaml"}
    assert read.members("folder") == {"x.csv": b"data/x.csv"}
    assert read.members("share") == {"x.csv": b"data/x.csv"}
    assert read.members("one") == {"one.bin": b"best.bin"}
    (names,) = [[item["filePath"] for item in json.loads(content)] for content in read.members("art").values()]
    assert names == ["x.csv"]


@pytest.mark.parametrize(
    ("recorded", "stored"), [("gr\u00f6\u00dfe", "gro\u0308\u00dfe"), ("gro\u0308\u00dfe", "gr\u00f6\u00dfe")]
)
def test_names_that_differ_in_unicode_normal_form_only_are_found(
    offline: Path, tmp_path: Path, recorded: str, stored: str
) -> None:
    (tmp_path / "kept" / "proj" / stored).mkdir(parents=True)
    (tmp_path / "kept" / "proj" / stored / f"{stored}.txt").write_text("x")
    folder = f"/data/proj/{recorded}"
    write_log(
        offline / NAME,
        op("UploadFile", "one", ext="txt", file_path=f"{folder}/{recorded}.txt", tmp_file_name=None),
        op("UploadFileSet", "set", file_globs=[folder], reset="False"),
        op("UploadFileSet", "stars", file_globs=[f"{folder}/{recorded[:4]}*"], reset="False"),
    )
    read = read_one(offline, search_files_in=[str(tmp_path / "kept" / "proj")])
    assert whole(read)
    assert read.members("one") == {"one.txt": b"x"}
    assert list(read.members("set").values()) == list(read.members("stars").values()) == [b"x"]


@pytest.mark.parametrize("release", RELEASES)
def test_bytes_that_are_not_utf8_are_kept_with_escapes(unpacked: Unpack, release: str) -> None:
    read = read_one(unpacked(release, "names"))
    assert whole(read)
    assert read.members("set") == {"w/caf\\xe9.txt": b"latin", "w/ok.txt": b"ok"}
    assert read.members("one") == {"one.txt": b"latin"}
    assert read.value("value") == "w/caf\\xe9.txt"
    assert read.value("path/caf\\xe9") == 1
    assert read.value("tags") == ["caf\\xe9"]
    assert read.points("texts") == numbered("caf\\xe9")
    assert any("not UTF-8" in note for note in read.notes)


def test_escapes_can_be_changed_back_and_names_never_meet() -> None:
    def original(text: str) -> str:
        raw = text.encode("ascii").decode("unicode_escape")
        return "".join(chr(0xDC00 + ord(found)) if 0x80 <= ord(found) <= 0xFF else found for found in raw)

    for text in ("caf\udce9", "a\\b\udce9\\xe9", "\udcff\\"):
        assert original(printable(text)) == text
    assert printable("a\\xe9 ☃ é") == "a\\xe9 ☃ é"
    assert printable("\ud83d") == "\\ud83d"
    names = printable_names(["a\udce9", "a\\xe9", "b"])
    assert len(set(names.values())) == 3


@pytest.mark.parametrize("release", RELEASES)
def test_points_with_times_in_milliseconds_are_kept(unpacked: Unpack, release: str) -> None:
    read = read_one(unpacked(release, "milliseconds"))
    assert whole(read)
    assert read.points("loss") == read.points("far") == numbered(0.5, 1.5, 2.5)
    times = {row["attribute_path"]: [] for row in read.rows}
    for row in read.rows:
        times[row["attribute_path"]].append(row["timestamp"])
    assert [time.timestamp() for time in times["loss"]] == [1.7e9, 1.7e9 + 1, 1.7e9 + 2]
    assert times["far"] == [None] * 3
    assert any("'loss'" in note and "set right" in note for note in read.notes)
    assert any("'far'" in note and "without a time" in note for note in read.notes)
    assert read.end.repairs["times_rescaled"] == read.end.repairs["times_dropped"] == 3


@pytest.mark.parametrize("time", [1e300, -1e300, float("nan"), float("inf"), -1e11, 10**400, "soon", True, [1]])
def test_a_time_that_is_none_costs_no_value(offline: Path, time: Any) -> None:
    point = {"value": 1.0, "step": 3, "ts": time}
    folder = write_log(offline / NAME, op("LogFloats", "m", values=[point]), floats("m", 2.0))
    record = {"obj": op("AssignInt", "x", value=1), "version": 3, "at": time}
    with (folder / "data-1.log").open("a") as log:
        log.write(json.dumps(record) + "\n")
    read = read_one(offline)
    assert whole(read)
    assert read.points("m") == [(Decimal(3), 1.0), (Decimal(4), 2.0)]
    assert read.value("x") == 1
    assert next(row["timestamp"] for row in read.rows if row["attribute_path"] == "m") is None
