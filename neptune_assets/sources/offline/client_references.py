"""References that rows of a recording hold in ``file_value.path``, and the files behind them.

A reference is ``<mark>:<kind>:<place>``. The mark tells recordings apart. Images and single files are found by the
place of their record in the log, which is read again when the file is wanted; file sets and artifacts by their path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from neptune_assets.errors import FileGoneError, UnsafePathError
from neptune_assets.schema import AttributeType
from neptune_assets.sources.offline.client_files import (
    FileFinder,
    FileInMemory,
    TrackedFile,
    TrackedLocation,
    copied_upload,
    decode,
    delete_members,
    files_list,
    gone,
    image_data,
    image_extension,
    is_remote,
    not_folder,
    set_members,
    tracked_files,
)
from neptune_assets.sources.offline.client_layout import Execution
from neptune_assets.sources.offline.client_log import Entry
from neptune_assets.sources.offline.client_operations import SetChange, Tracked, Upload
from neptune_assets.sources.offline.recorded_files import RecordedFile, allowed_roots
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.protocol import SourceFile
from neptune_assets.sources.values import printable


class References:
    """Makes the references of one recording and resolves them."""

    def __init__(
        self, path: Path, executions: Sequence[Execution], finder: FileFinder, settings: OfflineSource
    ) -> None:
        self._path = path
        self._executions = executions
        self._finder = finder
        self._roots = allowed_roots([execution.folder for execution in executions], settings)
        self.mark = hashlib.blake2b(str(path).encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()

    def upload(self, upload: Upload) -> str:
        """Reference of a single file."""
        return f"{self.mark}:upload:{upload.execution}:{upload.log}:{upload.offset}"

    def collection(self, kind: AttributeType, path: str) -> str:
        """Reference of a file set or an artifact."""
        return f"{self.mark}:{kind}:{printable(path)}"

    def image(self, execution: int, entry: Entry, path: str, index: int, value: Any) -> str:
        """Reference of an image; raises ValueError if the record holds none."""
        image_extension(image_data(value))
        return f"{self.mark}:image:{execution}:{entry.log}:{entry.offset}:{index}"

    def members(self, changes: Sequence[SetChange]) -> tuple[dict[str, Path], list[str]]:
        """Files of a file set by name, and a message for everything that is missing."""
        members: dict[str, Path] = {}
        missing: list[str] = []
        for change in changes:
            execution = self._executions[change.execution]
            found, problems = set_members(change, execution.ran_in, self._finder, self._roots)
            members.update(found)
            delete_members(members, change.deleted)
            missing.extend(problems)
        return members, missing

    def tracked(self, tracked: Tracked) -> tuple[list[TrackedFile], list[TrackedLocation], list[str]]:
        """Files an artifact tracks, locations that were never listed, and a message for everything that is missing."""
        if tracked.hash is not None:
            return [], [TrackedLocation("", hash=tracked.hash)], []
        found: list[TrackedFile] = []
        elsewhere: list[TrackedLocation] = []
        missing: list[str] = []
        for number, location, destination in tracked.entries:
            if is_remote(location):
                elsewhere.append(TrackedLocation(location, destination))
                continue
            ran_in = self._executions[number].ran_in
            try:
                files, problems = tracked_files(location, destination, ran_in, self._finder, self._roots)
            except (FileGoneError, UnsafePathError) as error:
                missing.append(str(error))
                continue
            found.extend(files)
            missing.extend(problems)
        return found, elsewhere, missing

    def files_list(self, tracked: Tracked) -> bytes:
        """The list of what an artifact tracks; raises as :func:`~.client_files.files_list` does."""
        found, elsewhere, _ = self.tracked(tracked)
        return files_list(found, elsewhere, self._roots, self._finder.limits)

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
            return self._found(str(recorded), execution)
        return copied_upload(execution.uploads, str(copied or ""))

    def _found(self, recorded: str, execution: Execution) -> Path:
        if not Path(recorded).is_absolute() and not PureWindowsPath(recorded).is_absolute():
            raise UnsafePathError(
                f"The recording names the file {recorded!r}, which is not an absolute path.",
                hint="The client writes absolute paths only; the recording was changed and is not followed.",
            )
        return Path(self._finder.find(recorded, self._roots, execution.ran_in, not_folder, beside=execution.uploads))

    def on_disk(self, name: str, path: Path) -> RecordedFile:
        """A file at a path."""
        return RecordedFile(name, [path], None, str(self._path), self._roots, self._finder.limits.bytes)


def _file_name(segment: str, extension: Any) -> str:
    """A file's name: the attribute's last segment and the extension, without anything that would lead elsewhere."""
    name = printable(segment).replace("/", "_").replace("\0", "_")
    plain = isinstance(extension, str) and extension and not set(extension) & {"/", "\\", "\0"}
    return f"{name}.{extension}" if plain else (name if name not in {"", ".", ".."} else "file")
