"""Files that a source's data names: opened only below allowed directories, and only if they are regular files.

Whoever can write a recording or an export decides which paths it names. So a path is followed to where it really leads,
that place must be below a directory that the user allowed, and the file there is opened without following any further
link and without blocking: pipes, sockets and devices are refused by name. Folders are walked within limits.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cache, lru_cache
from pathlib import Path, PurePath
from typing import BinaryIO, Final

from neptune_assets.errors import UnsafePathError

FORBIDDEN: Final = ("/proc", "/sys", "/dev", "/etc")
"""Never read from, whatever settings allow: the kernel's files, devices, and the machine's own configuration."""

_KINDS: Final = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
}
_DIRECTORY: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_NOCTTY", 0)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one file set may hold: files, bytes of each, and seconds that finding them may take."""

    files: int = 1_000_000
    bytes: int = 1024**4
    seconds: float = 3_600.0


class AllowedRoots:
    """Directories below which files that input names may be read. ``setting`` is the one that allows more."""

    def __init__(self, roots: Iterable[str | os.PathLike[str]], setting: str) -> None:
        self._roots = tuple(dict.fromkeys(os.path.realpath(root) for root in roots))
        self._setting = setting

    def real(self, path: str | os.PathLike[str]) -> str:
        """Where a path really leads. Raises UnsafePathError if that is outside every root, or below FORBIDDEN."""
        try:
            real = os.path.realpath(path)
        except ValueError as error:  # a NUL, or a lone surrogate that no file name can hold
            raise UnsafePathError(
                f"{os.fspath(path)!r} is not a valid path ({error}).", hint="The data was changed and is not followed."
            ) from None
        led = "" if real == os.fspath(path) else f", which leads to {real!r},"
        forbidden = forbidden_root(real)
        if forbidden is not None:
            raise UnsafePathError(
                f"{os.fspath(path)!r}{led} is below {forbidden}, from which nothing is ever read.",
                hint="If it is really wanted, copy it to a directory listed under " + self._setting + ".",
            )
        if not any(_within(real, root) for root in self._roots):
            raise UnsafePathError(
                f"{os.fspath(path)!r}{led} is outside the directories from which files are read.",
                hint=f"If you trust this data, add {_folder_of(real)!r} to {self._setting}.",
            )
        return real

    def open(self, path: str | os.PathLike[str], max_bytes: int | None = None) -> BinaryIO:
        """Open a file below the roots; raises as :meth:`real` and :func:`open_regular` do."""
        return _open_exactly(self.real(path), max_bytes)


def forbidden_root(real: str) -> str | None:
    """The member of FORBIDDEN that a real path is at or below, or None."""
    return next((name for name, place in _forbidden() if _within(real, place)), None)


def special_kind(mode: int) -> str | None:
    """What a file is that is neither regular nor a directory ("a named pipe"), by the mode of its status, or None."""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return _KINDS.get(stat.S_IFMT(mode), "something else")


def open_regular(path: str | os.PathLike[str], max_bytes: int | None = None) -> BinaryIO:
    """Open a regular file for reading, links followed; never blocks.

    Raises OSError that names the path if it is anything else (a pipe, a device) or larger than ``max_bytes``.
    """
    try:
        return _open_exactly(os.path.realpath(path), max_bytes)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from None


def _open_exactly(real: str, max_bytes: int | None) -> BinaryIO:
    """Open a path that holds no link. A link that was put in since then makes it fail instead of leading elsewhere."""
    *folders, name = PurePath(real).parts[1:] or (".",)
    folder = os.open("/", _DIRECTORY)
    try:
        for part in folders:
            inner = os.open(part, _DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = inner
        # Opening a device may already do something: look first, and again at what was opened.
        _refuse(os.stat(name, dir_fd=folder, follow_symlinks=False), real, max_bytes)
        file = os.open(name, _FILE, dir_fd=folder)
    except OSError as error:
        if error.filename is not None and error.filename != real:
            error.filename = real
        raise
    finally:
        os.close(folder)
    try:
        _refuse(os.fstat(file), real, max_bytes)
        return os.fdopen(file, "rb")
    except BaseException:
        os.close(file)
        raise


def _refuse(status: os.stat_result, path: str, max_bytes: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", path)
    if max_bytes is not None and status.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, more than the limit of {max_bytes:,}", path)


class FileSearch:
    """Finds files below folders and by patterns, inside the allowed roots and within limits."""

    def __init__(self, roots: AllowedRoots, limits: Limits, setting: str) -> None:
        """``setting`` is where limits are raised, for messages."""
        self._problems: dict[str, None] = {}
        self._roots = roots
        self._limits = limits
        self._setting = setting
        self._deadline = time.monotonic() + limits.seconds
        self._found = 0
        self._matched = 0
        self._ended = False

    @property
    def problems(self) -> list[str]:
        """A message for everything that was found and is left out."""
        return list(self._problems)

    def problem(self, message: str) -> None:
        """Add a message, once."""
        self._problems[message] = None

    def files(self, folder: str) -> Iterator[str]:
        """Yield the regular files below a folder, and links to such; links to folders are not followed."""
        if not self._allowed(folder):
            return
        waiting = [folder]
        while waiting:
            where = waiting.pop()
            for entry in self._entries(where):
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif self._is_file(entry):
                    self._found += 1
                    if self._exceeded(self._found):
                        return
                    yield entry.path
            if self._ended:
                return

    def matches(self, folder: str, pattern: Sequence[str]) -> Iterator[str]:
        """Yield the files and folders below ``folder`` that the segments of a pattern match, as :mod:`glob` does.

        Links to folders are followed where they stay inside the roots, and not in circles.
        """
        yield from self._matches(folder, tuple(pattern), ())

    def _matches(self, folder: str, pattern: tuple[str, ...], above: tuple[tuple[int, int], ...]) -> Iterator[str]:
        if self._ended:
            return
        if not pattern:
            if os.path.lexists(folder):
                self._matched += 1
                if not self._exceeded(self._matched):
                    yield folder
            return
        head, rest = pattern[0], pattern[1:]
        if not has_magic(head):
            yield from self._matches(_join(folder, head), rest, above)
            return
        if not self._allowed(folder):
            return
        recursive = head == "**"
        if recursive:
            while rest and rest[0] == "**":
                rest = rest[1:]
            status = os.stat(folder)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in above:
                return
            above = (*above, (status.st_dev, status.st_ino))
            yield from self._matches(folder, rest, above)
        hidden = head.startswith(".")
        accepts = _compiled(composed(head))
        for entry in sorted(self._entries(folder), key=lambda found: found.name):
            if entry.name.startswith(".") and not hidden:
                continue
            if recursive and entry.is_dir():
                yield from self._matches(entry.path, pattern, above)
            elif rest if recursive else not accepts.match(composed(entry.name)):
                continue
            elif entry.is_dir() or (not rest and self._is_file(entry)):
                yield from self._matches(entry.path, rest, above)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        if time.monotonic() > self._deadline:
            self._end(f"finding files took longer than {self._limits.seconds:g} seconds", "seconds")
            return []
        try:
            with os.scandir(folder) as entries:
                return list(entries)
        except NotADirectoryError:
            return []
        except OSError as error:
            self.problem(f"{folder!r} cannot be listed: {error.strerror or error}.")
            return []

    def _allowed(self, folder: str) -> bool:
        if not os.path.isdir(folder):  # noqa: PTH112
            return False
        try:
            self._roots.real(folder)
        except UnsafePathError as error:
            self.problem(str(error))
            return False
        return True

    def _is_file(self, entry: os.DirEntry[str]) -> bool:
        """True for a regular file, and for a link that opening will look at."""
        if entry.is_file():
            return True
        if entry.is_symlink():
            return not entry.is_dir()
        kind = special_kind(entry.stat(follow_symlinks=False).st_mode)
        self.problem(f"{entry.path!r} is {kind}, not a regular file; it is left out.")
        return False

    def _exceeded(self, count: int) -> bool:
        if count > self._limits.files:
            self._end(f"there are more than {self._limits.files:,} files", "files")
        return self._ended

    def _end(self, why: str, name: str) -> None:
        if not self._ended:
            self.problem(f"The search for files was ended: {why}. Raise {self._setting}.{name} to find more.")
        self._ended = True


def has_magic(segment: str) -> bool:
    """True if a segment of a path is a pattern."""
    return any(character in segment for character in "*?[")


@lru_cache(maxsize=1_000)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))


def composed(name: str) -> str:
    """A name in Unicode normal form C: Macs and some shares store names in another form than they were given."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def spelled(folder: Path, parts: Sequence[str]) -> Iterator[str]:
    """The path below a folder, with names as they are on the disk where only their Unicode normal form differs."""
    place = str(folder)
    for part in parts:
        following = os.path.join(place, part)  # noqa: PTH118
        if not part.isascii() and part not in {".", ".."} and not os.path.lexists(following):
            try:
                names = [name for name in os.listdir(place) if composed(name) == composed(part)]  # noqa: PTH208
            except OSError:
                return
            if len(names) != 1:
                return
            following = os.path.join(place, names[0])  # noqa: PTH118
        place = following
    yield place


@cache
def _forbidden() -> tuple[tuple[str, str], ...]:
    places = dict.fromkeys((name, place) for name in FORBIDDEN for place in (name, os.path.realpath(name)))
    return tuple(places)


def _folder_of(path: str) -> str:
    return path if os.path.isdir(path) else os.path.dirname(path)  # noqa: PTH112, PTH120


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _join(folder: str, name: str) -> str:
    return f"{folder}{name}" if folder.endswith("/") else f"{folder}/{name}"
