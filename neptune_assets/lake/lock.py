"""One writer for each project: a file lock on local disks, a lease that expires on object stores."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from neptune_assets import durable
from neptune_assets.errors import LakeBusyError, LakeError
from neptune_assets.lake.storage import Storage

LEASE_SECONDS: Final = 60.0
"""A lease that was not renewed for this long may be taken over."""

_LEASE: Final = re.compile(r"lease-([0-9]{6})\.json")


class ProjectLock:
    """Held while a project is written. :meth:`check` says that it still is."""

    def check(self) -> None:
        """Raise LakeBusyError if the lock was lost."""


@contextmanager
def project_lock(
    storage: Storage, directory: str, project_id: str, *, lease_seconds: float = LEASE_SECONDS
) -> Iterator[ProjectLock]:
    """Hold the one right to write a project. ``directory`` is its manifest directory.

    Raises LakeBusyError, naming who holds it since when, if another writer does. A local lock ends with its process,
    however that ends; a lease ends ``lease_seconds`` after its holder stopped renewing it.
    """
    lock = _FileLock(directory, project_id) if storage.local else _Lease(storage, directory, project_id, lease_seconds)
    lock.acquire()
    try:
        yield lock
    finally:
        lock.release()


class _FileLock(ProjectLock):
    def __init__(self, directory: str, project_id: str) -> None:
        self._path = Path(directory) / "lock.json"
        self._project_id = project_id
        self._descriptor = -1

    def acquire(self) -> None:
        durable.make_directory(self._path.parent)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _parse(os.pread(self._descriptor, 4096, 0))
            os.close(self._descriptor)
            raise _busy(self._project_id, holder, "as soon as that process ends") from None
        except OSError:
            os.close(self._descriptor)
            raise
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(_me()).encode(), 0)

    def release(self) -> None:
        # The file stays: removing it would let a third process lock another file of the same name.
        os.close(self._descriptor)


class _Lease(ProjectLock):
    """The lease with the highest number rules; taking over means creating the next number, which only one can."""

    def __init__(self, storage: Storage, directory: str, project_id: str, seconds: float) -> None:
        self._storage = storage
        self._directory = directory
        self._project_id = project_id
        self._seconds = seconds
        self._number = 0
        self._me = _me() | {"token": uuid.uuid4().hex}
        self._stop = threading.Event()
        self._renewed = 0.0
        self._lost: str | None = None
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        numbers = self._numbers()
        if numbers:
            holder = self._read(numbers[-1])
            if holder is not None and float(holder.get("expires_at", 0)) > time.time():
                raise _busy(self._project_id, holder, f"at most {self._seconds:.0f} seconds after that process ended")
        self._number = (numbers[-1] if numbers else 0) + 1
        if not self._storage.create(self._path(self._number), self._content()):
            raise _busy(self._project_id, self._read(self._number) or {}, "when that process has finished")
        self._renewed = time.monotonic()
        for number in numbers:
            self._storage.delete(self._path(number))
        self._thread = threading.Thread(target=self._beat, name="neptune_assets-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        if self._lost is None and time.monotonic() - self._renewed > self._seconds:
            self._lost = "it could not be renewed in time"
        if self._lost is not None:
            raise LakeBusyError(
                f"The lease on project {self._project_id!r} was lost: {self._lost}.",
                hint="Materialize again once no other materialization of the project runs; finished runs are kept.",
            )

    def release(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._lost is None:
            self._storage.delete(self._path(self._number))

    def _beat(self) -> None:
        while not self._stop.wait(self._seconds / 4):
            try:
                numbers = self._numbers()
                if not numbers or numbers[-1] != self._number:
                    self._lost = "another writer took it over"
                    return
                self._storage.put(self._path(self._number), self._content())
                self._renewed = time.monotonic()
            except (OSError, LakeError):
                # The store may answer again before the lease expires; check() knows when it is too late.
                continue

    def _content(self) -> bytes:
        return json.dumps(self._me | {"expires_at": time.time() + self._seconds}).encode()

    def _numbers(self) -> list[int]:
        return sorted(int(m[1]) for name in self._storage.names(self._directory) if (m := _LEASE.fullmatch(name)))

    def _path(self, number: int) -> str:
        return f"{self._directory}/lease-{number:06d}.json"

    def _read(self, number: int) -> dict[str, Any] | None:
        try:
            return _parse(self._storage.read(self._path(number)))
        except FileNotFoundError:
            return None


def _me() -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now}


def _parse(raw: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        found = json.loads(raw)
        if isinstance(found, dict):
            return found
    return {}


def _busy(project_id: str, holder: dict[str, Any], free: str) -> LakeBusyError:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}"
    return LakeBusyError(
        f"Project {project_id!r} is being written by {who} since {holder.get('since', 'an unknown time')}.",
        hint=f"Wait for it and materialize again; the lock becomes free {free}.",
    )
