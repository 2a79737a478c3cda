"""Files that recordings of neptune-client 2.x name: uploads, file sets, tracked artifacts, images in the log.

The client copies only what was uploaded from memory; of the rest the log keeps absolute paths and patterns. Only what
the log names is read. Nothing here writes. Patterns and names follow the client, which uses glob and os.path.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, Final

from neptune_assets.errors import FileGoneError, UnsafePathError
from neptune_assets.sources.files import AllowedRoots, FileSearch, Limits, composed, forbidden_root, has_magic, spelled
from neptune_assets.sources.offline.client_layout import moment_of
from neptune_assets.sources.offline.client_operations import SetChange
from neptune_assets.sources.offline.recorded_files import file_limits
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.values import printable, printable_names

LIMITS: Final = "source.offline.file_limits"

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
    """Finds what was recorded under a path: there, or beside the recording, or below the directories of settings.

    Recordings move with their folders and to other machines, so a path is also looked for by its last parts: below the
    directory that holds ``.neptune`` if two parts agree, and by name below ``search_files_in``. Of several candidates
    the one that agrees furthest is taken; a tie is refused, since a guess could be the wrong file. Only what is below
    the allowed roots is found.
    """

    def __init__(self, settings: OfflineSource) -> None:
        self.directories = [Path(directory).absolute() for directory in settings.search_files_in]
        self.limits = file_limits(settings)
        self._index: dict[str, list[str]] | None = None
        self._unfinished = ""

    def find(
        self,
        recorded: str,
        roots: AllowedRoots,
        ran_in: Path | None,
        accept: Callable[[str], bool],
        beside: Path | None = None,
    ) -> str:
        """Where what was recorded under a path is now; ``beside`` is one more directory to look in.

        Raises FileGoneError if it is nowhere, UnsafePathError if it is only where nothing may be read from.
        """
        refused: UnsafePathError | None = None
        for candidate in self.candidates(recorded, ran_in, beside):
            if accept(candidate):
                try:
                    roots.real(candidate)
                except UnsafePathError as error:
                    refused = refused or error
                    continue
                return candidate
        if refused is not None:
            raise refused
        parts = _parts(recorded)[1]
        found = [path for path in self._named(parts[-1]) if accept(path)] if parts else []
        if not found:
            raise self.gone(recorded, "it is gone")
        agreement = [_agreement(parts, Path(path).parts) for path in found]
        best = [path for path, count in zip(found, agreement, strict=True) if count == max(agreement)]
        exact = [path for path in best if os.path.basename(path) == parts[-1]]  # noqa: PTH119
        if len(best) > 1 and len(exact) != 1:
            raise self.gone(recorded, f"it is gone, and several of the name {parts[-1]!r} could be it")
        roots.real(best[0])
        return best[0] if len(best) == 1 else exact[0]

    def candidates(self, recorded: str, ran_in: Path | None, beside: Path | None = None) -> Iterator[str]:
        """Places where it may be, but for those that only a search by name finds."""
        kind, parts = _parts(recorded)
        if kind == "posix":
            yield recorded
        if not parts:
            return
        if beside is not None and parts[-1] not in {".", ".."}:
            yield str(beside / parts[-1])
        for folder in [*([] if ran_in is None else [ran_in]), *self.directories]:
            if kind == "relative":
                yield from spelled(folder, parts)
                continue
            for start in range(1, len(parts)):
                # One name alone is too little to tell a file by, unless its folder's name agrees too.
                if start < len(parts) - 1 or parts[start - 1] == folder.name:
                    yield from spelled(folder, parts[start:])
            if parts[-1] == folder.name:
                yield str(folder)

    def gone(self, recorded: str, why: str) -> FileGoneError:
        """The error for what a recording names and was not found."""
        searched = ", ".join(map(str, self.directories))
        if not searched:
            return gone(recorded, why)
        return FileGoneError(
            f"{recorded} is named by the recording, but {why}; it was looked for below {searched} too."
            f"{self._unfinished}",
            hint="Put it back where it was, or below one of these under the folders it was in.",
        )

    def _named(self, name: str) -> list[str]:
        """Files and folders of a name below ``search_files_in``, without following links to folders."""
        if self._index is None:
            self._index = self._indexed()
        return sorted(set(self._index.get(composed(name), ())))

    def _indexed(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        deadline = time.monotonic() + self.limits.seconds
        for directory in self.directories:
            if forbidden_root(os.path.realpath(directory)) is not None:
                continue
            index.setdefault(composed(directory.name), []).append(str(directory))
            for folder, folders, names in os.walk(directory):
                for found in [*folders, *names]:
                    index.setdefault(composed(found), []).append(f"{folder}{os.sep}{found}")
                if time.monotonic() > deadline:
                    self._unfinished = (
                        f" The search was ended after {self.limits.seconds:g} seconds; raise {LIMITS}.seconds."
                    )
                    return index
        return index


def not_folder(path: str) -> bool:
    """True if something is at a path that is not a directory; opening looks at what it is."""
    return os.path.exists(path) and not os.path.isdir(path)  # noqa: PTH110, PTH112


def copied_upload(upload_path: Path, name: str) -> Path:
    """The file that the client copied into ``upload_path``; raises UnsafePathError if it would be elsewhere."""
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
    if not path.exists():
        raise gone(str(path), "it is gone; the client deletes it once the server has acknowledged it")
    return path


def set_members(
    change: SetChange, ran_in: Path | None, finder: FileFinder, roots: AllowedRoots
) -> tuple[dict[str, Path], list[str]]:
    """Files that the patterns of one upload match now, by their names in the set; and messages for what is missing.

    Names are relative to the directory the client ran in if all files are below it, else to the directory the recorded
    paths have in common.
    """
    search = FileSearch(roots, finder.limits, LIMITS)
    found: dict[str, str] = {}
    for pattern in change.globs:
        try:
            found.update(_matching(pattern, ran_in, finder, roots, search))
        except (FileGoneError, UnsafePathError) as error:
            search.problem(str(error))
    if not found:
        return {}, search.problems
    if ran_in is not None and all(_moved_along(recorded, path, ran_in) for recorded, path in found.items()):
        found = {path: path for path in found.values()}
        common = str(ran_in)
    else:
        common = os.path.commonpath(found)
        if common in found and not os.path.isdir(found[common]):  # noqa: PTH112
            common = str(Path(common).parent)
    members: dict[str, Path] = {}
    walked: set[str] = set()
    for recorded, path in sorted(found.items()):
        target = os.path.relpath(recorded, common)
        if not os.path.isdir(path):  # noqa: PTH112
            members[Path(target).as_posix()] = Path(path)
            continue
        covered = os.path.dirname(path) in walked and not Path(path).is_symlink()  # noqa: PTH120
        walked.add(path)
        if not covered:
            for file in search.files(path):
                inside = os.path.normpath(Path(target, os.path.relpath(file, path)))
                members[Path(inside).as_posix()] = Path(file)
    return members, search.problems


def _moved_along(recorded: str, path: str, ran_in: Path) -> bool:
    """True if a path is below the directory the client ran in as it was when it was recorded."""
    inside = os.path.relpath(path, ran_in)
    return inside == "." or (not inside.startswith("..") and recorded.endswith(f"/{inside}"))


def _matching(
    pattern: str, ran_in: Path | None, finder: FileFinder, roots: AllowedRoots, search: FileSearch
) -> dict[str, str]:
    """What one pattern matches: recorded absolute paths, and where each is now."""
    kind, parts = _parts(pattern)
    if kind == "relative":
        if ran_in is None:
            raise UnsafePathError(
                f"The recording names the files {pattern!r}, which is not an absolute path.",
                hint="Put the recording back below the directory it was made in, as .neptune.",
            )
        pattern, parts = str(ran_in / pattern), (*ran_in.parts[1:], *parts)
    literal = next((number for number, part in enumerate(parts) if has_magic(part)), None)
    if literal is None:
        path = finder.find(pattern, roots, ran_in, os.path.exists)
        return {os.path.normpath("/" + "/".join(parts)): os.path.normpath(path)}
    folder = "/" + "/".join(parts[:literal])
    rest = parts[literal:]
    try:
        place = os.path.normpath(finder.find(folder, roots, ran_in, os.path.isdir))
    except FileGoneError:
        raise finder.gone(pattern, "no file matches it") from None
    matches = {os.path.normpath(match) for match in search.matches(place, rest)}
    if not matches and not search.problems:
        raise finder.gone(pattern, "no file matches it")
    return {os.path.normpath(f"{folder}/{os.path.relpath(match, place)}"): match for match in matches}


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


_REMOTE: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://")
"""A location in some storage; one letter and a colon is a drive of Windows."""


@dataclass(frozen=True, slots=True)
class TrackedLocation:
    """What an artifact tracks in storage elsewhere, or by the hash it was assigned; its files were never listed."""

    location: str
    destination: str | None = None
    hash: str | None = None

    def entry(self) -> dict[str, Any]:
        """Its entry in the list of the artifact's files, with null for what only the server could have added."""
        match = _REMOTE.match(self.location)
        return {
            "filePath": printable(self.destination or ""),
            "fileHash": self.hash,
            "type": match["scheme"].upper() if match else "Artifact",
            "size": None,
            "metadata": [{"key": "location", "value": printable(self.location)}] if match else [],
        }


def is_remote(location: str) -> bool:
    """True if an artifact's location is in storage elsewhere, not in files."""
    match = _REMOTE.match(location)
    return match is not None and match["scheme"].lower() != "file"


def tracked_files(
    location: str, destination: str | None, ran_in: Path | None, finder: FileFinder, roots: AllowedRoots
) -> tuple[list[TrackedFile], list[str]]:
    """Files behind one local location of an artifact: a file, or all files below a folder; and what is left out.

    Relative locations start where the client ran. Raises FileGoneError if there is nothing, UnsafePathError if it is
    where nothing may be read from.
    """
    place = os.path.expanduser(location.removeprefix("file://"))  # noqa: PTH111 - Path's raises for unknown users
    path = finder.find(place, roots, ran_in, os.path.exists)
    below = Path(destination) if destination is not None else Path()
    if not os.path.isdir(path):  # noqa: PTH112
        return [TrackedFile((below / Path(path).name).as_posix(), Path(path))], []
    search = FileSearch(roots, finder.limits, LIMITS)
    files = [TrackedFile((below / os.path.relpath(file, path)).as_posix(), Path(file)) for file in search.files(path)]
    return files, search.problems


def files_list(
    tracked: Iterable[TrackedFile], elsewhere: Iterable[TrackedLocation], roots: AllowedRoots, limits: Limits
) -> bytes:
    """The list of an artifact's files as JSON, in the words of Neptune's service.

    Sorted by name; of two files of one name the later is meant. Times of change are in UTC. What was never listed has
    an entry that names its location only.
    Raises FileGoneError if a file went away meanwhile, UnsafePathError if it is where nothing may be read from.
    """
    files = {file.name: file.path for file in tracked}
    names = printable_names(files)
    described = [_description(names[name], files[name], roots, limits) for name in sorted(files)]
    described.extend(
        item.entry() for item in sorted(elsewhere, key=lambda item: (item.destination or "", item.location))
    )
    return json.dumps(described, ensure_ascii=False).encode()


def _description(name: str, path: Path, roots: AllowedRoots, limits: Limits) -> dict[str, Any]:
    digest = hashlib.sha1(usedforsecurity=False)
    try:
        with roots.open(path, limits.bytes) as file:
            status = os.fstat(file.fileno())
            while block := file.read(1024 * 1024):
                digest.update(block)
    except OSError as error:
        raise gone(str(path), error.strerror or "it cannot be read") from error
    changed = moment_of(status.st_mtime)
    return {
        "filePath": name,
        "fileHash": digest.hexdigest(),
        "type": "Local",
        "size": status.st_size,
        "metadata": [
            {"key": "file_path", "value": printable(f"file://{path.resolve().as_posix()}")},
            *([{"key": "last_modified", "value": changed.strftime("%Y-%m-%d %H:%M:%S")}] if changed else []),
        ],
    }


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


def _parts(recorded: str) -> tuple[str, tuple[str, ...]]:
    """Whether a path is of a POSIX system, of Windows, or relative; and its parts without root or drive."""
    if recorded.startswith("/"):
        return "posix", PurePosixPath(recorded).parts[1:]
    windows = PureWindowsPath(recorded)
    if windows.is_absolute():
        return "windows", windows.parts[1:]
    return "relative", (windows if "\\" in recorded and "/" not in recorded else PurePosixPath(recorded)).parts


def _agreement(recorded: Sequence[str], candidate: Sequence[str]) -> int:
    """How many last parts of two paths are equal."""
    count = 0
    for one, other in zip(reversed(recorded), reversed(candidate), strict=False):
        if composed(one) != composed(other):
            break
        count += 1
    return count
