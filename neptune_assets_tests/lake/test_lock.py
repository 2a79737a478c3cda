from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from neptune_assets.errors import LakeBusyError
from neptune_assets.lake.lock import project_lock
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
