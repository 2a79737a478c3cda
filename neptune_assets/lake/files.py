"""Bring a run's files into the lake: streamed, hashed on the way, stored under a name made of their content."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

import filetype

from neptune_assets import durable
from neptune_assets.errors import FileGoneError, LakeError, UnsafePathError
from neptune_assets.lake.integrity import hash_stream
from neptune_assets.lake.layout import Layout, extension_of, file_path, file_set_path, member_paths
from neptune_assets.lake.manifest import FileRecord, IssueRecord
from neptune_assets.lake.storage import BLOCK, Storage
from neptune_assets.schema import AttributeType, Scope
from neptune_assets.sources.protocol import Source, SourceFile
from neptune_assets.sources.values import printable
from neptune_assets.tempdirs import TempDirectory

_MANY: Final = frozenset({AttributeType.FILE_SET.value, AttributeType.ARTIFACT.value})


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What became of one file row: its path in the lake (None if nothing is there), records, and what went wrong."""

    path: str | None
    records: tuple[FileRecord, ...] = ()
    errors: tuple[IssueRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class _Hashed:
    """One file in a temporary place (None if it stays where it is)."""

    name: str
    temporary: str | None
    size: int
    sha256: str
    extension: str
    place: str | None = None
    """Where it is below the directory of files, if its source knows; rows may name it in another way."""


class FileStore:
    """Stores the files of one project; every method works on one row.

    ``placed`` is called with the path of each file that has its final name; neither it nor its bytes are durable yet.
    """

    def __init__(
        self,
        storage: Storage,
        layout: Layout,
        source: Source,
        project_id: str,
        scope: Scope,
        scratch: str | None,
        placed: Callable[[str], None],
    ) -> None:
        self._storage = storage
        self._source = source
        self._project_id = project_id
        self._scope = scope
        self._scratch = scratch
        self._placed = placed
        self._root = layout.files(project_id, scope)
        self._staging = layout.files_staging(project_id, scope)
        self.bytes = 0
        """Bytes of all files hashed so far."""
        self.count = 0
        """Files hashed so far."""
        self._directory: TempDirectory | None = None

    def store(
        self,
        run_id: str,
        attribute_path: str,
        attribute_type: str,
        step: int | None,
        reference: str,
        place: Callable[[str], str] | None,
    ) -> StoredFile:
        """Bring what a row refers to into the lake, or only hash it where it is if ``place`` is None.

        ``place`` maps the path that content has by itself to the one it is stored under.
        What cannot be read becomes an error of the run and a null path. Raises OSError if the lake cannot be written.
        """

        def issue(message: str) -> IssueRecord:
            return IssueRecord(printable(message), attribute_path, attribute_type)

        try:
            sources = list(self._source.files(self._project_id, run_id, reference, self._scope))
        except (FileGoneError, UnsafePathError) as error:
            return StoredFile(None, errors=(issue(str(error)),))
        except OSError as error:
            return StoredFile(None, errors=(issue(f"The files of {reference!r} cannot be listed: {error}."),))
        many = attribute_type in _MANY or len(sources) != 1
        base = FileRecord(attribute_path, attribute_type, path="", size=0, sha256="", step=step)
        hashed: list[_Hashed] = []
        errors: list[IssueRecord] = []
        for source in sources:
            try:
                hashed.append(self._hash(source, keep=place is not None))
            except (FileGoneError, UnsafePathError) as error:
                errors.append(issue(str(error)))
            except _UnreadableError as error:
                errors.append(issue(f"File {source.relative_path!r} of {reference!r} cannot be read: {error}."))
        if errors and not hashed:
            return StoredFile(None, errors=tuple(errors))
        if place is None:
            path, records = reference, self._records_in_place(base, reference, hashed, many)
        elif many:
            path, records = self._store_set(base, run_id, hashed, place)
        else:
            path, records = self._store_one(base, run_id, hashed[0], place)
        return StoredFile(path, tuple(records), tuple(errors))

    def _store_one(
        self, base: FileRecord, run_id: str, item: _Hashed, place: Callable[[str], str]
    ) -> tuple[str, list[FileRecord]]:
        path = place(file_path(run_id, base.attribute_path, item.sha256, item.extension, step=base.step))
        self._place(item, path)
        return path, [replace(base, path=path, size=item.size, sha256=item.sha256)]

    def _store_set(
        self, base: FileRecord, run_id: str, items: Sequence[_Hashed], place: Callable[[str], str]
    ) -> tuple[str, list[FileRecord]]:
        names = member_paths(item.name for item in items)
        content = sha256()
        for item in sorted(items, key=lambda each: each.name):
            content.update(f"{item.name!r} {item.size} {item.sha256}\n".encode())
        directory = place(file_set_path(run_id, base.attribute_path, content.hexdigest()))
        records = []
        for item in items:
            path = f"{directory}/{names[item.name]}"
            self._place(item, path)
            records.append(replace(base, path=path, size=item.size, sha256=item.sha256, member=item.name))
        if base.attribute_type == AttributeType.ARTIFACT and len(records) == 1:
            # An artifact is its list of files: the row names that file itself.
            return records[0].path, [replace(records[0], member=None)]
        if not records:
            self._storage.make_directory(f"{self._root}/{directory}")
        return directory, records

    @staticmethod
    def _records_in_place(base: FileRecord, reference: str, items: Sequence[_Hashed], many: bool) -> list[FileRecord]:
        if base.attribute_type == AttributeType.ARTIFACT and len(items) == 1:
            many = False
        return [
            replace(
                base,
                path=item.place or (f"{reference}/{item.name}" if many else reference),
                size=item.size,
                sha256=item.sha256,
                member=item.name if many else None,
            )
            for item in items
        ]

    def _hash(self, source: SourceFile, *, keep: bool) -> _Hashed:
        """Stream a file, hash it, and keep a temporary copy if asked to."""
        digest, size, head = sha256(), 0, b""
        temporary = self._temporary() if keep else None
        try:
            try:
                stream = source.open()
            except OSError as error:
                raise _UnreadableError(str(error)) from error
            with stream:
                sink: BinaryIO | None = None if temporary is None else temporary.open("xb")
                try:
                    if sink is not None:
                        _limit_rights(sink, stream)
                    while block := _next_block(stream):
                        head = head or block[:8192]
                        digest.update(block)
                        size += len(block)
                        if sink is not None:
                            sink.write(block)
                finally:
                    if sink is not None:
                        sink.close()
        except BaseException:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            raise
        self.bytes += size
        self.count += 1
        name = source.relative_path
        extension = extension_of(name.rsplit("/", 1)[-1]) or _guess(head)
        return _Hashed(
            name,
            None if temporary is None else str(temporary),
            size,
            digest.hexdigest(),
            extension,
            getattr(source, "place", None),
        )

    def _place(self, item: _Hashed, path: str) -> None:
        """Move a temporary file to its place below the files directory, unless its content is there already.

        What is there is hashed again: a file that was damaged since is replaced.
        """
        if item.temporary is None:
            raise LakeError("A file that stays in place was to be moved.", hint="Report this as a bug.")
        target = f"{self._root}/{path}"
        if self._storage.size(target) == item.size and self._is_stored(target, item.sha256):
            Path(item.temporary).unlink()
        elif self._storage.local:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(item.temporary).replace(target)
        else:
            self._storage.put_file(item.temporary, target)
        self._placed(target)

    def _is_stored(self, target: str, digest: str) -> bool:
        with self._storage.open(target) as stream:
            return hash_stream(stream)[1] == digest

    def close(self) -> None:
        """Remove the place of temporary files, where that is not the lake itself."""
        if self._directory is not None:
            self._directory.close()
            self._directory = None

    def _temporary(self) -> Path:
        if self._storage.local:
            directory = Path(self._staging)
            durable.make_directory(directory)
        else:
            self._directory = self._directory or TempDirectory("files", self._scratch)
            directory = self._directory.path
        return directory / f"neptune_assets-{uuid.uuid4().hex}.tmp"


def _limit_rights(sink: BinaryIO, stream: BinaryIO) -> None:
    """Let nobody read a copy who may not read the file it is made of. Downloads have no name and are left alone."""
    try:
        source = os.fstat(stream.fileno())
    except OSError:  # bytes that are in no file
        return
    if source.st_nlink:
        os.fchmod(sink.fileno(), 0o600 | (os.fstat(sink.fileno()).st_mode & source.st_mode & 0o666))


class _UnreadableError(Exception):
    """The source's bytes cannot be read; apart from OSError, which means that the lake cannot be written."""


def _next_block(stream: BinaryIO) -> bytes:
    try:
        return stream.read(BLOCK)
    except OSError as error:
        raise _UnreadableError(str(error)) from error


def _guess(head: bytes) -> str:
    kind = filetype.guess(head) if head else None
    return "" if kind is None else str(kind.extension)
