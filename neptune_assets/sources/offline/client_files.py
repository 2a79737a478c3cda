"""Files that recordings of neptune-client 2.x name: uploads, file sets, tracked artifacts, images in the log.

The client copies only what was uploaded from memory; of the rest the log keeps absolute paths and patterns. Only what
the log names is read. Nothing here writes. Patterns and names follow the client, which uses glob and os.path.
"""

from __future__ import annotations

import base64
import binascii
import glob
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

from neptune_assets.errors import FileGoneError, UnsafePathError
from neptune_assets.sources.offline.client_operations import SetChange

_SIGNATURES: Final = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpg"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)
"""How images begin."""


@dataclass(frozen=True, slots=True)
class FileInMemory:
    """A file whose bytes came out of the log or were made from it."""

    relative_path: str
    data: bytes

    def open(self) -> BinaryIO:
        """Open for streaming."""
        return io.BytesIO(self.data)


def gone(path: str, why: str) -> FileGoneError:
    """The error for a file that a recording names and nobody has."""
    return FileGoneError(
        f"{path} is named by the recording, but {why}.",
        hint="Put it back, or add a directory that holds it to source.offline.search_files_in.",
    )


class FileFinder:
    """Finds files at the path that was recorded or, if that is gone, by name below other directories.

    Of several files with the name, the one whose folders agree with the recorded path furthest is taken; a tie is
    refused, since a guess could be the wrong file.
    """

    def __init__(self, directories: Sequence[str]) -> None:
        self._directories = tuple(directories)
        self._index: dict[str, list[str]] | None = None

    @property
    def directories(self) -> list[Path]:
        """The directories that are searched, as absolute paths."""
        return [Path(directory).absolute() for directory in self._directories]

    def find(self, recorded: str, beside: Path | None = None) -> Path:
        """Where the file recorded under an absolute path is now; ``beside`` is one more directory to look in.

        Raises FileGoneError if it is nowhere, UnsafePathError if the path is not absolute.
        """
        posix = Path(recorded).is_absolute()
        if not posix and not PureWindowsPath(recorded).is_absolute():
            raise UnsafePathError(
                f"The recording names the file {recorded!r}, which is no absolute path.",
                hint="The client writes absolute paths only; the recording was changed and is not followed.",
            )
        if "\0" not in recorded and Path(recorded).is_file():
            return Path(recorded)
        parts = (PurePosixPath if posix else PureWindowsPath)(recorded).parts
        name = parts[-1]
        if beside is not None and name not in {".", ".."} and (beside / name).is_file():
            return beside / name
        candidates = self._named(name)
        if not candidates:
            raise gone(recorded, "it is gone")
        agreement = [_agreement(parts, Path(candidate).parts) for candidate in candidates]
        best = max(agreement)
        if agreement.count(best) > 1:
            raise gone(recorded, f"it is gone, and several files named {name!r} could be it")
        return Path(candidates[agreement.index(best)])

    def _named(self, name: str) -> list[str]:
        if self._index is None:
            self._index = {}
            for directory in self._directories:
                for folder, _, names in os.walk(directory):
                    for found in names:
                        self._index.setdefault(found, []).append(f"{folder}{os.sep}{found}")
        return sorted(set(self._index.get(name, ())))


def copied_upload(upload_path: Path, name: str) -> Path:
    """The file that the client copied into ``upload_path``; raises UnsafePathError if it would lie elsewhere."""
    path = upload_path / name
    if not name or name in {".", ".."} or "/" in name or "\0" in name or os.sep in name:
        inside = False
    else:
        inside = path.resolve().parent == upload_path.resolve()
    if not inside:
        raise UnsafePathError(
            f"The recording in {upload_path.parent} names the upload {name!r}, which would leave {upload_path.name}.",
            hint="The client writes plain names only; the recording was changed and is not followed.",
        )
    if not path.is_file():
        raise gone(str(path), "it is gone; the client deletes it once the server has acknowledged it")
    return path


def set_members(change: SetChange, base: Path | None, finder: FileFinder) -> tuple[dict[str, Path], list[str]]:
    """Files that the patterns of one upload match now, by their names in the set; and patterns that match nothing.

    Names are relative to ``base`` (the directory the client ran in) if all files lie below it, else to the directory
    the files have in common.
    """
    found: dict[str, Path] = {}
    missing: list[str] = []
    for pattern in change.globs:
        matches = {_absolute(match) for match in glob.iglob(pattern, recursive=True)}  # noqa: PTH207
        found.update((match, Path(match)) for match in matches)
        if not matches:
            try:
                if glob.has_magic(pattern):
                    raise gone(pattern, "no file matches it")
                found[_absolute(pattern)] = finder.find(pattern)
            except (FileGoneError, UnsafePathError):
                missing.append(pattern)
    if not found:
        return {}, missing
    common = os.path.commonpath(found)
    if common in found and not found[common].is_dir():
        common = str(Path(common).parent)
    if base is not None and Path(common).is_relative_to(base):
        common = str(base)
    members: dict[str, Path] = {}
    for recorded, path in sorted(found.items()):
        target = os.path.relpath(recorded, common)
        if not path.is_dir():
            members[Path(target).as_posix()] = path
            continue
        for folder, _, names in os.walk(path):
            inside = Path(target, os.path.relpath(folder, path))
            members.update((Path(os.path.normpath(inside / name)).as_posix(), Path(folder, name)) for name in names)
    return members, missing


def _absolute(path: str) -> str:
    # Not Path.resolve(): links keep their names, as in the client.
    return os.path.normpath(Path(path).absolute())


def delete_members(members: dict[str, Path], deleted: Iterable[str]) -> None:
    """Take files, or everything below folders, out of a file set."""
    for name in deleted:
        plain = name.strip("/")
        for member in [member for member in members if member == plain or member.startswith(plain + "/")]:
            del members[member]


@dataclass(frozen=True, slots=True)
class TrackedFile:
    """A local file that an artifact tracks: its name in the artifact and its place."""

    name: str
    path: Path


def tracked_files(location: str, destination: str | None, bases: Sequence[Path]) -> list[TrackedFile]:
    """Files behind one location of an artifact: a file, or all files below a folder.

    Relative locations start at the first of ``bases`` that has them. Raises FileGoneError if there is nothing, or if
    it is not on this machine.
    """
    scheme = urlsplit(location).scheme
    if scheme not in {"", "file"}:
        raise FileGoneError(
            f"{location} is tracked in {scheme} storage; a recording holds no list of its files.",
            hint="The location itself is all that was recorded.",
        )
    place = Path(location.removeprefix("file://")).expanduser()
    if not place.is_absolute():
        place = next((base / place for base in bases if (base / place).exists()), place)
        if not place.is_absolute():
            raise gone(location, "it is not in the directory that holds .neptune")
    folder = place.is_dir()
    if not folder and not place.is_file():
        raise gone(str(place), "it is gone")
    below = Path(destination) if destination is not None else Path()
    if not folder:
        return [TrackedFile((below / place.name).as_posix(), place)]
    return [TrackedFile((below / path.relative_to(place)).as_posix(), path) for path in _files_below(place)]


def files_list(tracked: Iterable[TrackedFile]) -> bytes:
    """The list of an artifact's files as JSON, in the words of Neptune's service.

    Sorted by name; of two files of one name the later is meant. Times of change are in UTC.
    Raises FileGoneError if a file went away meanwhile.
    """
    files = {file.name: file.path for file in tracked}
    return json.dumps([_description(name, files[name]) for name in sorted(files)], ensure_ascii=False).encode()


def _description(name: str, path: Path) -> dict[str, Any]:
    digest = hashlib.sha1(usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while block := file.read(1024 * 1024):
                digest.update(block)
        status = path.stat()
    except OSError as error:
        raise gone(str(path), error.strerror or "it cannot be read") from error
    changed = datetime.fromtimestamp(status.st_mtime, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return {
        "filePath": name,
        "fileHash": digest.hexdigest(),
        "type": "Local",
        "size": status.st_size,
        "metadata": [
            {"key": "file_path", "value": f"file://{path.resolve().as_posix()}"},
            {"key": "last_modified", "value": changed},
        ],
    }


def _files_below(folder: Path) -> Iterator[Path]:
    for where, _, names in os.walk(folder):
        for name in names:
            path = Path(where, name)
            if path.is_file():
                yield path


def image_data(value: Any) -> str:
    """The base64 text of a logged image, in either form the client wrote; raises ValueError if there is none."""
    data = value.get("data") if isinstance(value, dict) else value
    if not isinstance(data, str) or not data:
        raise ValueError("the client recorded no bytes for this image (it drops images that are too large)")
    return data


def image_extension(data: str) -> str:
    """File extension of a base64 image, from how it begins; ``bin`` if that says nothing."""
    head = decode(data[:64])
    for signature, extension in _SIGNATURES:
        if head.startswith(signature):
            return extension
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return "svg" if head.lstrip().startswith((b"<svg", b"<?xml")) else "bin"


def decode(data: str) -> bytes:
    """Bytes of a base64 text; raises ValueError if it is none."""
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"it is no base64 ({error})") from error


def _agreement(recorded: Sequence[str], candidate: Sequence[str]) -> int:
    """How many last parts of two paths are equal."""
    count = 0
    for one, other in zip(reversed(recorded), reversed(candidate), strict=False):
        if one != other:
            break
        count += 1
    return count
