from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from neptune_assets.schema import AttributeType
from neptune_assets.server.garbage_collection import GarbageCollector, Unreferenced, remove_unreferenced
from neptune_assets.server.store.projects import ProjectStore, Store, now_ms
from neptune_assets.server.store.runs import NewRun, to_json
from neptune_assets.server.store.writing import Attribute

DAY = 86_400
PROJECT = "team/vision"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store")
    with opened.project(PROJECT, create=True).write() as writing:
        writing.create_run(NewRun("r"))
    yield opened
    opened.close()


def upload(project: ProjectStore, key: str, content: bytes) -> str:
    incoming = project.objects.receive()
    incoming.write(content)
    stored = incoming.keep()
    with project.write() as writing:
        writing.put_file(key, stored.sha256, stored.size, None)
    return stored.sha256


def assign(project: ProjectStore, attribute: str, key: str) -> None:
    with project.write() as writing:
        run = writing.run("r")
        assert run is not None
        writing.operations(run).assign(attribute, AttributeType.FILE, to_json({"path": key, "size": 1}))


def age(project: ProjectStore, days: float) -> None:
    """Let everything that is there have come in so many days ago."""
    moment = time.time() - days * DAY
    for path in project.directory.rglob("*"):
        if path.parent.parent.name == "objects" or "uploads" in path.parts:
            os.utime(path, (moment, moment))
    with project.write() as writing:
        writing.connection.execute("UPDATE files SET uploaded_at = ?", (int(moment * 1_000),))


def there(project: ProjectStore) -> set[str]:
    return {path.name for path in (project.directory / "objects").glob("*/*")}


def keys(project: ProjectStore) -> set[str]:
    with project.read() as connection:
        return {row[0] for row in connection.execute("SELECT key FROM files")}


def test_replaced_bytes_go_after_their_rows_and_nothing_else_does(store: Store) -> None:
    project = store.project(PROJECT)
    old, new, twin = (upload(project, key, content) for key, content in (("a", b"1"), ("b", b"2"), ("c", b"1 too")))
    again = upload(project, "same bytes", b"1 too")
    assert again == twin
    for key in ("a", "c", "b"):
        assign(project, "file", key)
    assign(project, "other", "same bytes")
    series = upload(project, "point", b"picture")
    member = upload(project, "unnamed", b"member of a set")
    with project.write() as writing:
        run = writing.run("r")
        assert run is not None
        operations = writing.operations(run)
        pictures = operations.attribute("pictures", AttributeType.FILE_SERIES)
        assert isinstance(pictures, Attribute)
        operations.append_objects(pictures, [0], [0], [to_json({"path": "point", "size": 7})])
        files = operations.attribute("set", AttributeType.FILE_SET)
        assert files is not None
        writing.connection.execute("INSERT INTO file_set_files VALUES (?, 'x', ?, 15, 0, NULL)", (files.id, member))
    age(project, 40)
    collector = GarbageCollector(store, grace_days=30)
    assert collector.look() == 0
    assert there(project) == {old, new, twin, series, member}
    assert collector.look() == 0, "rows go first"
    assert keys(project) == {"b", "same bytes", "point"}
    assert [collector.look(), collector.look()] == [0, 1]
    assert there(project) == {new, twin, series, member}
    assert collector.look() == 0


def test_what_came_in_lately_stays_though_nothing_names_it(store: Store) -> None:
    project = store.project(PROJECT)
    digests = {upload(project, "a", b"1"), upload(project, "b", b"2")}
    age(project, 29)
    collector = GarbageCollector(store, grace_days=30)
    assert [collector.look() for _ in range(4)] == [0] * 4
    assert there(project) == digests
    assert keys(project) == {"a", "b"}


def test_bytes_that_are_named_again_between_two_looks_stay(store: Store) -> None:
    project = store.project(PROJECT)
    digest, other = upload(project, "a", b"1"), upload(project, "b", b"2")
    age(project, 40)
    limit = now_ms() - 30 * DAY * 1_000
    first, _ = remove_unreferenced(project, Unreferenced(), limit)
    assert first.keys == {"a", "b"}
    assign(project, "file", "a")
    second, _ = remove_unreferenced(project, first, limit)
    assert keys(project) == {"a"}
    assert second.objects == set()
    third, _ = remove_unreferenced(project, second, limit)
    # The same bytes come in under another key just before they would go.
    assert third.objects == {other}
    assert upload(project, "c", b"2") == other
    assert remove_unreferenced(project, third, limit)[1] == 0
    assert there(project) == {digest, other}


def test_after_a_crash_between_rows_and_bytes_the_bytes_are_found(store: Store) -> None:
    project = store.project(PROJECT)
    upload(project, "a", b"1234")
    with project.write() as writing:
        writing.connection.execute("DELETE FROM files")
    age(project, 40)
    collector = GarbageCollector(store, grace_days=30)
    assert [collector.look(), collector.look()] == [0, 4]
    assert there(project) == set()


def test_uploads_that_nobody_goes_on_with_expire_and_those_that_grow_do_not(store: Store) -> None:
    project = store.project(PROJECT)
    begun, grown = project.objects.begin_upload("a"), project.objects.begin_upload("b")
    incoming = project.objects.receive()
    incoming.write(b"a part")
    project.objects.keep_part(begun, 1, incoming)
    with project.objects.resume(grown) as chunk:
        chunk.write(b"1")
    age(project, 8)
    with project.objects.resume(grown) as chunk:
        chunk.write(b"2")
    GarbageCollector(store, grace_days=30).look()
    with pytest.raises(FileNotFoundError):
        project.objects.upload_of(begun)
    assert project.objects.upload_of(grown) == (None, "b")


def test_a_server_looks_by_itself(store: Store) -> None:
    project = store.project(PROJECT)
    upload(project, "a", b"1")
    age(project, 40)
    collector = GarbageCollector(store, grace_days=30, seconds=0.01)
    collector.start()
    deadline = time.monotonic() + 60
    while there(project) and time.monotonic() < deadline:
        time.sleep(0.01)
    collector.stop()
    assert there(project) == set()
