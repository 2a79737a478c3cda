"""Artifacts: lists of files that a run tracked where they lay; the server never had their bytes.

The list is always kept. The files themselves are copied only from directories and buckets that settings name: where a
file lies is what the server says, and a server has no business naming any file of this machine.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final
from urllib.parse import unquote, urlsplit

from neptune_assets.errors import FileGoneError, NeptuneAssetsError, UnsafePathError
from neptune_assets.settings import StorageSettings
from neptune_assets.sources.export.roots import Root
from neptune_assets.sources.neptune2.calls import Calls
from neptune_assets.sources.neptune2.errors import understood
from neptune_assets.sources.values import text

_VERSION: Final[Mapping[str, str]] = {"X-Neptune-Artifact-Api-Version": "2"}
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """One file of an artifact: its name there, and what the server knows of it."""

    name: str
    facts: Mapping[str, Any]
    """filePath, fileHash, type, size and metadata, as the server has them."""

    @property
    def location(self) -> str:
        """Where it lay when it was tracked: a local path or an s3:// URL; empty if that is not said."""
        metadata = {item["key"]: item["value"] for item in self.facts["metadata"]}
        found = str(metadata.get("location") or metadata.get("file_path") or "")
        if not found.startswith("file:"):
            return found
        # Clients write plain paths behind file://, where a proper URL would have special characters escaped.
        plain = found.removeprefix("file://")
        # Unlike Path.exists(), this asks for no name too long and raises nothing.
        if os.path.exists(plain):  # noqa: PTH110
            return plain
        try:
            return unquote(urlsplit(found).path)
        except ValueError:
            return plain


def list_files(calls: Calls, project_key: str, digest: str) -> list[ArtifactFile]:
    """The files of an artifact by its hash, in order of names."""
    answer = calls.json("listArtifactFiles", headers=_VERSION, projectIdentifier=project_key, hash=digest)
    with understood(f"the files of the artifact {digest!r}"):
        return sorted(_files(answer), key=lambda file: file.name)


def _files(answer: Mapping[str, Any]) -> list[ArtifactFile]:
    return [
        ArtifactFile(
            text(item["filePath"]),
            {
                "filePath": item["filePath"],
                "fileHash": item.get("fileHash"),
                "type": item.get("type"),
                "size": item.get("size"),
                "metadata": sorted(
                    ({"key": str(pair["key"]), "value": str(pair["value"])} for pair in item.get("metadata") or ()),
                    key=lambda pair: pair["key"],
                ),
            },
        )
        for item in answer.get("files") or ()
    ]


def files_list(files: Sequence[ArtifactFile]) -> bytes:
    """The list of an artifact's files as JSON."""
    facts = [file.facts for file in files]
    try:
        return json.dumps(facts, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # Halves of characters, which only escapes can hold.
        return json.dumps(facts).encode()


@dataclass(frozen=True, slots=True)
class TrackedFile:
    """A file of an artifact that lies below a directory or bucket that settings name."""

    relative_path: str
    root: Root
    path: str
    sha1: str | None
    """What the content must hash to; None where the hash is another kind."""

    def open(self) -> BinaryIO:
        """Open for streaming. Raises FileGoneError if it is gone or is not what was tracked any more."""
        if self.sha1 is not None:
            digest = hashlib.sha1(usedforsecurity=False)
            with self.root.open(self.path) as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
            if digest.hexdigest() != self.sha1:
                raise FileGoneError(
                    f"{self.path} was changed after the artifact tracked it.", hint="Put the tracked version back."
                )
        return self.root.open(self.path)


class ArtifactStore:
    """The directories and buckets from which files of artifacts may be copied."""

    def __init__(self, roots: Sequence[str], storage: StorageSettings) -> None:
        self._roots = [
            Root(root, storage if "://" in root else StorageSettings(), "source.neptune2.artifact_roots")
            for root in roots
        ]
        self.any = bool(roots)
        """True if anything may be copied."""

    def members(self, files: Sequence[ArtifactFile]) -> list[TrackedFile]:
        """The files that may be copied and are there, with the size they had."""
        return [found for found in map(self._find, files) if found is not None]

    def _find(self, file: ArtifactFile) -> TrackedFile | None:
        location = file.location
        for root in self._roots:
            base = root.url.rstrip("/") if "://" in root.url else root.base
            if not location.startswith(f"{base}/"):
                continue
            try:
                path = root.locate(location[len(base) + 1 :])
                entry = root.describe(path)
            except UnsafePathError:
                continue
            except NeptuneAssetsError:
                return None
            if entry is None or entry.is_directory or (file.facts["size"] or entry.size) != entry.size:
                continue
            sha1 = str(file.facts["fileHash"]) if file.facts["type"] == "Local" else None
            return TrackedFile(file.name, root, path, sha1)
        return None
