"""Files of a run as its rows name them: one file, or the members of a directory, never anything outside the root."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from neptune_assets.errors import FileGoneError, UnsafePathError
from neptune_assets.sources.export.roots import Entry, Root


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
