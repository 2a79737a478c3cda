"""References that rows of a recording hold in ``file_value.path``, and the files behind them.

A reference is ``<mark>:<kind>:<place>``. The mark tells recordings apart. Images and single files are found by the
place of their record in the log, which is read again when the file is wanted; file sets and artifacts by their path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neptune_assets.errors import FileGoneError
from neptune_assets.schema import AttributeType
from neptune_assets.sources.offline.client_files import (
    FileFinder,
    FileInMemory,
    TrackedFile,
    copied_upload,
    decode,
    delete_members,
    gone,
    image_data,
    image_extension,
    set_members,
    tracked_files,
)
from neptune_assets.sources.offline.client_layout import Execution
from neptune_assets.sources.offline.client_log import Entry
from neptune_assets.sources.offline.client_operations import SetChange, Tracked, Upload
from neptune_assets.sources.offline.recorded_files import RecordedFile
from neptune_assets.sources.protocol import SourceFile


class References:
    """Makes the references of one recording and resolves them."""

    def __init__(self, path: Path, executions: Sequence[Execution], finder: FileFinder) -> None:
        self._path = path
        self._executions = executions
        self._finder = finder
        self.mark = hashlib.blake2b(str(path).encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()

    def upload(self, upload: Upload) -> str:
        """Reference of a single file."""
        return f"{self.mark}:upload:{upload.execution}:{upload.log}:{upload.offset}"

    def collection(self, kind: AttributeType, path: str) -> str:
        """Reference of a file set or an artifact."""
        return f"{self.mark}:{kind}:{path}"

    def image(self, execution: int, entry: Entry, path: str, index: int, value: Any) -> str:
        """Reference of an image; raises ValueError if the record holds none."""
        image_extension(image_data(value))
        return f"{self.mark}:image:{execution}:{entry.log}:{entry.offset}:{index}"

    def members(self, changes: Sequence[SetChange]) -> tuple[dict[str, Path], list[str]]:
        """Files of a file set by name, and a message for everything that is missing."""
        members: dict[str, Path] = {}
        missing: list[str] = []
        for change in changes:
            found, unmatched = set_members(change, self._executions[change.execution].base, self._finder)
            members.update(found)
            delete_members(members, change.deleted)
            missing.extend(gone(pattern, "no such file is there").args[0] for pattern in unmatched)
        return members, missing

    def tracked(self, tracked: Tracked) -> tuple[list[TrackedFile], list[str]]:
        """Files an artifact tracks, and a message for everything that is missing."""
        found: list[TrackedFile] = []
        missing: list[str] = []
        for execution, location, destination in tracked.entries:
            try:
                base = self._executions[execution].base
                bases = [*([] if base is None else [base]), *self._finder.directories]
                found.extend(tracked_files(location, destination, bases))
            except FileGoneError as error:
                missing.append(str(error))
        return found, missing

    def logged_file(self, reference: str, kind: str, place: str) -> SourceFile:
        """The file of one record: an image, an upload from memory, or an upload by path."""
        parts = place.split(":")
        unknown = gone(f"The file {reference!r} of {self._path}", "its record is not there any more")
        if len(parts) != (4 if kind == "image" else 3) or not (parts[0].isdecimal() and parts[2].isdecimal()):
            raise unknown
        number = int(parts[0])
        if number >= len(self._executions):
            raise unknown
        execution = self._executions[number]
        operation = execution.log.operation(parts[1], int(parts[2])) or {}
        name = str((operation.get("path") or ["file"])[-1])
        try:
            if kind == "image" and operation.get("type") == "LogImages":
                data = image_data(operation["values"][int(parts[3])]["value"])
                return FileInMemory(_file_name(name, image_extension(data)), decode(data))
            if kind == "upload" and operation.get("type") == "UploadFileContent":
                return FileInMemory(_file_name(name, operation["ext"]), decode(operation["file_content"]))
            if kind == "upload" and operation.get("type") == "UploadFile":
                return self.on_disk(_file_name(name, operation.get("ext")), self._uploaded(execution, operation))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise gone(f"The file {name!r} of {self._path}", f"its record cannot be used ({error})") from error
        raise unknown

    def _uploaded(self, execution: Execution, operation: Mapping[str, Any]) -> Path:
        recorded, copied = operation.get("file_path"), operation.get("tmp_file_name")
        if recorded:
            return self._finder.find(str(recorded), beside=execution.uploads)
        return copied_upload(execution.uploads, str(copied or ""))

    def on_disk(self, name: str, path: Path) -> RecordedFile:
        """A file that lies at a path."""
        return RecordedFile(name, [path], None, str(self._path))


def _file_name(segment: str, extension: Any) -> str:
    """A file's name: the attribute's last segment and the extension, without anything that would lead elsewhere."""
    name = segment.replace("/", "_").replace("\0", "_")
    plain = isinstance(extension, str) and extension and not set(extension) & {"/", "\\", "\0"}
    return f"{name}.{extension}" if plain else (name if name not in {"", ".", ".."} else "file")
