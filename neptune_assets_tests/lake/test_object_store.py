"""The lake on s3://, against moto's HTTP server (an emulator): real s3fs and botocore over loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from neptune_assets.errors import LakeBusyError, LakeDamagedError, LakeError, SettingsError
from neptune_assets.lake.lock import ProjectLock, project_lock
from neptune_assets.lake.parts import row_group_bounds
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.storage import Storage
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import LakeSettings, StorageSettings
from neptune_assets_tests.support.lake_factory import file, file_set, make_source, metric, params, texts, write_lake
from neptune_assets_tests.support.s3 import s3_server

P = "ws/proj"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def storage_settings(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> StorageSettings:
    monkeypatch.setenv("LAKE_KEY", "testing")
    monkeypatch.setenv("LAKE_SECRET", "testing")
    return StorageSettings(options={"endpoint_url": endpoint}, secrets_env={"key": "LAKE_KEY", "secret": "LAKE_SECRET"})


@pytest.fixture
def root(storage_settings: StorageSettings, request: pytest.FixtureRequest) -> str:
    bucket = f"lake-{abs(hash(request.node.name)) % 10**9}"
    Storage(f"s3://{bucket}", storage_settings).filesystem.mkdir(bucket)
    return f"s3://{bucket}/some/place"


def rows(version: int) -> list[dict[str, Any]]:
    return [
        *params({"lr": 0.1, "v": version}),
        *metric("m", [float(version)] * 100),
        *texts("log", ["a\0b"]),
        file("f", f"content {version}".encode(), "f.txt"),
        file_set("set", {"a/b": b"1", "../c": b"2"}),
    ]


def test_a_lake_in_a_bucket_is_written_read_and_brought_up_to_date(
    root: str, storage_settings: StorageSettings
) -> None:
    settings = LakeSettings(root=root, storage=storage_settings)
    write_lake(settings, make_source({P: {"a": rows(1), "b": rows(1)}}))
    lake = Lake(settings)
    assert lake.projects() == [P]
    project = lake.project(P)
    assert list(project.records()) == ["a", "b"]
    for run in project.runs():
        assert sum(batch.num_rows for batch in run.batches()) == 105
        assert run.content_digest() == run.record.digest
        for item, content in ((run.file_records("f")[0], b"content 1"), (run.file_records("set")[0], b"2")):
            with run.open_file(item.path) as stream:
                assert stream.read() in {content, b"1"}
    (part,) = project.parts()["a"]
    assert part.startswith(f"{root}/data/")
    assert project.filesystem.size(part) > 0
    report = write_lake(settings, make_source({P: {"a": rows(2), "b": rows(1)}}))[P]
    assert (report.changed, report.skipped) == (["a"], ["b"])
    changed = Lake(settings).project(P).run("a")
    assert changed.content_digest() == changed.record.digest
    with changed.open_file(changed.file_records("f")[0].path) as stream:
        assert stream.read() == b"content 2"
    paths = Storage(root, storage_settings).walk(Storage(root, storage_settings).root)
    assert not [path for path in paths if ".staging" in path]
    assert [path.rsplit("/", 1)[-1] for path in paths if "lease" in path] == ["lease-000002.json"]
    assert len([path for path in paths if "/data/" in path and path.endswith(".parquet")]) == 2
    assert len([path for path in paths if path.endswith(".txt")]) == 2


def test_the_digest_is_the_same_as_on_a_local_disk(
    root: str, storage_settings: StorageSettings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = make_source({P: {"a": rows(1)}})
    there = write_lake(LakeSettings(root=root, storage=storage_settings), source)[P]
    here = write_lake(LakeSettings(root=str(tmp_path_factory.mktemp("lake"))), source)[P]
    assert there.digest == here.digest


def test_a_damaged_footer_of_a_part_too_large_to_be_fetched_is_an_error(
    root: str, storage_settings: StorageSettings
) -> None:
    settings = LakeSettings(root=root, storage=storage_settings)
    write_lake(settings, make_source({P: {"large": metric("m", [float(step) for step in range(5_000)])}}))
    lake = Lake(settings)
    run = lake.project(P).run("large")
    (part,) = run.record.parts
    path = lake.layout.part(P, part.name)
    content = bytearray(lake.storage.read(path))
    with run.open_part(part) as file:
        assert row_group_bounds(file, "attribute_path") == [("m", "m")]
    # The first chunk claims another type than the schema: a struct of its fields begins with the type, 6 for bytes.
    place = content.index(b"\x1c\x15\x0c\x19", len(content) - 8 - int.from_bytes(content[-8:-4], "little"))
    content[place + 2] ^= 0x41
    lake.storage.put(path, bytes(content))
    with pytest.raises(LakeDamagedError, match="another type than its schema"):
        Lake(settings).project(P).run("large").open_part(part)


def test_creating_is_exclusive(root: str, storage_settings: StorageSettings) -> None:
    storage = Storage(root, storage_settings)
    path = f"{storage.root}/once"
    assert storage.create(path, b"1")
    assert not storage.create(path, b"2")
    assert storage.read(path) == b"1"
    storage.put(path, b"3")
    assert storage.read(path) == b"3"
    storage.delete(path)
    storage.delete(path)
    assert storage.names(storage.root) == []


def test_listings_are_fresh(root: str, storage_settings: StorageSettings) -> None:
    one, two = Storage(root, storage_settings), Storage(root, storage_settings)
    assert one.names(one.root) == []
    two.put(f"{two.root}/x", b"")
    assert one.names(one.root) == ["x"]
    assert one.exists(f"{one.root}/x")
    two.delete(f"{two.root}/x")
    assert one.names(one.root) == []


def lease(storage: Storage) -> dict[str, Any]:
    """Return the one lease of the place where the tests of leases keep it."""
    (name,) = storage.names(f"{storage.root}/.manifest")
    found: dict[str, Any] = json.loads(storage.read(f"{storage.root}/.manifest/{name}"))
    return found


def test_a_lease_is_renewed_refused_and_freed(root: str, storage_settings: StorageSettings) -> None:
    storage = Storage(root, storage_settings)
    place = f"{storage.root}/.manifest"
    with project_lock(storage, place, P, lease_seconds=2) as lock:
        first = lease(storage)
        time.sleep(3)
        lock.check()
        assert lease(storage)["renewals"] > first["renewals"]
        with pytest.raises(LakeBusyError, match="since 20"), project_lock(storage, place, P, lease_seconds=2):
            pass
    assert lease(storage)["released"]
    with project_lock(storage, place, P, lease_seconds=600) as lock:
        assert not lock.taken_over
        assert storage.names(place) == ["lease-000002.json"], "a number was used twice"


def test_a_lease_that_is_created_after_others_came_and_went_rules_nothing(
    root: str, storage_settings: StorageSettings
) -> None:
    class Late(Storage):
        def create(self, path: str, data: bytes) -> bool:
            # While the request is on its way, others take the numbers up to 3 and remove the lower ones.
            self.put(f"{self.root}/.manifest/lease-000003.json", b'{"host": "other", "pid": 7, "released": true}')
            return super().create(path, data)

    storage = Late(root, storage_settings)
    place = f"{storage.root}/.manifest"
    with pytest.raises(LakeBusyError), project_lock(storage, place, P, lease_seconds=2):
        pass
    with project_lock(Storage(root, storage_settings), place, P, lease_seconds=2):
        assert storage.names(place) == ["lease-000004.json"]


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_clocks_of_other_machines_decide_nothing(root: str, storage_settings: StorageSettings, ahead: float) -> None:
    """A lease whose holder's clock is an hour off ends when it is not renewed, and not before."""
    storage = Storage(root, storage_settings)
    place = f"{storage.root}/.manifest"
    content = {"pid": 1, "host": "far", "since": "2025-01-01", "seconds": 2, "expires_at": time.time() + ahead}
    stop = threading.Event()

    def renew() -> None:
        renewals = 0
        while not stop.wait(0.4):
            renewals += 1
            storage.put(f"{place}/lease-000004.json", json.dumps(content | {"renewals": renewals}).encode())

    holder = threading.Thread(target=renew)
    storage.put(f"{place}/lease-000004.json", json.dumps(content).encode())
    holder.start()
    try:
        with pytest.raises(LakeBusyError, match="process 1 on far"), project_lock(storage, place, P, lease_seconds=2):
            pass
    finally:
        stop.set()
        holder.join()
    started = time.monotonic()
    with project_lock(storage, place, P, lease_seconds=2) as lock:
        assert lock.taken_over
        assert time.monotonic() - started >= 2


def test_an_expired_lease_is_taken_over_and_its_old_holder_notices(
    root: str, storage_settings: StorageSettings
) -> None:
    storage = Storage(root, storage_settings)
    place = f"{storage.root}/.manifest"
    dead = {"pid": 1, "host": "gone", "since": "2025-01-01", "token": "x", "seconds": 2}
    storage.put(f"{place}/lease-000004.json", json.dumps(dead).encode())
    with project_lock(storage, place, P, lease_seconds=2) as lock:
        assert storage.names(place) == ["lease-000005.json"]
        assert lock.taken_over
        # Somebody takes over, as after a pause of this process that outlasted the lease.
        storage.put(f"{place}/lease-000006.json", b"{}")
        with pytest.raises(LakeBusyError, match="was lost"):
            _keep_checking(lock)
        guarded = storage.guarded(lock.check)
        for change in (
            lambda: guarded.delete(f"{place}/lease-000006.json"),
            lambda: guarded.delete_tree(place),
            lambda: guarded.move(f"{place}/lease-000006.json", f"{place}/x"),
            lambda: guarded.put(f"{place}/x", b""),
            lambda: guarded.create(f"{place}/x", b""),
            lambda: guarded.put_file("nowhere", f"{place}/x"),
        ):
            with pytest.raises(LakeBusyError, match="was lost"):
                change()
    assert storage.read(f"{place}/lease-000006.json") == b"{}"
    assert not storage.exists(f"{place}/x")


def _keep_checking(lock: ProjectLock) -> None:
    for _ in range(200):
        time.sleep(0.1)
        lock.check()


def test_an_interrupted_commit_in_a_bucket_is_finished(
    root: str, storage_settings: StorageSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = LakeSettings(root=root, storage=storage_settings)
    write_lake(settings, make_source({P: {"a": rows(1)}}))

    class KilledError(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "link", killed)
        with pytest.raises(KilledError):
            LakeWriter(settings, make_source({P: {"a": rows(2)}})).write_project(P)
    run = Lake(settings).project(P).run("a")
    (part,) = Lake(settings).project(P).parts()["a"]
    assert ".staging" in part
    assert run.content_digest() == run.record.digest
    assert {row for batch in run.batches(columns=["float_value"]) for row in batch["float_value"].to_pylist()} >= {2.0}
    report = write_lake(settings, make_source({P: {"a": rows(2)}}))[P]
    assert report.recovered == ["a"]
    assert report.skipped == ["a"]
    (part,) = Lake(settings).project(P).parts()["a"]
    assert ".staging" not in part


def test_a_missing_secret_is_named(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAKE_KEY", raising=False)
    settings = StorageSettings(options={"endpoint_url": endpoint}, secrets_env={"key": "LAKE_KEY"})
    with pytest.raises(SettingsError, match="LAKE_KEY"):
        Storage("s3://bucket/x", settings)
    with pytest.raises(SettingsError, match="cannot be opened"):
        Storage("nosuchprotocol://x")


def test_a_store_that_does_not_answer_is_an_error_that_may_heal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    options = {"endpoint_url": "http://127.0.0.1:9", "anon": True}
    settings = LakeSettings(root="s3://bucket/x", storage=StorageSettings(options=options))
    calls = (
        lambda: Lake(settings).projects(),
        lambda: write_lake(settings, make_source({P: {"a": rows(1)}})),
    )
    for call in calls:
        with pytest.raises(LakeError, match="s3://bucket/x") as error:
            call()
        assert error.value.transient
