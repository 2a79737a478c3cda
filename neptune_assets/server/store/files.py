"""Bytes of files, by their hash: written aside, made durable, then renamed. Keys of clients never become paths."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

from neptune_assets.lake.storage import sync_directory

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_UPLOAD: Final = re.compile(r"[0-9a-f]{32}")
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes that are in the store for good."""

    sha256: str
    size: int


class Incoming:
    """A file on its way in: write blocks, then keep or drop it."""

    def __init__(self, objects: ObjectStore, path: Path, hashed: bool) -> None:
        self._objects = objects
        self._path = path
        self._stream: BinaryIO = path.open("xb")
        self._hash = sha256() if hashed else None
        self.size = 0

    def write(self, block: bytes) -> None:
        """Add a block."""
        self._stream.write(block)
        if self._hash is not None:
            self._hash.update(block)
        self.size += len(block)

    def keep(self) -> Stored:
        """Make the bytes durable under their hash."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        digest = self._hash.hexdigest() if self._hash is not None else _digest(self._path)
        target = self._objects.path(digest)
        if not target.parent.is_dir():
            target.parent.mkdir(exist_ok=True)
            sync_directory(str(target.parent.parent))
        self._path.replace(target)
        sync_directory(str(target.parent))
        return Stored(digest, self.size)

    def drop(self) -> None:
        """Forget the bytes; does nothing after :meth:`keep`."""
        self._stream.close()
        self._path.unlink(missing_ok=True)


class ObjectStore:
    """The objects of one project, and its uploads in several parts that are not finished."""

    def __init__(self, directory: Path) -> None:
        self._objects = directory / "objects"
        self._incoming = directory / "incoming"
        self._uploads = directory / "uploads"
        for part in (self._objects, self._incoming, self._uploads):
            part.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The store is ours alone: whatever is here was cut short.
        for left in self._incoming.iterdir():
            left.unlink()

    def receive(self) -> Incoming:
        """Begin a file."""
        return Incoming(self, self._incoming / secrets.token_hex(16), True)

    def path(self, digest: str) -> Path:
        """Where the bytes with this SHA-256 lie, or would lie."""
        return _place(self._objects, digest)

    def begin_upload(self) -> str:
        """Begin an upload in parts and return its id."""
        upload = secrets.token_hex(16)
        (self._uploads / upload).mkdir()
        return upload

    def receive_part(self, upload: str) -> Incoming:
        """Begin a part. Raises FileNotFoundError if there is no such upload."""
        self._upload(upload)
        return Incoming(self, self._incoming / secrets.token_hex(16), True)

    def keep_part(self, upload: str, number: int, incoming: Incoming) -> Stored:
        """Make a part durable; the last one of a number wins."""
        directory = self._upload(upload)
        stored = incoming.keep()
        target = directory / f"{number:05d}"
        target.with_suffix(".new").write_text(stored.sha256)
        target.with_suffix(".new").replace(target)
        sync_directory(str(directory))
        return stored

    def finish_upload(self, upload: str, parts: Sequence[tuple[int, str]]) -> Stored:
        """Join parts, given by number and hash in order. Raises FileNotFoundError or ValueError if they differ."""
        directory = self._upload(upload)
        kept = {int(part.name): part.read_text() for part in directory.iterdir() if part.suffix != ".new"}
        numbers = [number for number, _ in parts]
        if numbers != sorted(set(numbers)) or any(kept.get(number) != digest for number, digest in parts):
            raise ValueError("the parts are not those that were uploaded")
        whole = self.receive()
        try:
            for _, digest in parts:
                with self.path(digest).open("rb") as stream:
                    while block := stream.read(_BLOCK):
                        whole.write(block)
            return whole.keep()
        finally:
            whole.drop()

    def drop_upload(self, upload: str) -> list[str]:
        """Forget a finished upload and return the hashes of its parts, which nothing may name any more."""
        directory = self._upload(upload)
        digests = [part.read_text() for part in directory.iterdir() if part.suffix != ".new"]
        shutil.rmtree(directory)
        return digests

    def _upload(self, upload: str) -> Path:
        if not _UPLOAD.fullmatch(upload) or not (self._uploads / upload).is_dir():
            raise FileNotFoundError(f"there is no upload {upload[:40]!r}")
        return self._uploads / upload


def object_path(directory: Path, digest: str) -> Path:
    """Where a project's directory holds the bytes with this SHA-256; for other processes, which only read."""
    return _place(directory / "objects", digest)


def _place(objects: Path, digest: str) -> Path:
    if not _HEX.fullmatch(digest):
        raise ValueError("this is no SHA-256 in hex")
    return objects / digest[:2] / digest


def _digest(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
