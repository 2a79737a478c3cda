"""Archives met while recordings are searched: they are never unpacked, but told of if recordings are in them.

Only names are read, within bounds of members and bytes. Kinds that the standard library cannot list (7z, rar, zst) and
archives that are too long or damaged may hold recordings: that is a notice, which counts if a path holds nothing else.
"""

from __future__ import annotations

import lzma
import re
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Final

from neptune_assets.sources.offline.client_log import LOG_NAME
from neptune_assets.sources.offline.recordings import Folder, Refusal

_ARCHIVE: Final = re.compile(r".+\.(zip|tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst|lz4|Z)|7z|rar)", re.IGNORECASE)
_MEMBERS: Final = 100_000
_BYTES: Final = 64 * 1024 * 1024
"""Bytes of a tar file that are looked through; they must be unpacked to find the names."""
_SECONDS: Final = 20.0
"""Time for all archives below one path of the settings: there may be thousands that hold other data."""
_NAMED: Final = 20


class Archives:
    """Archives met below one path of the settings."""

    def __init__(self) -> None:
        self._unknown: list[Path] = []
        self._until = time.monotonic() + _SECONDS

    def met(self, folder: Folder) -> Iterator[Refusal]:
        """Yield a Refusal for each archive in a folder that holds recordings, or cannot be read."""
        if ".neptune" in folder.path.parts[:-1]:  # what a recording itself keeps was uploaded by a user
            return
        for name in folder.files:
            if not _ARCHIVE.fullmatch(name):
                continue
            path = folder.path / name
            try:
                status = path.stat()
                late = time.monotonic() > self._until
                found = None if late else _holds_recordings(path, status.st_size, status.st_mtime_ns)
            except OSError as error:
                reason = error.strerror or error
                yield Refusal(path, f"{path} cannot be read: {reason}. Give this user the right to read it.")
                continue
            if found:
                message = f"{path} is an archive with recordings in it, which are not read. Unpack it."
                yield Refusal(path, message, archive=True)
            elif found is None:
                self._unknown.append(path)

    def not_looked_into(self) -> Iterator[Refusal]:
        """Yield one notice of those that may hold recordings, if there are any."""
        if self._unknown:
            named = ", ".join(map(str, self._unknown[:_NAMED]))
            more = f" and {len(self._unknown) - _NAMED:,} more" if len(self._unknown) > _NAMED else ""
            message = (
                f"Archives were met and not looked into to their end: {named}{more}. Unpack what holds recordings."
            )
            yield Refusal(self._unknown[0], message, notice=True, archive=True)


@lru_cache(maxsize=65_536)
def _holds_recordings(path: Path, size: int, modified_ns: int) -> bool | None:
    """True if the names in an archive are those of recordings, None if that cannot be told."""
    if not path.is_file():
        return None
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                return _recorded(islice(names, _MEMBERS)) or (False if len(names) <= _MEMBERS else None)
        with tarfile.open(path, "r|*") as tar:
            return _recorded(_names(tar))
    except _TooLongError:
        return None
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        ValueError,
        NotImplementedError,
    ):
        return None


class _TooLongError(Exception):
    """There is more in an archive than is looked at."""


def _names(archive: tarfile.TarFile) -> Iterator[str]:
    for number, member in enumerate(archive):
        yield member.name
        if number >= _MEMBERS or member.offset_data + member.size > _BYTES:
            raise _TooLongError


def _recorded(names: Iterator[str]) -> bool:
    return any(
        ".neptune" in (parts := name.replace("\\", "/").split("/"))
        or parts[-1] == "run_operations.sqlite3"
        or LOG_NAME.fullmatch(parts[-1]) is not None
        for name in names
    )
