"""Files of a run in the store: bytes by their hash, named as the client named them."""

from __future__ import annotations

import mimetypes
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

from neptune_assets.errors import FileGoneError
from neptune_assets.lake.integrity import CheckedFile
from neptune_assets.lake.layout import extension_of


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One object of the store. Implements :class:`neptune_assets.sources.protocol.SourceFile`."""

    relative_path: str
    path: Path

    def open(self) -> BinaryIO:
        """Open the object. Raises FileGoneError if it is not in the store, or while it is read if it is damaged."""

        def damaged(what: str) -> FileGoneError:
            return FileGoneError(
                f"The bytes of {self.relative_path!r} in the store are damaged: {what}.",
                hint="Restore the store's objects from a backup, or upload the file again.",
            )

        try:
            # Objects are named by the hash of their bytes.
            size, stream = self.path.stat().st_size, self.path.open("rb")
            return cast(BinaryIO, CheckedFile(stream, size, self.path.name, damaged))
        except OSError as error:
            raise FileGoneError(
                f"The bytes of {self.relative_path!r} are not in the store: {error}.",
                hint="Put the store's objects back from a copy; nothing of ours ever deletes them.",
            ) from error


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file made of what the database holds. Implements :class:`neptune_assets.sources.protocol.SourceFile`."""

    relative_path: str
    content: bytes

    def open(self) -> BinaryIO:
        """Open the content."""
        return BytesIO(self.content)


def file_name(key: str, mime_type: str) -> str:
    """Return the name of a file: the last part of its key, with the extension of its type if it has none."""
    name = key.rsplit("/", 1)[-1] or "file"
    if extension_of(name) or mime_type == "application/octet-stream":
        return name
    return name + (mimetypes.guess_extension(mime_type) or "")
