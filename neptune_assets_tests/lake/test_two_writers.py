"""Two real processes write one project in a bucket: one is paused or killed in a commit, the other takes over.

What is left is read without anything of the package: raw objects, JSON and pyarrow.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.errors import LakeBusyError, SettingsError
from neptune_assets.lake.lock import project_lock
from neptune_assets.lake.parts import WriteLimits
from neptune_assets.lake.storage import Storage
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import LakeSettings
from neptune_assets_tests.support.bucket_lake import Bucket, digests, records, rows, versions
from neptune_assets_tests.support.faulty_proxy import Fault, FaultyProxy
from neptune_assets_tests.support.lake_factory import make_source
from neptune_assets_tests.support.s3 import s3_server

P = "ws/proj"
LEASE = 6.0
FINE, BUSY = 0, 3
CHANGES = ("put", "note", "create", "put_file", "move", "link", "delete", "delete_tree")

SMALL_PARTS = WriteLimits(row_group_rows=10, part_bytes=4 << 10)
"""Parts roll over after kilobytes, so that runs have several."""

Point = Callable[[int, str, str], bool]
"""Says of a change to the storage (its number, method and path) whether the process stops before it."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Bucket:
    monkeypatch.setenv("LAKE_KEY", "testing")
    monkeypatch.setenv("LAKE_SECRET", "testing")
    return Bucket(endpoint, f"two-{hashlib.sha256(request.node.name.encode()).hexdigest()[:20]}")


def write(settings: LakeSettings, version: int) -> None:
    """Write a version: run a shrinks from several parts to fewer, b grows, c is new in the second."""
    lines = {1: {"a": 40, "b": 10}, 2: {"a": 10, "b": 40, "c": 5}}[version]
    source = make_source({P: {name: rows(version, count) for name, count in lines.items()}})
    LakeWriter(settings, source, lease_seconds=LEASE, limits=SMALL_PARTS).write_project(P)


def started(work: Callable[[], None], point: Point | None = None, sent: int = signal.SIGSTOP) -> int:
    """Fork a process that does ``work`` and sends itself a signal at a point; return its id."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        if point is not None:
            at(point, sent)
        work()
        status = FINE
    except LakeBusyError:
        status = BUSY
    finally:
        os._exit(status)


def at(point: Point, sent: int) -> None:
    count, met = 0, False

    def wrapped(name: str, original: Any) -> Any:
        def call(storage: Storage, first: str, *args: Any, **options: Any) -> Any:
            nonlocal count, met
            # Leases are renewed by a thread of their own, at any moment.
            if "lease-" not in first:
                count += 1
                path = args[0] if name in {"move", "put_file", "link"} else first
                if not met and point(count, name, path):
                    met = True
                    os.kill(os.getpid(), sent)
            return original(storage, first, *args, **options)

        return call

    for name in CHANGES:
        setattr(Storage, name, wrapped(name, getattr(Storage, name)))


def ended(child: int) -> int:
    """Wait until a child ends or stops; return its exit status, negative for a signal."""
    _, status = os.waitpid(child, os.WUNTRACED)
    return -os.WSTOPSIG(status) if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)


def before_commit(_: int, name: str, path: str) -> bool:
    return name == "create" and path.endswith(".jsonl")


def after_commit(_: int, name: str, path: str) -> bool:
    return name in {"move", "link"} and "_part_" in path


def amid_moves(_: int, name: str, path: str) -> bool:
    return name in {"move", "link"} and path.endswith("_part_0.parquet")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the digests that one undisturbed writer writes, on a local disk."""
    root = tmp_path_factory.mktemp("alone")
    write(LakeSettings(root=str(root)), 2)
    return digests({f"/{path.relative_to(root)}": path.read_bytes() for path in root.rglob("*") if path.is_file()})


def go_through(endpoint: str, bucket: Bucket, point: Point, sent: int, undisturbed: dict[str, str]) -> bool:
    """Let a second writer take over one that is stopped at a point, then let the first go on; False if it met none."""
    settings = bucket.settings(endpoint)
    assert ended(started(lambda: write(settings, 1))) == FINE
    assert versions(bucket.objects()) == {"a": 1, "b": 1}
    first = started(lambda: write(settings, 2), point, sent)
    status = ended(first)
    if status == FINE:
        return False
    assert status == -sent
    seen = versions(bucket.objects())
    assert set(seen.values()) <= {1, 2}
    assert {"a", "b"} <= set(seen)
    assert ended(started(lambda: write(settings, 2))) == FINE, "the one that took over could not finish"
    after = bucket.objects()
    assert versions(after) == {"a": 2, "b": 2, "c": 2}
    if sent == signal.SIGSTOP:
        os.kill(first, signal.SIGCONT)
        assert ended(first) in {FINE, BUSY}, "the one that was paused met something other than a lost lease"
    assert versions(bucket.objects()) == {"a": 2, "b": 2, "c": 2}, "what was finished was harmed later"
    assert digests(bucket.objects()) == digests(after)
    assert ended(started(lambda: write(settings, 2))) == FINE
    left = bucket.objects()
    assert versions(left) == {"a": 2, "b": 2, "c": 2}
    named = {part["name"] for record in records(left).values() for part in record["parts"]}
    assert sorted(key.rsplit("/", 1)[-1] for key in left if "_part_" in key) == sorted(named), "doubled or left behind"
    assert digests(left) == undisturbed, "not what one undisturbed writer writes"
    return True


slow = pytest.mark.slow


@pytest.mark.parametrize("point", [before_commit, after_commit, pytest.param(amid_moves, marks=slow)])
def test_a_writer_that_was_paused_in_a_commit_harms_nothing_of_who_took_over(
    endpoint: str, bucket: Bucket, undisturbed: dict[str, str], point: Point
) -> None:
    assert go_through(endpoint, bucket, point, signal.SIGSTOP, undisturbed)


def test_a_killed_writers_lease_is_waited_for_and_its_commit_finished(
    endpoint: str, bucket: Bucket, undisturbed: dict[str, str]
) -> None:
    assert go_through(endpoint, bucket, amid_moves, signal.SIGKILL, undisturbed)


@slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("sent", [signal.SIGSTOP, signal.SIGKILL], ids=["paused", "killed"])
def test_at_every_change_to_the_store_another_writer_may_take_over(
    endpoint: str, bucket: Bucket, undisturbed: dict[str, str], sent: signal.Signals
) -> None:
    step = 1
    while True:
        print(f"change {step}", flush=True)
        other = Bucket(endpoint, f"{bucket.name}-{step}")
        if not go_through(endpoint, other, lambda number, _, __, step=step: number == step, sent, undisturbed):  # type: ignore[misc]
            break
        step += 1
    assert step > 20


def test_on_a_local_disk_a_paused_writer_keeps_its_lock_and_finishes(tmp_path: Path) -> None:
    settings = LakeSettings(root=str(tmp_path))
    for number, point in enumerate((before_commit, amid_moves)):
        settings = LakeSettings(root=str(tmp_path / f"{number}"))
        write(settings, 1)
        first = started(lambda settings=settings: write(settings, 2), point)  # type: ignore[misc]
        assert ended(first) == -signal.SIGSTOP
        with pytest.raises(LakeBusyError, match=f"process {first} "):
            write(settings, 2)
        os.kill(first, signal.SIGCONT)
        assert ended(first) == FINE
        root = Path(settings.root)
        left = {f"/{path.relative_to(root)}": path.read_bytes() for path in root.rglob("*") if path.is_file()}
        assert versions(left) == {"a": 2, "b": 2, "c": 2}


@pytest.mark.parametrize("path", [".jsonl", "lease-"])
def test_a_lost_answer_to_a_conditional_write_loses_nothing(endpoint: str, bucket: Bucket, path: str) -> None:
    """The store creates the object, its answer never arrives, and the client's second try is refused with 412."""
    with FaultyProxy(endpoint).running() as proxy:
        for number in range(1, 4):
            proxy.faults.append(Fault(path, "lose", method="PUT", after=number, times=1))
        write(bucket.settings(proxy.url), 1)
        assert not all(fault.times for fault in proxy.faults), "no answer was lost"
        before = bucket.objects()
        assert versions(before) == {"a": 1, "b": 1}
        proxy.faults[:] = [Fault(path, "lose", method="PUT", after=0, times=1)]
        write(bucket.settings(proxy.url), 2)
        assert not proxy.faults[0].times
    left = bucket.objects()
    assert versions(left) == {"a": 2, "b": 2, "c": 2}
    assert not [key for key in left if "/.staging/" in key]


def test_a_store_that_ignores_conditions_is_refused_by_name_unless_it_is_allowed(endpoint: str, bucket: Bucket) -> None:
    with FaultyProxy(endpoint, without=("If-None-Match",)).running() as proxy:
        for _ in range(2):
            with pytest.raises(SettingsError, match=rf"s3://{bucket.name}/lake cannot keep two writers apart") as error:
                write(bucket.settings(proxy.url), 1)
            assert "allow_unsafe_locks" in str(error.value)
            assert bucket.objects() == {}
        write(bucket.settings(proxy.url, allow_unsafe_locks=True), 1)
        write(bucket.settings(proxy.url, allow_unsafe_locks=True), 2)
    assert versions(bucket.objects()) == {"a": 2, "b": 2, "c": 2}


HOLDER = """
import sys, time
real, offset = time.time, float(sys.argv[4])
time.time = lambda: real() + offset
from neptune_assets.errors import LakeBusyError
from neptune_assets.lake.lock import project_lock
from neptune_assets.lake.storage import Storage
from neptune_assets.settings import StorageSettings

options = {"endpoint_url": sys.argv[2]}
secrets = {"key": "LAKE_KEY", "secret": "LAKE_SECRET"}
storage = Storage(sys.argv[1], StorageSettings(options=options, secrets_env=secrets))
try:
    with project_lock(storage, f"{storage.root}/.manifest", "ws/proj", lease_seconds=float(sys.argv[3])):
        print("holds", int(time.time()), flush=True)
        time.sleep(600)
except LakeBusyError:
    print("busy", int(time.time()), flush=True)
"""


@pytest.mark.parametrize("offset", [600, pytest.param(-600, marks=slow)])
def test_a_process_whose_clock_is_minutes_off_neither_takes_nor_closes_a_lease(
    endpoint: str, bucket: Bucket, offset: int
) -> None:
    def other() -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-c", HOLDER, f"s3://{bucket.name}/lake", endpoint, str(LEASE), str(offset)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        word, seconds = process.stdout.readline().split()
        assert abs(int(seconds) - time.time() - offset) < 60, "its clock is as ours"
        return process, word

    settings = bucket.settings(endpoint)
    storage = Storage(settings.root, settings.storage)
    place = f"{storage.root}/.manifest"
    with project_lock(storage, place, P, lease_seconds=LEASE) as lock:
        process, word = other()
        assert (word, process.wait()) == ("busy", 0)
        lock.check()
    process, word = other()
    assert word == "holds"
    try:
        with pytest.raises(LakeBusyError), project_lock(storage, place, P, lease_seconds=LEASE):
            pass
    finally:
        process.kill()
        process.wait()
    began = time.monotonic()
    with project_lock(storage, place, P, lease_seconds=LEASE) as lock:
        assert lock.taken_over
    assert LEASE <= time.monotonic() - began < 10 * LEASE
