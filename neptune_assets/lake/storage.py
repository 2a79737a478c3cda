"""One way to read and write local directories and object stores: atomic, durable, exclusive where asked.

A thin layer over fsspec. Local paths go through :mod:`neptune_assets.durable`, because only that can fsync and rename;
everything else uses the file system's own calls. Listings are never cached.
"""

from __future__ import annotations

import copy
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from neptune_assets import durable
from neptune_assets.errors import LakeError, SettingsError
from neptune_assets.settings import StorageSettings

BLOCK: Final = 1 << 20
"""Bytes read or written at once when streaming."""


class Storage:
    """A root directory, local or at an fsspec URL. Paths given to methods begin with :attr:`root`."""

    def __init__(self, root: str, settings: StorageSettings | None = None) -> None:
        settings = settings or StorageSettings()
        options: dict[str, Any] = dict(settings.options)
        for name, variable in settings.secrets_env.items():
            value = os.environ.get(variable)
            if not value:
                raise SettingsError(
                    f"Environment variable {variable}, which storage.secrets_env.{name} names, is not set.",
                    hint="Set it, or take it out of the settings.",
                )
            options[name] = value
        try:
            self.filesystem, path = url_to_fs(root, use_listings_cache=False, skip_instance_cache=True, **options)
        except (ImportError, ValueError, TypeError) as error:
            raise SettingsError(
                f"{root!r} cannot be opened as storage: {error}.",
                hint="Give a local directory or a URL whose fsspec package is installed; for s3:// run: pip install "
                '"neptune-assets[s3]"',
            ) from error
        self.local: bool = isinstance(self.filesystem, LocalFileSystem)
        self.root: str = str(Path(path).absolute()) if self.local else str(path).rstrip("/")
        self._guard: Callable[[], None] | None = None

    def guarded(self, check: Callable[[], None]) -> Storage:
        """Return this storage for a lock's holder: every change calls ``check`` first, which raises once it is lost.

        So a writer that was paused until its lock expired changes and removes nothing of who holds it now.
        """
        storage = copy.copy(self)
        storage._guard = check
        return storage

    def url(self, path: str) -> str:
        """Return ``path`` as DuckDB, Arrow or a person would write it: absolute, or with its protocol."""
        return path if self.local else str(self.filesystem.unstrip_protocol(path))

    def exists(self, path: str) -> bool:
        """True if there is a file or directory."""
        return os.path.lexists(path) if self.local else bool(self.filesystem.exists(path))

    def size(self, path: str) -> int | None:
        """Return the bytes of a file, or None if there is no such file."""
        try:
            return Path(path).stat().st_size if self.local else int(self.filesystem.info(path)["size"])
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, directory: str) -> list[str]:
        """Return the names in a directory, sorted; an empty list if there is no such directory."""
        if self.local:
            try:
                return sorted(os.listdir(directory))  # noqa: PTH208 - Path.iterdir builds an object for each name
            except (FileNotFoundError, NotADirectoryError):
                return []
        try:
            entries = self.filesystem.ls(directory, detail=False, refresh=True)
        except FileNotFoundError:
            return []
        names = {str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries if str(entry).rstrip("/") != directory}
        return sorted(name for name in names if name)

    def sizes(self, directory: str) -> dict[str, int]:
        """Return the files in a directory with their sizes, by one listing; empty if there is no such directory."""
        if self.local:
            try:
                with os.scandir(directory) as entries:
                    return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
            except (FileNotFoundError, NotADirectoryError):
                return {}
        try:
            found = self.filesystem.ls(directory, detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        return {str(e["name"]).rsplit("/", 1)[-1]: int(e["size"]) for e in found if e["type"] == "file"}

    def walk(self, directory: str) -> list[str]:
        """Return all files below a directory, with full paths; an empty list if there is none."""
        if self.local:
            return [
                os.path.join(base, name)  # noqa: PTH118 - as above
                for base, _, names in os.walk(directory)
                for name in names
            ]
        try:
            return [str(path) for path in self.filesystem.find(directory, refresh=True)]
        except FileNotFoundError:
            return []

    def walk_sizes(self, directory: str) -> dict[str, int]:
        """Return all files below a directory, by full path with their sizes; empty if there is no such directory."""
        if self.local:
            return {path: os.lstat(path).st_size for path in self.walk(directory)}
        try:
            found = self.filesystem.find(directory, detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        return {str(path): int(entry["size"]) for path, entry in found.items()}

    def read(self, path: str) -> bytes:
        """Return a whole small file. Raises FileNotFoundError."""
        return Path(path).read_bytes() if self.local else cast(bytes, self.filesystem.cat_file(path))

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading. Raises FileNotFoundError."""
        if self.local:
            return Path(path).open("rb")
        return cast(BinaryIO, self.filesystem.open(path, "rb"))

    def make_directory(self, path: str) -> None:
        """Create a directory and its parents, durably; nothing happens on object stores, which have none."""
        if self.local:
            durable.make_directory(path)

    def put(self, path: str, data: bytes) -> None:
        """Write a small file as a whole, durably, replacing any: readers see the old one or the new one."""
        self._changing()
        if self.local:
            durable.write(path, data)
        else:
            self.filesystem.pipe_file(path, data)

    def note(self, path: str, data: bytes) -> None:
        """Write a small file that a power cut may lose or tear; its directory is there."""
        self._changing()
        if self.local:
            Path(path).write_bytes(data)
        else:
            self.filesystem.pipe_file(path, data)

    def create(self, path: str, data: bytes) -> bool:
        """Write a small file as a whole only if there is none; False if there is another. Atomic against other writers.

        ``data`` must differ from that of every other call (hold a random token): an answer that got lost on its way, so
        that a second try finds what the first one wrote, is resolved by reading it back.
        """
        self._changing()
        if self.local:
            return durable.write(path, data, exclusive=True) or self.read(path) == data
        try:
            self.filesystem.pipe_file(path, data, mode="create")
        except Exception:
            try:
                found = self.read(path)
            except FileNotFoundError:
                found = None
            if found is None:
                raise
            return found == data
        return True

    def put_file(self, local: str, path: str) -> None:
        """Move a local temporary file to its final place, durably; it becomes visible as a whole."""
        self._changing()
        if self.local:
            durable.put(local, path)
            return
        self.filesystem.put_file(local, path)
        Path(local).unlink()

    def move(self, source: str, target: str) -> None:
        """Rename a file of a local disk, replacing any."""
        self._changing()
        Path(source).replace(target)

    def link(self, source: str, target: str) -> None:
        """Give a file a second name, which a power cut may undo; a copy, made by the server, where there are no links.

        If a writer that lost its lease has removed ``source`` on an object store just now, it was copied before.
        """
        self._changing()
        if not self.local:
            try:
                self.filesystem.cp_file(source, target)
            except FileNotFoundError:
                self._changing()
                if self.size(target) is None:
                    raise
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}:
                raise
            shutil.copyfile(source, target)

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens if there is none."""
        self._changing()
        try:
            if self.local:
                Path(path).unlink()
            else:
                self.filesystem.rm_file(path)
        except FileNotFoundError:
            return

    def delete_tree(self, directory: str) -> None:
        """Remove a directory with all in it; nothing happens if there is none."""
        self._changing()
        if self.local:
            try:
                shutil.rmtree(directory)
            except FileNotFoundError:
                return
        else:
            for path in self.walk(directory):
                self.delete(path)

    def prune(self, directory: str) -> None:
        """Remove the empty directories below and including a local directory."""
        if self.local:
            for base, _, _ in os.walk(directory, topdown=False):
                try:
                    Path(base).rmdir()
                except OSError as error:
                    if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}:
                        raise

    def sync(self, directory: str) -> None:
        """Make renames in a local directory survive a power cut."""
        if self.local:
            durable.sync(directory)

    def free_bytes(self) -> int | None:
        """Return the free bytes where the root is; None on object stores."""
        if not self.local:
            return None
        place = Path(self.root)
        while not place.exists() and place != place.parent:
            place = place.parent
        return shutil.disk_usage(place).free

    def _changing(self) -> None:
        if self._guard is not None:
            self._guard()


DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers that say that a disk, a quota or a file is full."""


@contextmanager
def storage_errors(storage: Storage, doing: str) -> Iterator[None]:
    """Turn an OSError, or a store that does not answer, while ``doing`` something into a LakeError with a next action.

    The message names the path and, on local disks, the free space.
    """
    try:
        yield
    except OSError as error:
        raise _lake_error(storage, doing, error) from error
    except Exception as error:
        if not type(error).__module__.startswith(_CLIENTS):
            raise
        raise _lake_error(storage, doing, error) from error


_CLIENTS: Final = ("botocore.", "aiobotocore.", "aiohttp.", "gcsfs.", "google.", "azure.")
"""Packages of object stores' clients, whose errors are not all OSErrors."""


def next_action(number: int | None) -> str:
    """Return what to do about an error of the operating system, by its number."""
    if number in DISK_FULL:
        return "Make room on that disk (or raise the file size limit) and try again; finished runs are kept."
    if number in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return "Let this user read and write there, or set the path to a place where it may, and try again."
    return "Check that the storage can be reached, read and written, then try again."


def disk_message(error: OSError) -> str:
    """Return an error of the operating system in one sentence with its path, and what to do."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}. {next_action(error.errno)}"


def _lake_error(storage: Storage, doing: str, error: Exception) -> LakeError:
    place = getattr(error, "filename", None) or storage.url(storage.root)
    number = getattr(error, "errno", None)
    space = ""
    if storage.local:
        try:
            space = f" ({(storage.free_bytes() or 0) / 1e6:,.1f} MB free)"
        except OSError as second:
            space = f" (free space unknown: {second.strerror})"
    hint = next_action(number)
    reason = getattr(error, "strerror", None) or str(error)
    result = LakeError(f"{doing} failed at {place}{space}: {reason}.", hint=hint)
    # An object store may answer the next time; a local disk does not heal by itself.
    result.transient = not storage.local and number not in {errno.EACCES, errno.EPERM}
    return result
