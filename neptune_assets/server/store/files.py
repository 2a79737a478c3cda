"""Bytes of files, by their hash: written aside, made durable, then renamed. Keys of clients never become paths."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from neptune_assets import durable
from neptune_assets.lake.integrity import hash_stream
from neptune_assets.server.store.database import FILE, DamagedError, StoreError, intact

if TYPE_CHECKING:
    pass

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_UPLOAD: Final = re.compile(r"[0-9a-f]{32}")
_BLOCK: Final = 1 << 20
_DONE: Final = "done"
_KEPT_SECONDS: Final = 7 * 86_400
_REMEMBERED: Final = 100_000
UPLOAD: Final = "Upload the file again, or restore the store's objects from a backup."


def private_directory(path: Path) -> None:
    """Make a directory for its owner only, or take one that nobody else can write to. Raises StoreError otherwise."""
    durable.make_directory(path, mode=0o700)
    if path.stat().st_mode & 0o022:
        raise StoreError(
            f"Other users can write to the directory {path}, so nothing in it can be trusted.",
            hint=f"Run `chmod 700 {path}`, or choose another directory.",
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes that are in the store for good."""

    sha256: str
    size: int


class Incoming:
    """A file on its way in: write blocks, then keep or drop it."""

    def __init__(self, objects: ObjectStore, path: Path) -> None:
        self._objects = objects
        self._path = path
        self._stream: BinaryIO = path.open("xb")
        self._hash = sha256()
        self.size = 0

    def write(self, block: bytes) -> None:
        """Add a block."""
        self._stream.write(block)
        self._hash.update(block)
        self.size += len(block)

    def keep(self) -> Stored:
        """Make the bytes durable under their hash."""
        self._stream.close()
        digest = self._hash.hexdigest()
        durable.put(self._path, self._objects.path(digest))
        return Stored(digest, self.size)

    def keep_part(self, directory: Path, number: int) -> Stored:
        """Make the bytes durable as a part of the upload in this directory."""
        self._stream.close()
        digest = self._hash.hexdigest()
        durable.put(self._path, directory / f"{number:05d}-{digest}")
        return Stored(digest, self.size)

    def drop(self) -> None:
        """Forget the bytes; does nothing after :meth:`keep`."""
        self._stream.close()
        self._path.unlink(missing_ok=True)


class Resumable:
    """One chunk of an upload that goes on where it stopped; only one at a time. Use as a context manager."""

    def __init__(self, objects: ObjectStore, directory: Path) -> None:
        self._objects = objects
        self._directory = directory
        self._descriptor = -1
        self.size = 0

    def __enter__(self) -> Resumable:
        """Lock the upload. Raises BlockingIOError if another chunk of it is coming in."""
        path = self._directory / "data"
        new = not path.exists()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise
        if new:
            durable.sync(self._directory)
        self.size = os.fstat(self._descriptor).st_size
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def start_at(self, offset: int) -> None:
        """Continue at this offset, which must not be beyond what is there; what was written after it is dropped."""
        os.ftruncate(self._descriptor, offset)
        os.lseek(self._descriptor, offset, os.SEEK_SET)
        self.size = offset

    def write(self, block: bytes) -> None:
        """Add a block."""
        view = memoryview(block)
        while view:
            written = os.write(self._descriptor, view)
            view = view[written:]
            self.size += written

    def sync(self) -> None:
        """Make what is there durable, before anybody is told how much it is."""
        os.fsync(self._descriptor)

    def keep(self) -> Stored:
        """Make the whole file durable under its hash, and remember that this upload is done."""
        digest = sha256()
        path = self._directory / "data"
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
        stored = Stored(digest.hexdigest(), self.size)
        durable.put(path, self._objects.path(stored.sha256))
        return stored

    def finish(self) -> None:
        """Remember that the upload is done and known; asking again finds it so."""
        (self._directory / _DONE).touch()

    @property
    def done(self) -> bool:
        """True once :meth:`finish` was called."""
        return (self._directory / _DONE).exists()


class ObjectStore:
    """The objects of one project, and its uploads in several steps that are not finished."""

    def __init__(self, directory: Path) -> None:
        self._objects = directory / "objects"
        self._incoming = directory / "incoming"
        self._uploads = directory / "uploads"
        self._seen: dict[str, tuple[int, ...]] = {}
        for part in (self._objects, self._incoming, self._uploads):
            part.mkdir(exist_ok=True, mode=0o700)
        # The store is ours alone: whatever is here was cut short.
        for left in self._incoming.iterdir():
            left.unlink()
        self.remove_abandoned()

    def remove_abandoned(self) -> None:
        """Remove uploads in several steps that no client has come back to for a week."""
        for upload in self._uploads.iterdir():
            # A file that grows does not touch its directory.
            newest = max((path.stat().st_mtime for path in (upload, *upload.iterdir())), default=0.0)
            if newest < time.time() - _KEPT_SECONDS:
                shutil.rmtree(upload)

    def older_than(self, moment: float) -> Iterator[str]:
        """Yield the hashes of bytes that came in before a moment (seconds since 1970)."""
        for directory in sorted(self._objects.iterdir()):
            for path in directory.iterdir():
                if _HEX.fullmatch(path.name) and path.stat().st_mtime < moment:
                    yield path.name

    def remove(self, digest: str, older_than: float) -> int:
        """Remove bytes that nothing refers to, unless they arrived again since a moment; return how many."""
        path = self.path(digest)
        try:
            state = path.stat()
        except FileNotFoundError:
            return 0
        if state.st_mtime >= older_than:
            return 0
        path.unlink()
        return state.st_size

    def intact(self, digest: str) -> Path:
        """Return where the bytes are. Raises DamagedError if they are gone, or others than their name says.

        Hashed the first time, and again once the file is another or a changed one.
        """
        path = self.path(digest)
        try:
            state = path.stat()
            mark = (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
            if self._seen.get(digest) != mark:
                with path.open("rb") as stream:
                    found = hash_stream(stream)[1]
                if found != digest:
                    raise DamagedError(
                        f"The bytes with the sha256 {digest} are damaged: theirs is {found}.", hint=UPLOAD
                    )
                if len(self._seen) >= _REMEMBERED:
                    self._seen.clear()
                self._seen[digest] = mark
        except FileNotFoundError:
            raise DamagedError(f"The bytes with the sha256 {digest} are missing in the store.", hint=UPLOAD) from None
        return path

    def receive(self) -> Incoming:
        """Begin a file."""
        return Incoming(self, self._incoming / secrets.token_hex(16))

    def path(self, digest: str) -> Path:
        """Where the bytes with this SHA-256 lie, or would lie."""
        return _place(self._objects, digest)

    def begin_upload(self, key: str) -> str:
        """Begin an upload in several steps, for bytes that ``key`` will name, and return its id."""
        upload = secrets.token_hex(16)
        directory = self._uploads / upload
        durable.make_directory(directory)
        durable.write(directory / "key", key.encode("utf-8"))
        return upload

    def note_type(self, upload: str, mime_type: str) -> None:
        """Remember what an upload in parts is. Raises FileNotFoundError if there is no such upload."""
        if self.upload_of(upload)[0] != mime_type:
            durable.write(self._upload(upload) / "type", mime_type.encode("utf-8"))

    def upload_of(self, upload: str) -> tuple[str | None, str]:
        """What an upload in parts is, if it was told, and its key. Raises FileNotFoundError if there is none."""
        directory = self._upload(upload)
        mime_type = directory / "type"
        found = mime_type.read_text(encoding="utf-8") if mime_type.exists() else None
        return found, (directory / "key").read_text(encoding="utf-8")

    def resume(self, upload: str) -> Resumable:
        """The upload, to go on with. Raises FileNotFoundError if there is no such upload."""
        return Resumable(self, self._upload(upload))

    def keep_part(self, upload: str, number: int, incoming: Incoming) -> Stored:
        """Make a part durable. Raises FileNotFoundError if there is no such upload."""
        return incoming.keep_part(self._upload(upload), number)

    def join_parts(self, upload: str, parts: Sequence[tuple[int, str]]) -> Stored:
        """Join parts, given by number and hash. Raises FileNotFoundError, or ValueError if others were uploaded."""
        directory = self._upload(upload)
        files = [directory / f"{number:05d}-{digest}" for number, digest in parts if _HEX.fullmatch(digest)]
        if not files or len(files) != len(parts) or not all(file.is_file() for file in files):
            raise ValueError("the parts are not those that were uploaded")
        whole = self.receive()
        try:
            for file in files:
                with file.open("rb") as stream:
                    while block := stream.read(_BLOCK):
                        whole.write(block)
            return whole.keep()
        finally:
            whole.drop()

    def forget_upload(self, upload: str) -> None:
        """Remove an upload. Raises FileNotFoundError if there is no such upload."""
        shutil.rmtree(self._upload(upload))

    def _upload(self, upload: str) -> Path:
        if not _UPLOAD.fullmatch(upload) or not (self._uploads / upload).is_dir():
            raise FileNotFoundError(f"there is no upload {upload[:40]!r}")
        return self._uploads / upload


def find_file(connection: sqlite3.Connection, key: str) -> tuple[str, str | None] | None:
    """Return hash and type of the bytes that a key names. Raises DamagedError if the row is not what was written."""
    row = connection.execute(
        f"SELECT sha256, mime_type, {intact('files', *FILE)} FROM files WHERE key = ?",  # noqa: S608 - our own names
        (key,),
    ).fetchone()
    if row is not None and not row[2]:
        raise DamagedError(f"The row of file {key!r} is damaged in the store.", hint=UPLOAD)
    return None if row is None else (str(row[0]), row[1])


def object_path(directory: Path, digest: str) -> Path:
    """Where a project's directory holds the bytes with this SHA-256; for other processes, which only read."""
    return _place(directory / "objects", digest)


def _place(objects: Path, digest: str) -> Path:
    if not _HEX.fullmatch(digest):
        raise ValueError("not a valid SHA-256 in hex")
    return objects / digest[:2] / digest
