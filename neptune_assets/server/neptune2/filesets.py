"""Trees of files inside a file set: names that are allowed, listings, and the archives that come and go."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from neptune_assets.server.neptune2.errors import BadRequestError

_CHUNK: Final = 1 << 20
_MAX_NAME: Final = 4096


@dataclass(frozen=True, slots=True)
class Member:
    """One file or directory of a file set: `sha256` is None for a directory, `modified` is in milliseconds."""

    path: str
    sha256: str | None
    size: int
    modified: int


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of a listing: a file, or a directory with the size of all that is below it."""

    name: str
    is_directory: bool
    size: int
    modified: int


def member_path(name: str) -> str:
    """Return the path of a member as it is kept: relative, with single slashes.

    Raises BadRequestError for names that leave the file set, that are empty, or that no file system can hold.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts or "\0" in name or len(name) > _MAX_NAME:
        raise BadRequestError(f"{name!r} is not a path inside of a file set.")
    return "/".join(parts)


def listing(members: Iterable[Member], directory: str) -> list[Listed] | None:
    """Return what lies directly below `directory` ("" is the root), directories first; None if there is no such one."""
    prefix = "/".join(part for part in directory.split("/") if part not in ("", "."))
    prefix = f"{prefix}/" if prefix else ""
    found = not prefix
    files: list[Listed] = []
    directories: dict[str, tuple[int, int]] = {}
    for member in members:
        if member.path + "/" == prefix and member.sha256 is None:
            found = True
        if not member.path.startswith(prefix):
            continue
        found = True
        name, slash, _ = member.path[len(prefix) :].partition("/")
        if slash or member.sha256 is None:
            size, modified = directories.get(name, (0, 0))
            directories[name] = (size + member.size, max(modified, member.modified))
        else:
            files.append(Listed(name, False, member.size, member.modified))
    if not found:
        return None
    below = [Listed(name, True, size, modified) for name, (size, modified) in directories.items()]
    return sorted(below, key=lambda entry: entry.name) + sorted(files, key=lambda entry: entry.name)


def selected(members: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return those paths that are one of `names` or lie below one of them."""
    wanted = {"/".join(part for part in name.split("/") if part not in ("", ".")) for name in names}
    return [
        path
        for path in members
        if any(path[:end] in wanted for end in (*(i for i, letter in enumerate(path) if letter == "/"), len(path)))
    ]


def unpack(stream: BinaryIO, keep: Callable[[BinaryIO], tuple[str, int]], limit: int) -> Iterator[Member]:
    """Yield the members of a tar.gz archive; `keep` stores the bytes of each and returns their sha256 and size.

    Only files and directories are taken: links and devices are what no client of ours packs. `limit` is how many bytes
    all files may have together, so that a small archive cannot fill the disk.
    Raises BadRequestError if the archive is damaged, too large or holds a path that leaves the file set.
    """
    total = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|gz") as archive:
            for entry in archive:
                total += entry.size
                if total > limit:
                    raise BadRequestError(f"The archive holds more than {limit} bytes.")
                if entry.isdir():
                    if entry.name.strip("./"):
                        yield Member(member_path(entry.name), None, 0, int(entry.mtime * 1000))
                elif entry.isreg():
                    content = archive.extractfile(entry)
                    if content is None:  # a regular file always has content; tarfile's type says otherwise
                        raise BadRequestError(f"{entry.name!r} cannot be read out of the archive.")
                    sha256, size = keep(content)  # type: ignore[arg-type]
                    yield Member(member_path(entry.name), sha256, size, int(entry.mtime * 1000))
                else:
                    raise BadRequestError(f"{entry.name!r} in the archive is neither a file nor a directory.")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BadRequestError(f"The archive cannot be read: {error}") from error


def pack(target: BinaryIO, members: Iterable[Member], open_object: Callable[[str], BinaryIO]) -> None:
    """Write a zip of the members as the hosted service made it: an entry for the root, for each directory and file.

    Files are stored as they are: the way over the network is short here, and pictures and models do not shrink.
    """
    directories: set[str] = set()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr(zipfile.ZipInfo("/"), b"")
        for member in members:
            parts = member.path.split("/")
            own = parts if member.sha256 is None else parts[:-1]
            for depth in range(1, len(own) + 1):
                name = "/".join(own[:depth]) + "/"
                if name not in directories:
                    directories.add(name)
                    archive.writestr(zipfile.ZipInfo(name), b"")
            if member.sha256 is not None:
                with (
                    open_object(member.sha256) as source,
                    archive.open(zipfile.ZipInfo(member.path), "w", force_zip64=True) as sink,
                ):
                    while chunk := source.read(_CHUNK):
                        sink.write(chunk)


def extension(path: str) -> str:
    """Return what comes after the last dot of a file's name, or nothing."""
    return Path(path).suffix.lstrip(".")
