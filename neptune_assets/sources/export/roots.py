"""Directories of an export on any file system, opened for reading only, and the files of a run as its rows name them.

Every path that the export names goes through :meth:`Root.locate`, which refuses whatever would leave the root:
absolute paths, ``..``, and symbolic links that lead out.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from neptune_assets.errors import FileGoneError, SettingsError, SourceError, UnsafePathError
from neptune_assets.settings import StorageSettings
from neptune_assets.sources.files import open_regular, special_kind

_DRIVE: Final = re.compile(r"[A-Za-z]:/")
_STAMPS: Final = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "created")
_LEADS_OUT = "is a symbolic link that leads out of it"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or directory: its name, its path for the file system, its size, and a mark that changes with it."""

    name: str
    path: str
    size: int
    stamp: str
    is_directory: bool
    leads_out: bool = False
    """True for a symbolic link whose target is outside the root or gone; such an entry is never opened."""
    special: str | None = None
    """What it is if it is neither a regular file nor a directory: "a named pipe", "a socket", "a device"."""

    @property
    def unread(self) -> str | None:
        """Why an entry is never read, whatever its name: a sentence, or None."""
        if self.leads_out:
            return f"{self.path} is a symbolic link that leads out of the export; it is not read."
        if self.special is not None:
            return (
                f"{self.path} is {self.special}, not a regular file or a directory; it is not read. Put back what the "
                "exporter wrote there, or remove it."
            )
        return None


class Root:
    """One directory of the export. Nothing is read from outside it and nothing is ever written."""

    def __init__(self, url: str, storage: StorageSettings, setting: str) -> None:
        """Connect to the file system of ``url``; ``setting`` is the setting's name, for messages.

        Raises SettingsError if a secret is missing or no file system answers to the URL.
        """
        self.url = url
        self.setting = setting
        options: dict[str, Any] = dict(storage.options)
        for option, variable in storage.secrets_env.items():
            if variable not in os.environ:
                raise SettingsError(
                    f"The environment variable {variable} is not set, which {setting} needs for {option}.",
                    hint=f"Set {variable}, or take {option} out of storage.secrets_env.",
                )
            options[option] = os.environ[variable]
        try:
            filesystem, path = url_to_fs(
                url if "://" in url else str(Path(url).expanduser()),
                use_listings_cache=False,
                skip_instance_cache=True,
                **options,
            )
        except (ValueError, ImportError, TypeError) as error:
            raise SettingsError(
                f"{setting} {url!r} cannot be opened: {error}.",
                hint="Give a local path or a URL whose fsspec package is installed; for s3:// run: pip install "
                '"neptune-assets[s3]"',
            ) from error
        self.filesystem: fsspec.AbstractFileSystem = filesystem
        self.local = isinstance(filesystem, LocalFileSystem)
        self.base = os.path.realpath(path) if self.local else str(path).rstrip("/")
        self._forms: dict[str, dict[str, list[Entry]]] = {}

    def exists(self) -> bool:
        """Return whether the root is a directory. Raises SourceError if it cannot be reached."""
        try:
            return bool(self.filesystem.isdir(self.base))
        except Exception as error:
            raise self._unreachable(error) from error

    def locate(self, reference: str) -> str:
        """Return the file system's path of a path relative to the root, with forward slashes or Windows's.

        Raises UnsafePathError if it would leave the root.
        """
        forward = reference.replace("\\", "/")
        segments = [segment for segment in forward.split("/") if segment not in {"", "."}]
        if forward.startswith("/") or _DRIVE.match(forward):
            raise self._unsafe(reference, "is an absolute path")
        if ".." in segments or "\0" in reference:
            raise self._unsafe(reference, "holds '..' or a NUL character")
        if not segments:
            raise self._unsafe(reference, "names no file")
        # A backslash is a separator on Windows and an ordinary character elsewhere: what exists decides.
        if self.local and "\\" in reference:
            literal = f"{self.base}/{reference}"
            if os.path.lexists(literal):
                return self._contained(literal, reference)
        return self._contained(f"{self.base}/{'/'.join(segments)}", reference)

    def below(self, path: str) -> bool:
        """Return whether a local path, with every link followed, lies inside the root; always True when remote."""
        return not self.local or os.path.realpath(path).startswith(self.base.rstrip("/") + "/")

    def entries(self, relative: str = "") -> list[Entry] | None:
        """List a directory of the root in order of names; None if there is no such directory.

        Raises SourceError if it cannot be listed, UnsafePathError if it is outside the root.
        """
        path = self.locate(relative) if relative else self.base
        try:
            if self.local:
                return self._local_entries(path)
            found = self.filesystem.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:
            raise self._unreachable(error) from error
        entries = [self._remote_entry(info) for info in found if info["name"].rstrip("/") != path.rstrip("/")]
        return sorted(entries, key=lambda entry: entry.name)

    def describe(self, path: str) -> Entry | None:
        """Return the entry at a path from :meth:`locate`; None if nothing is there."""
        try:
            if self.local:
                return _local_entry(path, leads_out=False)
            return self._remote_entry(self.filesystem.info(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:
            raise self._unreachable(error) from error

    def same_name(self, relative: str) -> Entry | None:
        """Return what a path names whose letters are in another Unicode normal form on disk, as HFS+ leaves them.

        None if nothing is there under any form. Raises FileGoneError if several names are equal but for their form.
        """
        path, entry = "", None
        for segment in relative.replace("\\", "/").split("/"):
            if path not in self._forms:
                # Only the last few directories: names of a directory are asked for one after the other.
                self._forms = dict([*self._forms.items()][-8:])
                forms: dict[str, list[Entry]] = {}
                self._forms[path] = forms
                for found in self.entries(path) or []:
                    forms.setdefault(unicodedata.normalize("NFC", found.name), []).append(found)
            equal = self._forms[path].get(unicodedata.normalize("NFC", segment), [])
            exact = [found for found in equal if found.name == segment] or equal
            if len(exact) > 1:
                names = ", ".join(repr(found.name) for found in exact)
                raise FileGoneError(
                    f"{relative} could be any of {names} below {self.url}: they differ in their Unicode form only.",
                    hint="Keep the right one of them, under the name in the export.",
                )
            if not exact or exact[0].leads_out:
                return None
            entry = exact[0]
            path = f"{path}/{entry.name}".lstrip("/")
        return entry

    def walk(self, path: str) -> Iterator[tuple[str, Entry]]:
        """Yield every file below a path from :meth:`locate` with its path inside, in no particular order.

        Linked directories are not entered: each is yielded as one entry that leads out.
        """
        if self.local:
            yield from self._local_walk(path, "")
            return
        try:
            found = self.filesystem.find(path, detail=True)
        except Exception as error:
            raise self._unreachable(error) from error
        for name in sorted(found):
            inside = name[len(path.rstrip("/")) + 1 :]
            if inside and not inside.endswith("/"):
                yield inside, self._remote_entry(found[name])

    def open(self, path: str) -> BinaryIO:
        """Open a file at a path from :meth:`locate` or :class:`Entry`. Raises FileGoneError if it is not there."""
        if not self.below(path):
            raise self._unsafe(path, _LEADS_OUT)
        try:
            # What is not a regular file (a pipe, a device) is an OSError that says so; opening it could wait for ever.
            return open_regular(path) if self.local else cast(BinaryIO, self.filesystem.open(path, "rb"))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise FileGoneError(
                f"{path} is no longer in the export.", hint=f"Restore it below {self.setting} {self.url}."
            ) from error

    def address(self, path: str) -> str:
        """Return a path as others can open it: absolute if local, else a URL."""
        return path if self.local else str(self.filesystem.unstrip_protocol(path))

    def _contained(self, path: str, reference: str) -> str:
        if not self.below(path):
            raise self._unsafe(reference, _LEADS_OUT)
        return path

    def _local_entries(self, path: str) -> list[Entry]:
        with os.scandir(path) as found:
            names = sorted(item.name for item in found)
        return [_local_entry(f"{path}/{name}", leads_out=not self._inside(f"{path}/{name}")) for name in names]

    def _inside(self, path: str) -> bool:
        return not Path(path).is_symlink() or (self.below(path) and Path(path).exists())

    def _local_walk(self, path: str, inside: str) -> Iterator[tuple[str, Entry]]:
        for entry in self._local_entries(path):
            name = f"{inside}{entry.name}"
            if entry.is_directory and not Path(entry.path).is_symlink():
                yield from self._local_walk(entry.path, f"{name}/")
            elif entry.is_directory:
                yield name, Entry(entry.name, entry.path, 0, entry.stamp, is_directory=False, leads_out=True)
            else:
                yield name, entry

    @staticmethod
    def _remote_entry(info: dict[str, Any]) -> Entry:
        path = str(info["name"]).rstrip("/")
        stamp = next((f"{key}={info[key]}" for key in _STAMPS if info.get(key) is not None), "")
        return Entry(path.rsplit("/", 1)[-1], path, int(info.get("size") or 0), stamp, info["type"] == "directory")

    def _unsafe(self, reference: str, why: str) -> UnsafePathError:
        return UnsafePathError(
            f"{reference!r} {why}; only what is below {self.setting} {self.url} is read.",
            hint="Put the file where the export had it, below that directory.",
        )

    def _unreachable(self, error: Exception) -> SourceError:
        return SourceError(
            f"{self.setting} {self.url} cannot be read: {type(error).__name__}: {error}.",
            hint="Check that it is there, that it may be read, and the settings under storage.",
        )


def _local_entry(path: str, *, leads_out: bool) -> Entry:
    state = os.lstat(path) if leads_out else os.stat(path)  # noqa: PTH116 - Path.stat costs more, once a file
    is_directory = not leads_out and Path(path).is_dir()
    special = None if leads_out else special_kind(state.st_mode)
    stamp = f"mtime={state.st_mtime_ns}"
    return Entry(os.path.basename(path), path, state.st_size, stamp, is_directory, leads_out, special)  # noqa: PTH119


class ExportFile:
    """One file in the export. Implements :class:`neptune_assets.sources.protocol.SourceFile`."""

    def __init__(self, root: Root, entry: Entry, relative_path: str, place: str) -> None:
        self._root = root
        self._entry = entry
        self._relative_path = relative_path
        self.place = place
        """Path below the project's directory of files as it is on disk: Macs store other letters than rows name."""

    @property
    def relative_path(self) -> str:
        """Path inside a file set with forward slashes; for a single file, its name."""
        return self._relative_path

    @property
    def size(self) -> int:
        """Bytes, when it was listed."""
        return self._entry.size

    def open(self) -> BinaryIO:
        """Open for streaming. Raises FileGoneError if it went away, UnsafePathError if it is a link that leads out."""
        if self._entry.leads_out:
            raise UnsafePathError(
                f"{self._entry.path} is a symbolic link to a directory, or one that leads out of {self._root.url}.",
                hint="Put the file itself in its place.",
            )
        return self._root.open(self._entry.path)


def resolve_files(root: Root, directory: str, reference: str) -> Sequence[ExportFile]:
    """Return the file that ``reference`` names below ``directory`` of the root, or the members of the directory.

    Raises FileGoneError if nothing is there, UnsafePathError if it would leave the directory.
    """
    # Checked by itself first: joined to the directory, an absolute path would look harmless.
    root.locate(reference)
    path = root.locate(f"{directory}/{reference}")
    entry = root.describe(path) or root.same_name(f"{directory}/{reference}")
    if entry is None:
        raise FileGoneError(
            f"{reference} is not below {root.url}/{directory}.",
            hint="Restore the file, or export the run again; the run stays partial until then.",
        )
    place = entry.path.removeprefix(f"{root.base}/{directory}/")
    if not entry.is_directory:
        return [ExportFile(root, entry, entry.name, place)]
    members = sorted(root.walk(entry.path), key=lambda member: member[0])
    return [ExportFile(root, member, inside, f"{place}/{inside}") for inside, member in members]
