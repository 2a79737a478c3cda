from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from neptune_assets.errors import LakeBusyError, SettingsError
from neptune_assets.lake.lock import project_lock, refuse_local_locks
from neptune_assets.lake.storage import Storage
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import LakeSettings
from neptune_assets_tests.support.lake_factory import make_source, metric


def holder(directory: Path) -> tuple[int, int]:
    """Fork a process that holds the lock until it is killed; returns its id and a pipe that says it holds it."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with project_lock(Storage(str(directory)), str(directory / "m"), "ws/p"):
            os.write(tell, b"x")
            signal.pause()
        os._exit(0)
    os.close(tell)
    assert os.read(ready, 1) == b"x"
    return child, ready


def test_a_second_process_is_refused_with_name_and_time_and_a_kill_frees_the_lock(tmp_path: Path) -> None:
    child, ready = holder(tmp_path)
    try:
        with pytest.raises(LakeBusyError) as refused, project_lock(Storage(str(tmp_path)), str(tmp_path / "m"), "ws/p"):
            pass
        message = str(refused.value)
        assert f"process {child} on {socket.gethostname()} since 20" in message
        assert "materialize again" in message
        assert refused.value.transient
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
    with project_lock(Storage(str(tmp_path)), str(tmp_path / "m"), "ws/p") as lock:
        lock.check()


def test_the_same_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with project_lock(storage, str(tmp_path / "m"), "ws/p"):
        with pytest.raises(LakeBusyError), project_lock(storage, str(tmp_path / "m"), "ws/p"):
            pass
        with project_lock(storage, str(tmp_path / "other"), "ws/q"):
            pass
    with project_lock(storage, str(tmp_path / "m"), "ws/p"):
        pass


def test_the_writer_holds_the_lock_while_it_writes(tmp_path: Path) -> None:
    source = make_source({"ws/p": {"a": metric("m", [1.0])}})
    refused = []

    def second(_: object) -> None:
        try:
            LakeWriter(LakeSettings(root=str(tmp_path)), source).write_project("ws/p")
        except LakeBusyError as error:
            refused.append(str(error))

    LakeWriter(LakeSettings(root=str(tmp_path)), source).write_project("ws/p", progress=second)
    assert refused
    assert f"process {os.getpid()}" in refused[0]


def mounts(tmp_path: Path, line: str) -> Path:
    """Return a table of mounts in which a place of the test is on this file system."""
    table = tmp_path / "mountinfo"
    root = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    table.write_text(f"{root}40 22 0:50 / {tmp_path}/my\\040lake rw,nosuid shared:9 - {line}\n")
    return table


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("fuse.sshfs me@host:/data rw,user_id=0", "fuse.sshfs"),
        ("fuse.s3fs s3fs rw", "fuse.s3fs"),
        ("fuse.gcsfuse bucket rw", "fuse.gcsfuse"),
        ("9p share rw,trans=virtio", "9p"),
        ("nfs server:/x rw,vers=3,nolock,proto=tcp", "nolock"),
        ("nfs server:/x rw,vers=3,local_lock=all", "local_lock=all"),
        ("cifs //server/x rw,nobrl", "nobrl"),
    ],
)
def test_mounts_whose_locks_stay_on_one_machine_are_refused_by_name(tmp_path: Path, line: str, named: str) -> None:
    place = tmp_path / "my lake" / "data"
    place.mkdir(parents=True)
    with pytest.raises(SettingsError, match=named) as error:
        refuse_local_locks(str(place), mounts(tmp_path, line))
    assert str(place) in str(error.value)
    assert "allow_unsafe_locks" in str(error.value)
    # Its neighbour is on the disk.
    refuse_local_locks(str(tmp_path / "my lake 2"), mounts(tmp_path, line))


@pytest.mark.parametrize(
    "line",
    ["ext4 /dev/sdb rw", "nfs4 server:/x rw,vers=4.2,local_lock=none", "ceph mon:/ rw", "fuse.ceph-fuse ceph-fuse rw"],
)
def test_disks_and_mounts_with_locks_of_their_server_are_taken(tmp_path: Path, line: str) -> None:
    place = tmp_path / "my lake"
    place.mkdir()
    refuse_local_locks(str(place), mounts(tmp_path, line))


def test_a_file_lock_that_somebody_else_got_is_noticed_and_nothing_is_changed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    kept = tmp_path / "kept"
    kept.write_text("x")
    with project_lock(storage, str(tmp_path / "m"), "ws/p") as lock:
        guarded = storage.guarded(lock.check)
        guarded.put(str(tmp_path / "mine"), b"x")
        # As on a file system that gave the same lock to another machine.
        (tmp_path / "m" / "lock.json").write_text('{"pid": 7, "host": "other"}')
        with pytest.raises(LakeBusyError, match="process 7 on other has it"):
            guarded.delete(str(kept))
        (tmp_path / "m" / "lock.json").unlink()
        with pytest.raises(LakeBusyError, match="removed or overwritten"):
            lock.check()
    assert kept.exists()
