"""Derived files with their sha256 beside them: ``.<name>.sha256``, as coreutils' ``sha256sum --check`` reads it.

Statistics, summary tables and reports can be made again; what matters is that a changed byte in one is noticed. While
a file is replaced its note names the old content and the new one, so that a reader or a kill between finds one that
fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from neptune_assets import durable
from neptune_assets.lake.integrity import hash_stream

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

NOTE: Final = ".sha256"


@contextmanager
def replacing_hashed(local: Path, path: str, filesystem: AbstractFileSystem | None = None) -> Iterator[None]:
    """Note the sha256 of ``local`` beside ``path``, where the block puts it; ``filesystem`` None is the local disk."""
    with local.open("rb") as stream:
        _, new = hash_stream(stream)
    old = [digest for digest in _noted(path, filesystem) or [] if digest != new]
    _write(path, filesystem, [*old[-1:], new])
    yield
    _write(path, filesystem, [new])


UNKNOWN: Final = "it was written before derived files were hashed"


def difference(path: str, filesystem: AbstractFileSystem | None = None) -> str | None:
    """Return how a file is not what was noted, :data:`UNKNOWN` if nothing was, and None if it is.

    Raises FileNotFoundError if there is no such file.
    """
    with Path(path).open("rb") if filesystem is None else filesystem.open(path, "rb") as stream:
        _, found = hash_stream(stream)
    noted = _noted(path, filesystem)
    if noted is None:
        return UNKNOWN
    if found in noted:
        return None
    return f"its sha256 is {found} instead of {' or '.join(noted) or 'what ' + _note(path) + ' held'}"


def _note(path: str) -> str:
    """Return where the hash of a file is: in a hidden file, so that who reads a directory of tables passes over it."""
    directory, slash, name = path.rpartition("/")
    return f"{directory}{slash}.{name}{NOTE}"


def _noted(path: str, filesystem: AbstractFileSystem | None) -> list[str] | None:
    try:
        raw = Path(_note(path)).read_bytes() if filesystem is None else filesystem.cat_file(_note(path))
    except FileNotFoundError:
        return None
    return [line.split(b" ", 1)[0].decode("ascii", "replace") for line in raw.splitlines() if line]


def _write(path: str, filesystem: AbstractFileSystem | None, digests: list[str]) -> None:
    name = path.rpartition("/")[2]
    data = "".join(f"{digest}  {name}\n" for digest in digests).encode()
    if filesystem is None:
        durable.write(_note(path), data)
    else:
        filesystem.pipe_file(_note(path), data)
