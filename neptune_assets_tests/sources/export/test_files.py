from __future__ import annotations

import io
import json
import socket
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from neptune_assets.checks import check_files
from neptune_assets.errors import FileGoneError, NeptuneAssetsError, SourceError, UnsafePathError
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import LakeSettings
from neptune_assets_tests.support.export_factory import (
    ExportFactory,
    exported_name,
    file_row,
    run_v2,
    run_v3,
    system_rows_v3,
)
from neptune_assets_tests.support.export_reading import PROJECT, messages, read, source


@pytest.fixture
def factory(tmp_path: Path) -> ExportFactory:
    factory = ExportFactory(tmp_path)
    factory.run(PROJECT, "r", run_v3("r"))
    factory.file(PROJECT, "r/model.tar.gz", b"weights")
    return factory


def contents(export, reference: str, run_id: str = "r") -> dict[str, bytes]:
    found = {}
    for file in export.files(PROJECT, run_id, reference):
        with file.open() as stream:
            found[file.relative_path] = stream.read()
    return found


def test_a_file_keeps_its_name(factory):
    assert contents(source(factory), "r/model.tar.gz") == {"model.tar.gz": b"weights"}


def test_paths_written_on_windows(factory):
    assert contents(source(factory), "r\\model.tar.gz") == {"model.tar.gz": b"weights"}
    factory.file(PROJECT, "r/back\\slash.txt", b"literal")
    assert contents(source(factory), "r/back\\slash.txt") == {"back\\slash.txt": b"literal"}


def test_a_file_set_lists_its_members_in_order(factory):
    names = ["b.txt", "a/z.txt", "a/b/c.txt", "B.txt", ".hidden", "empty.bin"]
    for name in names:
        factory.file(PROJECT, f"ws/proj/r/set/{name}", b"" if name == "empty.bin" else name.encode())
    found = contents(source(factory), "ws/proj/r/set")
    assert set(found) == set(names)
    assert all(content == (b"" if name == "empty.bin" else name.encode()) for name, content in found.items())
    assert list(found) == sorted(names)


def test_an_artifact_is_its_list(factory):
    listing = [{"filePath": "a", "fileHash": "0", "type": "S3", "size": 1, "metadata": {}}]
    factory.file(PROJECT, "ws/proj/r/art/files_list.json", json.dumps(listing).encode())
    found = contents(source(factory), "ws/proj/r/art/files_list.json")
    assert json.loads(found["files_list.json"]) == listing


@pytest.mark.parametrize(
    "reference",
    [
        "/etc/passwd",
        "../secret.txt",
        "r/../../secret.txt",
        "..\\secret.txt",
        "r\\..\\..\\secret.txt",
        "C:\\secret.txt",
        "C:/secret.txt",
        "\\\\host\\share",
        "",
        ".",
        "r/x\0y",
    ],
)
def test_references_that_leave_the_root_are_refused(factory, reference):
    (factory.files / "secret.txt").write_bytes(b"secret")
    with pytest.raises(UnsafePathError):
        source(factory).files(PROJECT, "r", reference)


def test_symbolic_links_out_of_the_root_are_never_followed(factory):
    secret = factory.directory / "secret"
    secret.mkdir()
    (secret / "key").write_bytes(b"secret")
    base = factory.file(PROJECT, "r/set/inside.txt", b"inside").parent
    (base / "linked.txt").symlink_to(secret / "key")
    (base / "linked_dir").symlink_to(secret)
    (base / "broken").symlink_to(base / "nowhere")
    (base / "near").symlink_to(base / "inside.txt")
    (base / "loop").symlink_to(base)
    export = source(factory)
    for reference in ("r/set/linked.txt", "r/set/linked_dir/key", "r/set/linked_dir"):
        with pytest.raises(UnsafePathError):
            export.files(PROJECT, "r", reference)
    members = {member.relative_path: member for member in export.files(PROJECT, "r", "r/set")}
    assert set(members) == {"inside.txt", "linked.txt", "linked_dir", "broken", "near", "loop"}
    for name in ("linked.txt", "linked_dir", "broken", "loop"):
        with pytest.raises(NeptuneAssetsError):
            members[name].open()
    for name in ("inside.txt", "near"):
        with members[name].open() as stream:
            assert stream.read() == b"inside"


def test_missing_files(factory):
    export = source(factory)
    with pytest.raises(FileGoneError, match=r"nothing\.bin"):
        export.files(PROJECT, "r", "r/nothing.bin")
    (file,) = export.files(PROJECT, "r", "r/model.tar.gz")
    (factory.files / exported_name(PROJECT) / "r" / "model.tar.gz").unlink()
    with pytest.raises(FileGoneError):
        file.open()
    with pytest.raises(FileGoneError, match=r"source\.export\.files is not set"):
        source(factory, files=None).files(PROJECT, "r", "r/model.tar.gz")


def test_files_that_rows_share_and_files_that_no_row_names(factory):
    named = [file_row("a.b", "r/a_b.txt"), file_row("a_b", "r/a_b.txt"), file_row("set", "ws/proj/r/set", "file_set")]
    factory.run(PROJECT, "r", [*run_v3("r"), named])
    factory.run(PROJECT, "x/y", [*run_v3("x/y"), [file_row("f", "x_y/f.txt")]])
    factory.run(PROJECT, "x.y", [*run_v3("x.y"), [file_row("f", "x_y\\f.txt"), file_row("g", "x_y/f.txt")]])
    for name in ("r/a_b.txt", "ws/proj/r/set/deep/m.txt", "x_y/f.txt", "r/stray.bin"):
        factory.file(PROJECT, name, b"x")
    export = source(factory)
    table, end = read(export, "r")
    assert table.num_rows == sum(len(group) for group in run_v3("r")) + 3
    assert "a.b" in messages(end.notes)
    assert not end.errors
    problems = [issue.message for issue in export.problems(PROJECT)]
    assert [message for message in problems if "x_y/f.txt" in message and "both name" in message]
    stray = [message for message in problems if "No row names" in message]
    assert len(stray) == 2
    assert "r/model.tar.gz" in stray[0]
    assert "r/stray.bin" in stray[1]


def test_a_class_that_no_run_has_is_reported(factory):
    assert [message for message in messages(source(factory).problems(PROJECT)).split("\n") if "class files" in message]
    factory.run(PROJECT, "r", [*run_v3("r"), [file_row("f", "r/model.tar.gz")]])
    assert messages(source(factory).problems(PROJECT)) == ""


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, object]]:
    """An S3 server on loopback: real client, emulator."""
    import boto3
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="id", aws_secret_access_key="secret"
    )
    client.create_bucket(Bucket="exports")
    yield {"client": client, "endpoint": endpoint}
    server.stop()


def test_an_export_on_s3_reads_as_on_disk(factory, bucket, monkeypatch):
    monkeypatch.setenv("EXPORT_KEY", "id")
    monkeypatch.setenv("EXPORT_SECRET", "secret")
    factory.run(PROJECT, "r", run_v3("r")[:1], [*run_v3("r")[1:], [file_row("set", "r/set", "file_set")]])
    for number in range(10):
        factory.run(PROJECT, f"SAN-{number}", run_v2(f"SAN-{number}"))
    for name in ("b.txt", "a/c.txt"):
        factory.file(PROJECT, f"r/set/{name}", name.encode())
    factory.run(PROJECT, "empty", run_v3("empty"))
    factory.part(PROJECT, "empty").write_bytes(b"")
    factory.errors([{"project_id": PROJECT, "run_id": "SAN-3", "attribute_path": "m", "exception": "E"}])
    for path in factory.directory.rglob("*"):
        if path.is_file():
            key = f"team/{path.relative_to(factory.directory)}"
            bucket["client"].upload_fileobj(io.BytesIO(path.read_bytes()), "exports", key)
    remote = {
        "data": "s3://exports/team/exports/data",
        "files": "s3://exports/team/exports/files/",
        "storage": {
            "options": {"endpoint_url": bucket["endpoint"]},
            "secrets_env": {"key": "EXPORT_KEY", "secret": "EXPORT_SECRET"},
        },
    }
    here, there = source(factory), source(factory, **remote)
    assert there.projects() == here.projects() == [PROJECT]
    ids = [info.run_id for info in here.runs(PROJECT)]
    listed = there.runs(PROJECT)
    assert [info.run_id for info in listed] == ids
    assert len(ids) == 12
    assert listed == there.runs(PROJECT)
    for run_id in ids:
        (expected, expected_end), (found, end) = read(here, run_id), read(there, run_id)
        assert found.equals(expected)
        assert (end.repairs, len(end.errors), end.notes) == (
            expected_end.repairs,
            len(expected_end.errors),
            expected_end.notes,
        )
    assert contents(there, "r/set") == {"a/c.txt": b"a/c.txt", "b.txt": b"b.txt"}
    assert contents(there, "r/model.tar.gz") == {"model.tar.gz": b"weights"}
    with pytest.raises(FileGoneError):
        there.files(PROJECT, "r", "r/nothing")
    with pytest.raises(UnsafePathError):
        there.files(PROJECT, "r", "../x")
    assert [issue for issue in there.problems(PROJECT) if "model.tar.gz" in issue.message]
    place = source(factory, mode="in_place", **remote).in_place(PROJECT, "r", "runs")
    assert [part.rsplit("/", 1)[0] for part in place.parts] == [
        f"s3://exports/team/exports/data/{exported_name(PROJECT)}"
    ] * 2
    assert place.files_root == f"s3://exports/team/exports/files/{exported_name(PROJECT)}"
    before = {info.run_id: info.fingerprint for info in listed}
    part = factory.part(PROJECT, "SAN-1")
    factory.run(PROJECT, "SAN-1", run_v2("SAN-1", points=6))
    key = f"team/{part.relative_to(factory.directory)}"
    bucket["client"].upload_fileobj(io.BytesIO(part.read_bytes()), "exports", key)
    after = {info.run_id: info.fingerprint for info in there.runs(PROJECT)}
    assert [run_id for run_id in ids if before[run_id] != after[run_id]] == ["SAN-1"]
    with pytest.raises(SourceError, match="s3://exports/nothing"):
        source(factory, **{**remote, "data": "s3://exports/nothing"}).projects()
    with pytest.raises(SourceError):
        source(factory, **{**remote, "data": "s3://no-such-bucket/data"}).projects()


@pytest.mark.parametrize("mode", ["copy", "in_place"])
@pytest.mark.parametrize("named", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_names_in_any_form_of_unicode_are_in_the_lake(factory, tmp_path, stored, named, mode):
    project, one, members = "ws/größe", "r/podgląd/błąd ö", {"Å ü.txt": b"in a set", "unter/é": b"deeper"}
    name = unicodedata.normalize(named, one)
    folder = unicodedata.normalize(named, "r/sätze")
    rows = [file_row("a", name), file_row("b", folder, "file_set"), file_row("c", name.replace("/", "\\"), "file")]
    factory.run(project, "r", [system_rows_v3("r"), rows])
    factory.file(project, one, b"alone")
    for inside, content in members.items():
        factory.file(project, f"r/sätze/{inside}", content)
    for path in sorted((tmp_path / "exports").rglob("*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(unicodedata.normalize(stored, path.name)))
    lake = LakeSettings(root=str(tmp_path / "lake"))
    report = LakeWriter(lake, source(factory, mode=mode)).write_project(project)
    assert not report.partial
    held = Lake(lake).project(project)
    assert check_files(held, dg.AssetKey("x")).passed
    run = held.run("r")
    assert (run.record.in_place is None) == (mode == "copy")
    assert run.content_digest() == run.record.digest
    for row in (row for batch in run.batches() for row in batch.to_pylist() if row["attribute_type"] == "file"):
        assert run.open_file(row["file_value"]["path"]).read() == b"alone"
    found = {record.member: run.open_file(record.path).read() for record in run.record.files if record.member}
    assert {unicodedata.normalize("NFC", inside): content for inside, content in found.items()} == {
        unicodedata.normalize("NFC", inside): content for inside, content in members.items()
    }
    assert [run.file_damage(record) for record in run.record.files] == [None] * 4
