"""What a process told the file system below one directory: recorded by strace, so nobody's own word is taken for it.

Writes of Python, Arrow, DuckDB and SQLite are seen alike. Two things are added by the recorded process itself, as
writes to a file of markers: labels (what it said was done), and for each fsync of the package the line of code that
asked for it. See :func:`record` and :func:`work_under_observation`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

MARKERS = "markers"
CALLS = (
    "open,openat,creat,close,dup,dup2,dup3,read,lseek,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,"
    "fallocate,fsync,fdatasync,sync_file_range,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,"
    "mkdir,mkdirat,rmdir,sendfile,copy_file_range,mmap,clone,clone3,fork,vfork,sync,syncfs,socket,pipe2,eventfd2,"
    "epoll_create1,accept4,memfd_create"
)
_LINE = re.compile(r"(\d+) +(.*)")
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?)(?: .*)?$", re.DOTALL)
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


@dataclass(frozen=True)
class Write:
    """Bytes written to a file."""

    file: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncate:
    """A file cut, or made longer by zeros."""

    file: int
    size: int


@dataclass(frozen=True)
class Entry:
    """A name in a directory that from now on means ``item``, or nothing. Two entries of one rename share ``pair``."""

    directory: int
    name: str
    item: int | None
    pair: int | None = None


@dataclass(frozen=True)
class Sync:
    """An fsync that ended; it covers what had ended when it began. ``site`` is the code that asked for it."""

    item: int
    covers: int
    site: str


@dataclass(frozen=True)
class Label:
    """Something the process said: from now on it must be true."""

    text: str


Operation = Write | Truncate | Entry | Sync | Label


@dataclass
class Recording:
    """The tree at the beginning, which is on the disk, and all operations after it. Item 0 is the root's parent."""

    root: Path
    directories: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})
    files: dict[int, bytes] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)

    def sites(self) -> list[str]:
        """The lines of the package that synced, in order of their first appearance."""
        return list(dict.fromkeys(op.site for op in self.operations if isinstance(op, Sync) and op.site))

    def without(self, site: str) -> Recording:
        """The same recording, had this line of code not been there ("" is code that is not ours: SQLite)."""
        kept: list[Operation] = []
        numbers: list[int] = []
        for operation in self.operations:
            numbers.append(len(kept))
            if isinstance(operation, Sync):
                if operation.site == site:
                    continue
                operation = Sync(operation.item, numbers[operation.covers], operation.site)
            kept.append(operation)
        return Recording(self.root, self.directories, self.files, kept)


def need_strace() -> None:
    """Skip if there is no strace, except in CI, which installs it."""
    if shutil.which("strace") is None and not os.environ.get("CI"):
        pytest.skip("strace is not installed: power cuts are not tried")


def record(root: Path, work: str, scratch: Path) -> Recording:
    """Run ``work`` (module:function, called with the root) in a process of its own and record what it does to root."""
    recording = Recording(root)
    _snapshot(recording)
    scratch.mkdir(parents=True, exist_ok=True)
    log, markers = scratch / "strace.log", scratch / MARKERS
    markers.touch()
    module, _, function = work.partition(":")
    command = ["strace", "-f", "-xx", "-s", "33554432", "--seccomp-bpf", "-e", f"trace={CALLS}", "-e", "signal=none"]
    command += ["-o", str(log), sys.executable, "-c"]
    command += [f"from {module} import {function} as work\nfrom {__name__} import work_under_observation as run\n"]
    command[-1] += f"run(work, {str(root)!r}, {str(markers)!r})"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    _Reader(recording, str(markers)).read(log)
    log.unlink()
    return recording


def _snapshot(recording: Recording) -> None:
    recording.directories = {0: {}}
    numbers: dict[tuple[int, int], int] = {}

    def take(path: Path) -> int:
        state = path.stat()
        known = numbers.get((state.st_dev, state.st_ino))
        if known is not None:
            return known
        item = numbers[state.st_dev, state.st_ino] = len(numbers) + 1
        if path.is_dir():
            recording.directories[item] = {child.name: take(child) for child in sorted(path.iterdir())}
        else:
            recording.files[item] = path.read_bytes()
        return item

    if recording.root.exists():
        recording.directories[0][recording.root.name] = take(recording.root)


# -- inside the recorded process


def work_under_observation(work: Callable[[Path, Callable[[str], None]], None], root: str, markers: str) -> None:
    """Do the work; write a marker before each fsync of the package, and one for each label."""
    from neptune_assets import durable

    descriptor = os.open(markers, os.O_WRONLY)
    asked: dict[str, str] = {}
    real = os.fsync
    # Imports, and threads that start late, are no part of the recording.
    package = f"{Path(durable.__file__).parent}/"

    def fsync(opened: int) -> None:
        os.write(descriptor, f"site {_site(package, asked)}".encode())
        real(opened)

    def remembering(original: Callable[..., None]) -> Callable[..., None]:
        def call(pool: durable.SyncPool, *paths: str) -> None:
            for path in paths:
                asked[path] = f"{_caller(package)}: SyncPool.{original.__name__}"
            original(pool, *paths)

        return call

    os.fsync = fsync
    durable.SyncPool.file = remembering(durable.SyncPool.file)  # type: ignore[method-assign]
    durable.SyncPool.directory = remembering(durable.SyncPool.directory)  # type: ignore[method-assign]
    os.write(descriptor, b"begin")
    work(Path(root), lambda text: os.write(descriptor, f"label {text}".encode()) and None)
    os.write(descriptor, b"label done")
    os.write(descriptor, b"end")


def _site(package: str, asked: Mapping[str, str]) -> str:
    """The caller of the durable module, and the function of it that syncs; nothing for code that is not ours."""
    frames = list(traceback.walk_stack(sys._getframe(2)))
    inner = [frame for frame, _ in frames if frame.f_code.co_filename == f"{package}durable.py"]
    for frame in inner:
        if frame.f_code.co_name == "_sync_all":
            path = inner[0].f_locals.get("path")
            return asked.get(str(path), f"{_caller(package)}: SyncPool")
    if any(frame.f_code.co_name == "make_directory" and "state" in frame.f_locals for frame in inner[:2]):
        return "durable.py make_directory: the name of a directory that is there"
    steps = [(frame.f_code.co_name, line) for frame, line in frames if frame in inner]
    where = dict.fromkeys(name if name != "sync" else "" for name, _ in reversed(steps))
    line = next((str(line) for name, line in steps if name not in {"sync", "rename"}), "")
    return f"{_caller(package)}: {'.'.join(name for name in where if name) or 'sync'}{':' if line else ''}{line}"


def _caller(package: str) -> str:
    for frame, _ in traceback.walk_stack(sys._getframe(1)):
        name = frame.f_code.co_filename
        if name.startswith(package) and not name.endswith(("/durable.py", "/lake/storage.py")):
            return f"{name[len(package) :]} {frame.f_code.co_name}"
    return ""


# -- reading strace's log


class _Reader:
    def __init__(self, recording: Recording, markers: str) -> None:
        self.recording = recording
        self.base = str(recording.root.parent)
        self.name = recording.root.name
        self.markers = markers
        self.now = {item: dict(names) for item, names in recording.directories.items()}
        self.sizes = {item: len(data) for item, data in recording.files.items()}
        self.next = max([0, *self.now, *self.sizes]) + 1
        self.opened: dict[int, int] = {}
        """Open descriptors of items below the root."""
        self.position: dict[int, int] = {}
        self.appending: set[int] = set()
        self.marker_descriptor: int | None = None
        self.sites: dict[int, str] = {}
        self.begun: dict[int, int] = {}
        self.active = False
        self.foreign: set[int] = set()
        self.pairs = 0
        self.indexes: set[int] = set()
        """SQLite's indexes of its write-ahead logs: mapped, and made anew after a crash whatever they hold."""

    def read(self, log: Path) -> None:
        unfinished: dict[int, str] = {}
        with log.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                match = _LINE.match(line.rstrip("\n"))
                if match is None:
                    continue
                pid, text = int(match[1]), match[2]
                if pid in self.foreign:
                    continue
                if text.endswith("<unfinished ...>"):
                    text = text.removesuffix("<unfinished ...>").rstrip()
                    unfinished[pid] = text
                    self.begin(pid, text)
                    continue
                if text.startswith("<... "):
                    text = unfinished.pop(pid, "") + text.partition(" resumed>")[2]
                else:
                    self.begin(pid, text)
                call = _CALL.match(text)
                if call is not None and call[3] != "?":
                    self.end(pid, call[1], call[2], int(call[3], 0))

    def begin(self, pid: int, text: str) -> None:
        name, _, rest = text.partition("(")
        if name in {"fsync", "fdatasync"}:
            self.begun[pid] = len(self.recording.operations)
        elif name == "close":
            number = re.match(r"\d+", rest)
            if number is not None:
                self.forget(int(number[0]))

    def forget(self, descriptor: int) -> None:
        self.opened.pop(descriptor, None)
        self.appending.discard(descriptor)
        if descriptor == self.marker_descriptor:
            self.marker_descriptor = None

    def add(self, operation: Operation) -> None:
        if self.active:
            self.recording.operations.append(operation)
        elif not isinstance(operation, Label | Sync):
            raise AssertionError(f"the work changed its root before it began: {operation}")

    # What ended, with the value it returned.

    def end(self, pid: int, name: str, arguments: str, result: int) -> None:
        texts = [bytes.fromhex(found[1].replace("\\x", "")) for found in _TEXT.finditer(arguments)]
        first = arguments.split(",", 1)[0].strip()
        if name in {"clone", "clone3", "fork", "vfork"}:
            if result > 0 and "CLONE_THREAD" not in arguments:
                self.foreign.add(result)
            return
        if result < 0:
            return
        if name in {"socket", "pipe2", "eventfd2", "epoll_create1", "accept4", "memfd_create", "dup", "dup2", "dup3"}:
            if name.startswith("dup") and int(first) in self.opened:
                raise AssertionError("a descriptor of the root was duplicated, which this recorder does not follow")
            self.forget(result)
            return
        if name in {"open", "openat", "creat"}:
            self.open(name, arguments, texts[0], result)
        elif name in {"rename", "renameat", "renameat2", "link", "linkat"}:
            source, target = self.both(name, arguments, texts)
            self.move(source, target, keep=name.startswith("link"))
        elif name in {"unlink", "rmdir", "unlinkat"}:
            place = self.place(self.at(arguments) if name == "unlinkat" else None, texts[0])
            if place is not None:
                self.entry(Entry(*place, None))
        elif name in {"mkdir", "mkdirat"}:
            place = self.place(self.at(arguments) if name == "mkdirat" else None, texts[0])
            if place is not None:
                item = self.new()
                self.now[item] = {}
                self.recording.directories.setdefault(item, {})
                self.entry(Entry(*place, item))
        elif name in {"symlink", "symlinkat", "truncate"}:
            if self.place(None, texts[-1] if name != "truncate" else texts[0]) is not None:
                raise AssertionError(f"{name} below the root is not followed by this recorder")
        else:
            self.descriptor_call(pid, name, arguments, texts, result)

    def descriptor_call(self, pid: int, name: str, arguments: str, texts: list[bytes], result: int) -> None:
        parts = [part.strip() for part in arguments.split(",")]
        if name == "mmap":
            item = self.opened.get(int(parts[4]))
            if "MAP_SHARED" in arguments and "PROT_WRITE" in arguments and item not in {None, *self.indexes}:
                raise AssertionError("a file below the root was mapped for writing: its writes cannot be seen")
            return
        if name in {"sync", "syncfs"}:
            return
        descriptor = int(parts[0])
        if name == "write" and descriptor == self.marker_descriptor:
            self.marker(pid, texts[0].decode())
            return
        item = self.opened.get(descriptor)
        if item is None:
            return
        if name in {"read"}:
            self.position[descriptor] += result
        elif name == "lseek":
            self.position[descriptor] = result
        elif name in {"write", "writev"}:
            offset = self.sizes[item] if descriptor in self.appending else self.position[descriptor]
            self.write(item, offset, b"".join(texts)[:result])
            self.position[descriptor] = offset + result
        elif name == "pwrite64":
            self.write(item, int(parts[-1], 0), texts[0][:result])
        elif name == "ftruncate":
            self.sizes[item] = int(parts[1])
            self.add(Truncate(item, int(parts[1])))
        elif name == "fallocate":
            end = int(parts[2]) + int(parts[3])
            if parts[1] == "0" and end > self.sizes[item]:
                self.sizes[item] = end
                self.add(Truncate(item, end))
        elif name in {"fsync", "fdatasync"}:
            site = self.sites.pop(pid, "")
            self.add(Sync(item, self.begun[pid], site))
        elif name in {"sendfile", "copy_file_range", "pwritev", "pwritev2"}:
            raise AssertionError(f"{name} into the root is not followed by this recorder")

    def marker(self, pid: int, text: str) -> None:
        word, _, rest = text.partition(" ")
        if word == "begin":
            self.active = True
        elif word == "end":
            self.active = False
        elif word == "label":
            self.add(Label(rest))
        else:
            self.sites[pid] = rest

    def write(self, item: int, offset: int, data: bytes) -> None:
        self.sizes[item] = max(self.sizes[item], offset + len(data))
        self.add(Write(item, offset, data))

    def open(self, name: str, arguments: str, path: bytes, result: int) -> None:
        self.forget(result)
        if os.fsdecode(path) == self.markers:
            self.marker_descriptor = result
            return
        place = self.place(self.at(arguments) if name == "openat" else None, path)
        if place is None:
            return
        directory, entry = place
        item = self.now[directory].get(entry) if entry else directory
        if item is None:
            item = self.new()
            self.sizes[item] = 0
            self.recording.files.setdefault(item, b"")
            self.entry(Entry(directory, entry, item))
            if entry.endswith("-shm"):
                self.indexes.add(item)
        elif "O_TRUNC" in arguments and self.sizes.get(item):
            self.sizes[item] = 0
            self.add(Truncate(item, 0))
        self.opened[result] = item
        self.position[result] = 0
        if "O_APPEND" in arguments:
            self.appending.add(result)

    def move(self, source: tuple[int, str] | None, target: tuple[int, str] | None, *, keep: bool) -> None:
        if source is None and target is None:
            return
        if source is None or target is None:
            raise AssertionError("something was moved into the root or out of it, which this recorder does not follow")
        item = self.now[source[0]][source[1]]
        if keep:
            self.entry(Entry(*target, item))
            return
        self.pairs += 1
        self.entry(Entry(*target, item, self.pairs))
        self.entry(Entry(*source, None, self.pairs))

    def entry(self, entry: Entry) -> None:
        if entry.item is None:
            self.now[entry.directory].pop(entry.name, None)
        else:
            self.now[entry.directory][entry.name] = entry.item
        self.add(entry)

    def new(self) -> int:
        self.next += 1
        return self.next - 1

    # Names.

    def at(self, arguments: str) -> int | None:
        first = arguments.split(",", 1)[0].strip()
        return None if first == "AT_FDCWD" else int(first)

    def both(
        self, name: str, arguments: str, texts: list[bytes]
    ) -> tuple[tuple[int, str] | None, tuple[int, str] | None]:
        if name in {"rename", "link"}:
            return self.place(None, texts[0]), self.place(None, texts[1])
        second = arguments.split(",")[2].strip()
        return (
            self.place(self.at(arguments), texts[0]),
            self.place(None if second == "AT_FDCWD" else int(second), texts[1]),
        )

    def place(self, descriptor: int | None, raw: bytes) -> tuple[int, str] | None:
        """The directory and the name in it that a path means; None outside of the root."""
        path = os.fsdecode(raw)
        if path.startswith("/"):
            if path == self.base:
                return 0, ""
            if path != f"{self.base}/{self.name}" and not path.startswith(f"{self.base}/{self.name}/"):
                return None
            at, rest = 0, path[len(self.base) + 1 :]
        elif descriptor is not None and descriptor in self.opened:
            at, rest = self.opened[descriptor], path
        else:
            return None
        *parents, name = [part for part in rest.split("/") if part not in {"", "."}] or [""]
        for parent in parents:
            at = self.now[at][parent]
        return at, name
