"""One writer for each project: a file lock on local disks, a lease that expires on object stores.

No wall clock decides anything. A holder renews its lease, which changes the lease's content; who wants the lease
watches that content for as long as the lease lasts, by a clock of its own that also runs while the machine sleeps. A
holder that could not renew in three quarters of that time counts its lease as lost. Commits do not rely on the lock
alone: see :meth:`neptune_assets.lake.manifest.ManifestStore.fence`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
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
from neptune_assets.errors import LakeBusyError, SettingsError
from neptune_assets.lake.storage import Storage

LEASE_SECONDS: Final = 60.0
"""A lease that was not renewed for this long may be taken over."""

log = logging.getLogger(__name__)

_LEASE: Final = re.compile(r"lease-([0-9]{6,})\.json")
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""CLOCK_MONOTONIC stops while a machine is suspended, and leases of others do not."""

_RENEWALS: Final = 4
"""Renewals in the time that a lease lasts. The holder gives it up one renewal before others may take it."""

_UNSAFE: Final = "lake.allow_unsafe_locks"


class ProjectLock:
    """Held while a project is written. :meth:`check` raises once it is lost."""

    taken_over = False
    """True if the holder before did not release it: it may be dead, or paused and go on later."""

    def check(self) -> None:
        """Raise LakeBusyError if the lock was lost."""


@contextmanager
def project_lock(
    storage: Storage,
    directory: str,
    project_id: str,
    *,
    lease_seconds: float = LEASE_SECONDS,
    allow_unsafe: bool = False,
) -> Iterator[ProjectLock]:
    """Hold the one right to write a project. ``directory`` is its manifest directory.

    Raises LakeBusyError, naming who holds it since when, if another writer does, and SettingsError if the storage
    cannot keep two writers apart and ``allow_unsafe`` is false. A local lock ends with its process, however that ends.
    A lease that its holder does not renew is taken over after ``lease_seconds``, for which this call waits.
    """
    lock: _FileLock | _Lease = _FileLock(directory, project_id, allow_unsafe)
    if not storage.local:
        lock = _Lease(storage, directory, project_id, lease_seconds, allow_unsafe)
    lock.acquire()
    try:
        yield lock
    finally:
        lock.release()


class _FileLock(ProjectLock):
    def __init__(self, directory: str, project_id: str, allow_unsafe: bool) -> None:
        self._path = Path(directory) / "lock.json"
        self._project_id = project_id
        self._allow_unsafe = allow_unsafe
        self._descriptor = -1
        self._content = json.dumps(_me()).encode()

    def acquire(self) -> None:
        durable.make_directory(self._path.parent)
        if not self._allow_unsafe:
            refuse_local_locks(str(self._path.parent), Path("/proc/self/mountinfo"))
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
        os.pwrite(self._descriptor, self._content, 0)

    def check(self) -> None:
        # Who gets the lock writes into its file. So this also notices a server that gave the lock to somebody else, a
        # file system that keeps locks on each machine, and somebody who removed the file.
        try:
            found = self._path.read_bytes()
        except FileNotFoundError:
            found = b""
        if found != self._content:
            holder = _parse(found)
            who = f"{_who(holder)} has it" if holder else f"{self._path} was removed or overwritten"
            raise _lost("lock", self._project_id, who)

    def release(self) -> None:
        # The file stays: removing it would let a third process lock another file of the same name.
        os.close(self._descriptor)


class _Lease(ProjectLock):
    """The lease with the highest number rules; taking over means creating the next number, which only one can.

    The last lease stays when it is released, so that no number is ever used twice.
    """

    def __init__(self, storage: Storage, directory: str, project_id: str, seconds: float, allow_unsafe: bool) -> None:
        self._storage = storage
        self._directory = directory
        self._project_id = project_id
        self._seconds = seconds
        self._allow_unsafe = allow_unsafe
        self._number = 0
        self._me = _me() | {"seconds": seconds}
        self._renewals = 0
        self._stop = threading.Event()
        self._renewed = 0.0
        self._lost: str | None = None
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        numbers = self._numbers()
        if numbers:
            self._wait_until_free(numbers[-1])
        self._number = (numbers[-1] if numbers else 0) + 1
        self._renewed = _now()
        if not self._create(self._content()):
            raise _busy(self._project_id, self._holder(), "when that process has finished")
        if not self._allow_unsafe and self._create(json.dumps(_me()).encode()) and self._rules():
            self._storage.delete(self._path(self._number))
            raise SettingsError(
                f"{self._storage.url(self._storage.root)} cannot keep two writers apart: its store created the same "
                "object twice, so it ignores conditional writes (If-None-Match).",
                hint="Use a store that knows them (AWS S3, Google Cloud Storage, Azure, MinIO and Ceph do) or a local "
                f"directory, or set {_UNSAFE}: true if never more than one process writes this lake at a time.",
            )
        if not self._rules():
            # The request took so long that others came between: this number was free again, but is not the highest.
            raise _busy(self._project_id, self._holder(), "when that process has finished")
        for number in numbers:
            self._storage.delete(self._path(number))
        self._thread = threading.Thread(target=self._renew, name="neptune_assets-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        idle = _now() - self._renewed
        if self._lost is None and idle > self._limit:
            self._lost = f"it could not be renewed for {idle:.0f} seconds"
        if self._lost is not None:
            raise _lost("lease", self._project_id, self._lost)

    def release(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._lost is None and _now() - self._renewed <= self._limit:
            self._storage.put(self._path(self._number), json.dumps(self._me | {"released": True}).encode())

    @property
    def _limit(self) -> float:
        return self._seconds * (1 - 1 / _RENEWALS)

    def _wait_until_free(self, number: int) -> None:
        """Return once the lease was released, or was not renewed for as long as it lasts."""
        watched, since = self._read(number), _now()
        holder = _parse(watched or b"")
        if watched is None or holder.get("released"):
            return
        seconds = max(self._seconds, float(holder.get("seconds", LEASE_SECONDS)))
        log.warning(
            "%s holds the lease on %r since %s; waiting up to %.0f s to see whether it is renewed.",
            *(_who(holder), self._project_id, holder.get("since"), seconds),
        )
        while True:
            time.sleep(seconds / (4 * _RENEWALS))
            waited = _now() - since
            # Read after the time was taken, so that what was not renewed is at least that old.
            found = self._read(number)
            if found is None or _parse(found).get("released"):
                return
            if found != watched:
                raise _busy(self._project_id, holder, f"at most {seconds:.0f} seconds after that process ended")
            if waited >= seconds:
                log.warning("%s no longer renews its lease on %r; taking it over.", _who(holder), self._project_id)
                self.taken_over = True
                return

    def _renew(self) -> None:
        while not self._stop.wait(self._seconds / _RENEWALS):
            started = _now()
            if started - self._renewed > self._limit:
                return  # Somebody may have it by now: check() raises.
            try:
                self._renewals += 1
                self._storage.put(self._path(self._number), self._content())
                if not self._rules() or self._holder().get("token") != self._me["token"]:
                    self._lost = "another writer took it over"
                    return
                self._renewed = started
            except Exception as error:  # noqa: BLE001 - every client has errors of its own
                # The store may answer again before the lease expires; check() knows when it is too late.
                log.warning("The lease on %r could not be renewed: %s", self._project_id, error)

    def _content(self) -> bytes:
        # expires_at is for versions up to 0.1.0, which compare it with their own wall clock; nothing here reads it.
        return json.dumps(self._me | {"renewals": self._renewals, "expires_at": time.time() + self._seconds}).encode()

    def _rules(self) -> bool:
        """False if there is a lease with a higher number: others took it, and removed this one."""
        return self._numbers()[-1:] == [self._number]

    def _holder(self) -> dict[str, Any]:
        return _parse(self._read(self._number) or b"")

    def _create(self, content: bytes) -> bool:
        try:
            return self._storage.create(self._path(self._number), content)
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in {errno.ENOSYS, errno.EOPNOTSUPP}:
                raise
            raise SettingsError(
                f"{self._storage.url(self._storage.root)} cannot keep two writers apart: {error}.",
                hint="Use a store with conditional writes (If-None-Match), or a local directory.",
            ) from error

    def _numbers(self) -> list[int]:
        return sorted(int(m[1]) for name in self._storage.names(self._directory) if (m := _LEASE.fullmatch(name)))

    def _path(self, number: int) -> str:
        return f"{self._directory}/lease-{number:06d}.json"

    def _read(self, number: int) -> bytes | None:
        try:
            return self._storage.read(self._path(number))
        except FileNotFoundError:
            return None


_CLIENT_ONLY: Final = frozenset(
    {
        *("9p", "virtiofs", "vboxsf", "prl_fs"),
        *(f"fuse.{name}" for name in ("sshfs", "s3fs", "gcsfuse", "rclone", "goofys", "mount-s3", "mountpoint-s3")),
        *(f"fuse.{name}" for name in ("blobfuse", "blobfuse2", "davfs", "curlftpfs", "vmhgfs-fuse", "grpcfuse")),
        "fuse",
    }
)
"""File systems whose server does not know of flock: each machine that mounts them has locks of its own."""

_CLIENT_ONLY_OPTIONS: Final = frozenset(
    {"nolock", "local_lock=all", "local_lock=flock", "nobrl", "localflock", "localflocks"}
)
"""Options of NFS, SMB, Lustre, OCFS2 and GFS2 that keep flock on each machine: nfs(5), mount.cifs(8), mount.lustre(8).
"""

_SHARING_FUSE: Final = frozenset({"fuse.ceph-fuse", "fuse.ceph", "fuse.glusterfs", "fuse.juicefs", "fuse.mfs"})


def refuse_local_locks(directory: str, mountinfo: Path) -> None:
    """Raise SettingsError if a directory is on a file system whose file locks do not reach other machines.

    ``mountinfo`` is Linux' table of mounts, proc_pid_mountinfo(5); nothing is known where there is none.
    """
    try:
        table = mountinfo.read_text("utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return
    place, kind, options = "", "", ""
    real = os.path.realpath(directory)
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split(" ")[4])
        # Of mounts on one place the last one is seen.
        if len(point) >= len(place) and f"{real}/".startswith(point.rstrip("/") + "/"):
            kind, _, superblock = after.split(" ", 2)
            place, options = point, f"{before.split(' ')[5]},{superblock}"
    local = _CLIENT_ONLY_OPTIONS.intersection(options.split(","))
    if kind in _CLIENT_ONLY or local:
        how = f"{kind}, mounted with {', '.join(sorted(local))}" if local else kind
        raise SettingsError(
            f"{directory} cannot keep two writers apart: it is on {place} ({how}), whose file locks do not reach other "
            "machines.",
            hint="Put the lake on a disk, on a mount whose server keeps the locks (NFS 4, CephFS), or at its object "
            f"store's URL; or set {_UNSAFE}: true if never more than one machine writes this lake.",
        )
    if kind.startswith("fuse.") and kind not in _SHARING_FUSE:
        log.warning(
            "%s is on %s (%s). If several machines mount it, check that its flock reaches all of them.",
            *(directory, place, kind),
        )


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def _me() -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "token": uuid.uuid4().hex}


def _parse(raw: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        found = json.loads(raw)
        if isinstance(found, dict):
            return found
    return {}


def _who(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}"


def _busy(project_id: str, holder: dict[str, Any], free: str) -> LakeBusyError:
    return LakeBusyError(
        f"Project {project_id!r} is being written by {_who(holder)} since {holder.get('since', 'an unknown time')}.",
        hint=f"Wait for it and materialize again; the lock becomes free {free}.",
    )


def _lost(kind: str, project_id: str, reason: str) -> LakeBusyError:
    return LakeBusyError(
        f"The {kind} on project {project_id!r} was lost: {reason}.",
        hint="Materialize again once no other materialization of the project runs; finished runs are kept.",
    )
