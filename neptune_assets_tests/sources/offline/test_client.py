"""Recordings of neptune-client: what was logged is what is read.

The recordings are by the real engine; values that it no longer writes, or cannot, stand in logs written here.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from PIL import Image

from neptune_assets.errors import FileGoneError
from neptune_assets.settings import Filters
from neptune_assets.sources.offline import SOURCE
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.offline.source import Offline
from neptune_assets_tests.conformance.sources import SourceCase, SourceContract
from neptune_assets_tests.support import client_recorder as recorded
from neptune_assets_tests.support.client_reading import (
    NAME,
    PROJECT,
    UUID,
    Read,
    floats,
    op,
    read_all,
    read_one,
    tree,
    write_log,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TestContract(SourceContract):
    spec = SOURCE

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


def test_an_artifact_of_which_only_the_hash_is_known_is_data(run: Read) -> None:
    ((listed,),) = [json.loads(content) for content in run.members("a/hash").values()]
    assert (listed["fileHash"], listed["filePath"]) == (recorded.ARTIFACT_HASH, "")
    assert run.errors == []
    assert any(recorded.ARTIFACT_HASH in note for note in run.notes)


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
    read = read_one(offline, files_from=[str(away)])
    assert read.members("set") == {"a.txt": b"a", "deep/b.txt": b"b"}
    assert read.members("one") == {"b.txt": b"b"}
