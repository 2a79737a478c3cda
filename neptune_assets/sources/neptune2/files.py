"""Files of a run, fetched when their bytes are needed: single files, file sets, images, artifacts.

Everything is downloaded whole into a temporary file before anyone reads it, so that a download that is cut short can be
made again and nobody sees half a file. Of artifacts the server only has the list of files, which is always kept. The
files are copied only from directories and buckets that settings name: where a file is, the server says, and a server
has no business naming any file of this machine.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast
from urllib.parse import unquote, urlsplit

from neptune_assets.errors import FileGoneError, NeptuneAssetsError, UnsafePathError
from neptune_assets.settings import StorageSettings
from neptune_assets.sources.export.roots import Root
from neptune_assets.sources.neptune2.connection import CallError, Calls, understood
from neptune_assets.sources.neptune2.values import Reference
from neptune_assets.sources.protocol import SourceFile
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
        """Where it was when it was tracked: a local path or an s3:// URL; empty if that is not known."""
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
    """A file of an artifact below a directory or bucket that settings name."""

    relative_path: str
    root: Root
    path: str
    sha1: str | None
    """What the content must hash to; None where the hash is another kind."""

    def open(self) -> BinaryIO:
        """Open for streaming. Raises FileGoneError if it is gone or no longer what was tracked."""
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


_IN_MEMORY: Final = 1 << 20
"""Downloads up to this many bytes never touch the disk."""
_LONGEST_PAUSE: Final = 5.0
_LARGEST_IMAGE: Final = 1 << 30
"""Bytes of an image of a series, whose size the server does not report; clients send no more than 32 MiB."""
_LARGEST_ARCHIVE: Final = 64 << 30
"""Bytes of the archive of a file set whose size the server does not report."""
_BESIDE: Final = 256 << 20
"""Bytes of an archive beside those of its files: names and headers of a million files."""


@dataclass(frozen=True, slots=True)
class Download:
    """A file that one call gives."""

    relative_path: str
    fetch: Callable[[BinaryIO], None]
    what: str

    def open(self) -> BinaryIO:
        """Download and open for streaming. Raises FileGoneError if the server does not give it."""
        return _temporary(self.fetch, self.what)


@dataclass(frozen=True, slots=True)
class Text:
    """A file made from an answer."""

    relative_path: str
    data: bytes

    def open(self) -> BinaryIO:
        """Open for streaming."""
        return io.BytesIO(self.data)


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a downloaded archive, which stays open as long as any of its members is held."""

    relative_path: str
    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def open(self) -> BinaryIO:
        """Open for streaming. Raises FileGoneError if the archive is damaged there."""
        try:
            return cast(BinaryIO, self.archive.open(self.info))
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise _gone(f"{self.relative_path} in a file set", str(error)) from error


@dataclass(frozen=True, slots=True)
class Missing:
    """What an archive lacks of its file set: there is nothing to open, and opening raises the reason."""

    relative_path: str
    why: str

    def open(self) -> BinaryIO:
        """Raise FileGoneError."""
        raise _gone(self.relative_path, self.why)


class Files:
    """Resolves references to files of one server."""

    def __init__(
        self,
        calls: Calls,
        artifacts: ArtifactStore,
        *,
        unpack: bool,
        patience: float,
        largest_image: int = _LARGEST_IMAGE,
        largest_archive: int = _LARGEST_ARCHIVE,
        beside: int = _BESIDE,
    ) -> None:
        """``patience`` is how many seconds the server may take to prepare the archive of a file set.

        Bytes that are read at most: of an image, of a file set whose size the server does not report, and of an archive
        beside the size that it reports.
        """
        self._calls = calls
        self._artifacts = artifacts
        self._unpack = unpack
        self._patience = patience
        self._largest_image = largest_image
        self._largest_archive = largest_archive
        self._beside = beside

    def resolve(self, reference: Reference) -> Sequence[SourceFile]:
        """The file, or the members of the file set. Raises FileGoneError if the server does not give them."""
        owner, path = reference.owner, reference.path
        if reference.kind == "file":
            return [Download(reference.name, lambda sink: self._fetch_file(reference, sink), path)]
        if reference.kind == "image":
            return [Download(reference.name, lambda sink: self._fetch_image(reference, sink), path)]
        if reference.kind == "file_set":
            return self._file_set(reference)
        try:
            files = list_files(self._calls, owner, reference.place)
        except CallError as error:
            raise _gone(f"The list of files of the artifact {path!r}", error.message) from error
        if reference.kind == "artifact":
            return [Text("files_list.json", files_list(files))]
        return self._artifacts.members(files)

    def _fetch_file(self, reference: Reference, sink: BinaryIO) -> None:
        size = reference.size if reference.size >= 0 else None
        self._calls.download("downloadAttribute", sink, size, experimentId=reference.owner, attribute=reference.path)

    def _fetch_image(self, reference: Reference, sink: BinaryIO) -> None:
        self._calls.download(
            "getImageSeriesValue",
            sink,
            most=self._largest_image,
            experimentId=reference.owner,
            attribute=reference.path,
            index=int(reference.place),
        )

    def _file_set(self, reference: Reference) -> Sequence[SourceFile]:
        what = f"the file set {reference.path!r}"
        if not self._unpack:
            return [Download(f"{reference.name}.zip", lambda sink: self._fetch_archive(reference, sink), what)]
        try:
            archive = zipfile.ZipFile(_temporary(lambda sink: self._fetch_archive(reference, sink), what))
        except zipfile.BadZipFile as error:
            raise _gone(what, f"its archive cannot be read: {error}") from error
        members = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
        for one, other in itertools.pairwise(members):
            if one.filename == other.filename:
                raise _gone(what, f"its archive holds {one.filename!r} more than once")
        found: list[SourceFile] = [Member(info.filename, archive, info) for info in members]
        size = sum(info.file_size for info in members)
        if size > self._most(reference):
            raise _gone(what, f"its archive claims {size:,} bytes, the server counts {max(0, reference.size):,}")
        if size < reference.size:
            why = f"its archive holds {size:,} of the {reference.size:,} bytes that the server counts"
            found.append(Missing(f"A part of {what}", why))
        return found

    def _fetch_archive(self, reference: Reference, sink: BinaryIO) -> None:
        """Have the server prepare the archive, wait for it, and download it."""
        with understood(f"the archive of {reference.path!r}"):
            url = self._prepared(reference)
        self._calls.download_url(url, sink, self._most(reference))

    def _most(self, reference: Reference) -> int:
        """Bytes that a file set may have, packed or not: files that compress badly grow by less than a thousandth."""
        if reference.size <= 0:
            return self._largest_archive
        return reference.size + reference.size // 1_000 + self._beside

    def _prepared(self, reference: Reference) -> str:
        answer = self._calls.json(
            "prepareForDownloadFileSetAttributeZip", experimentId=reference.owner, attribute=reference.path
        )
        deadline = time.monotonic() + self._patience
        pause = 0.05
        while not answer.get("downloadUrl"):
            if time.monotonic() > deadline:
                raise CallError(
                    f"The server did not prepare the archive of {reference.path!r} in {self._patience:.0f} s.",
                    hint="Materialize again later, or raise source.neptune2.retry_seconds.",
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            answer = {"id": answer["id"], **self._calls.json("getDownloadPrepareRequest", id=answer["id"])}
        return text(answer["downloadUrl"])


def _temporary(fetch: Callable[[BinaryIO], None], what: str) -> BinaryIO:
    sink = cast(BinaryIO, tempfile.SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115 - the reader closes it
    try:
        fetch(sink)
    except CallError as error:
        sink.close()
        raise _gone(what, error.message) from error
    except BaseException:
        sink.close()
        raise
    sink.seek(0)
    return sink


def _gone(what: str, why: str) -> FileGoneError:
    return FileGoneError(f"{what} cannot be fetched: {why}", hint="Materialize again once the server has it.")
