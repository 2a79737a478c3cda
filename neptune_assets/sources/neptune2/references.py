"""What rows hold in ``file_value.path``: which file of which run, as JSON that nothing else is mistaken for."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from typing import Literal, cast, get_args

from neptune_assets.errors import FileGoneError

FileKind = Literal["file", "file_set", "image", "artifact", "artifact_files"]


@dataclass(frozen=True, slots=True)
class Reference:
    """One file, file set, image or artifact.

    ``owner`` is the server's key of the run, or of the project for artifacts; ``place`` is the image's place in its
    series or the artifact's hash; ``extension`` is without a dot; ``size`` is in bytes, -1 where it is not known.
    """

    kind: FileKind
    owner: str
    path: str
    place: str = ""
    extension: str = ""
    size: int = -1

    def __str__(self) -> str:
        return json.dumps(astuple(self), ensure_ascii=False)

    @property
    def name(self) -> str:
        """A name for the file: the last part of the attribute's path, with the extension."""
        last = self.path.rsplit("/", 1)[-1].replace("\0", "_")
        extension = self.extension if not set(self.extension) & {"/", "\\", "\0"} else ""
        name = f"{last}.{extension}" if extension else last
        return name if name not in {"", ".", ".."} else "file"


def parse_reference(reference: str) -> Reference:
    """Read a reference back. Raises FileGoneError for what is none."""
    try:
        parts = json.loads(reference)
        kind, owner, path, place, extension, size = parts
    except (ValueError, TypeError):
        raise _unknown(reference) from None
    texts = (kind, owner, path, place, extension)
    if kind not in get_args(FileKind) or not all(isinstance(text, str) for text in texts) or type(size) is not int:
        raise _unknown(reference)
    return Reference(cast(FileKind, kind), owner, path, place, extension, size)


def _unknown(reference: str) -> FileGoneError:
    return FileGoneError(f"{reference!r:.200} is no file of this source.", hint="Use a reference from a row of a run.")
