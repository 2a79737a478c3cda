"""File sets: names that are allowed inside, listings, what the store keeps of each, and archives in and out."""

from __future__ import annotations

import mimetypes
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from neptune_assets.schema import AttributeType
from neptune_assets.server.neptune2.responses import BadRequestError
from neptune_assets.server.store.database import MEMBER, RESTORE, DamagedError, intact, row_of
from neptune_assets.server.store.runs import to_json

if TYPE_CHECKING:
    from neptune_assets.server.store.writing import Operations

_EXTENSIONS: Final = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/svg+xml": "svg",
    "text/html": "html",
    "application/octet-stream": "bin",
}


def mime_of_content(content: bytes) -> str | None:
    """Return what the first bytes say that the content is; None if they say nothing."""
    import filetype

    return filetype.guess_mime(content[:262]) if content else None


def mime_of_extension(extension: str) -> str:
    """Return the type of files with this extension; that of unknown bytes where there is none."""
    return mimetypes.guess_type(f"x.{extension}")[0] or "application/octet-stream"


def extension_of_mime(mime: str) -> str:
    """Return the extension for a type of content."""
    return _EXTENSIONS.get(mime) or (mimetypes.guess_extension(mime) or ".bin").lstrip(".")


def extension_of(value: Mapping[str, Any]) -> str:
    """Return the extension of a file's value: as the client gave it, else what its place ends in."""
    if isinstance(value.get("ext"), str):
        return str(value["ext"])
    name = str(value.get("path") or "").rpartition("/")[2]
    return name.rpartition(".")[2] if "." in name else ""


def download_name(attribute: str, extension: str) -> str:
    """Return the name that a file is saved under if the client is not told another: the attribute's own name."""
    name = attribute.rpartition("/")[2]
    return f"{name}.{extension}" if extension else name


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


_INTACT = intact("file_set_files", *MEMBER)


def members(connection: sqlite3.Connection, attribute: int) -> Iterator[Member]:
    """Yield the members of a file set by path."""
    query = f"SELECT path, sha256, size, modified_at, {_INTACT} FROM file_set_files WHERE attribute = ? ORDER BY path"  # noqa: S608
    for path, sha256, size, modified, is_intact in connection.execute(query, (attribute,)):
        if not is_intact:
            raise DamagedError(f"A file set names {path!r} in a row that is damaged in the store.", hint=RESTORE)
        yield Member(path, sha256, size, modified)


def member_names(connection: sqlite3.Connection, attribute: int) -> list[str]:
    """Return the paths of all members of a file set."""
    return [row[0] for row in connection.execute("SELECT path FROM file_set_files WHERE attribute = ?", (attribute,))]


def put_members(connection: sqlite3.Connection, attribute: int, new: Iterable[Member]) -> int:
    """Add members, in place of those of the same path; return by how many bytes the file set grew."""
    before = _size(connection, attribute)
    connection.executemany(
        "INSERT OR REPLACE INTO file_set_files (attribute, path, sha256, size, modified_at, checksum)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (row_of(attribute, member.path, member.sha256, member.size, member.modified) for member in new),
    )
    return _size(connection, attribute) - before


def delete_members(connection: sqlite3.Connection, attribute: int, paths: Iterable[str]) -> int:
    """Take members out of a file set; return by how many bytes it shrank."""
    before = _size(connection, attribute)
    connection.executemany(
        "DELETE FROM file_set_files WHERE attribute = ? AND path = ?", ((attribute, path) for path in paths)
    )
    return before - _size(connection, attribute)


def update_value(operations: Operations, path: str, connection: sqlite3.Connection, attribute: int) -> None:
    """Bring the attribute's value up to date: size in bytes and number of files."""
    size, files = connection.execute(
        "SELECT coalesce(sum(size), 0), count(sha256) FROM file_set_files WHERE attribute = ?", (attribute,)
    ).fetchone()
    operations.assign(path, AttributeType.FILE_SET, to_json({"size": size, "files": files}))


def _size(connection: sqlite3.Connection, attribute: int) -> int:
    row = connection.execute("SELECT coalesce(sum(size), 0) FROM file_set_files WHERE attribute = ?", (attribute,))
    return int(row.fetchone()[0])
