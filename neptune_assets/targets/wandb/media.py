"""Files of a run on their way to W&B: pictures, pages, sound and film as native media, everything else as run files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Final

from neptune_assets.lake.layout import extension_of, member_paths
from neptune_assets.targets.wandb.naming import digest_of

MEDIA: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        **dict.fromkeys(("png", "jpg", "jpeg", "bmp", "gif", "webp"), ("image-file", "images")),
        **dict.fromkeys(("html", "htm"), ("html-file", "html")),
        **dict.fromkeys(("wav", "mp3", "ogg", "flac", "m4a"), ("audio-file", "audio")),
        **dict.fromkeys(("mp4", "webm"), ("video-file", "videos")),
    }
)
"""Extension -> W&B's name of the media type, and its directory."""
FOLDER: Final = "neptune"
"""Directory, below the run's files, of files that are no media."""
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]+")
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file in the run's ``files`` directory. ``step`` in micro-steps; ``member`` is its path inside a file set."""

    attribute_path: str
    attribute_type: str
    path: str
    size: int
    sha256: str
    step: int | None = None
    member: str | None = None


@dataclass(slots=True)
class Copy:
    """Bytes that were copied and have no final name yet."""

    path: Path
    size: int
    sha256: str
    extension: str


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_in(source: BinaryIO, target: Path, name: str) -> Copy:
    """Copy a stream to ``target``; the extension is that of ``name``, or guessed from the content if it has none."""
    hashed, size, head = hashlib.sha256(), 0, b""
    with target.open("xb") as file:
        while chunk := source.read(_CHUNK):
            head = head or chunk[:8192]
            hashed.update(chunk)
            size += len(chunk)
            file.write(chunk)
    return Copy(target, size, hashed.hexdigest(), extension_of(name.rpartition("/")[2]) or _guess(head))


def _guess(head: bytes) -> str:
    import filetype

    kind = filetype.guess(head) if head else None
    return str(kind.extension) if kind else ""


class FileStage:
    """Names and places files below a run's ``files`` directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._waiting: dict[str, tuple[Copy, StagedFile]] = {}
        self._count = 0
        self.staged: list[StagedFile] = []
        self.media_paths: list[str] = []

    def copy(self, source: BinaryIO, name: str) -> Copy:
        """Take a file in; :meth:`media` or :meth:`keep` gives it a name."""
        self._count += 1
        return copy_in(source, self._directory / f".incoming-{self._count}", name)

    def media(self, copy: Copy, key: str, staged: StagedFile) -> dict[str, Any] | None:
        """Place a file as media and return its JSON for the history; None if W&B has no media of its kind."""
        kind = MEDIA.get(copy.extension.lower())
        if kind is None:
            return None
        name, folder = kind
        facts: dict[str, Any] = {"_type": name, "sha256": copy.sha256, "size": copy.size}
        if name == "image-file":
            size = _picture_size(copy.path)
            if size is None:
                return None
            facts["format"] = copy.extension.lower()
            facts["width"], facts["height"] = size
        facts["path"] = self.place_media(copy, key, folder, copy.extension, staged)
        return facts

    def place_media(self, copy: Copy, key: str, folder: str, extension: str, staged: StagedFile) -> str:
        """Move a file to ``media/<folder>`` under a name made of key, step and hash; return its path."""
        stem = _UNSAFE.sub("_", key)[:80].strip(".") or "_"
        step = "" if staged.step is None else f"_{staged.step}"
        path = f"media/{folder}/{stem}_{digest_of(key)}{step}_{copy.sha256[:20]}.{extension}"
        self._move(copy, path)
        self.media_paths.append(path)
        self._done(copy, staged, path)
        return path

    def keep(self, copy: Copy, name: str, staged: StagedFile) -> None:
        """Place a file as a run file called ``name``, or nearly so; it gets its extension if the name has none."""
        if copy.extension and extension_of(name.rpartition("/")[2]).lower() != copy.extension.lower():
            name = f"{name}.{copy.extension}"
        if name in self._waiting:
            identity = f"{staged.attribute_path}\n{staged.attribute_type}\n{staged.step}\n{staged.member}"
            name = f"{name}-{digest_of(identity, 16)}"
        self._waiting[name] = (copy, staged)

    def finish(self) -> list[str]:
        """Give the run files their names, told apart where they would meet; return their paths."""
        paths = []
        for name, safe in member_paths(self._waiting).items():
            copy, staged = self._waiting[name]
            path = f"{FOLDER}/{safe}"
            self._move(copy, path)
            self._done(copy, staged, path)
            paths.append(path)
        self._waiting = {}
        return sorted(paths)

    def _move(self, copy: Copy, path: str) -> None:
        target = self._directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        copy.path.replace(target)

    def _done(self, copy: Copy, staged: StagedFile, path: str) -> None:
        self.staged.append(
            StagedFile(
                staged.attribute_path,
                staged.attribute_type,
                path,
                copy.size,
                copy.sha256,
                staged.step,
                staged.member,
            )
        )


def _picture_size(path: Path) -> tuple[int, int] | None:
    """Return width and height in pixels; None for what is no picture that can be shown."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            width, height = picture.size
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
        return None
    return int(width), int(height)
