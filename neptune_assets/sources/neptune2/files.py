"""Files of a run, fetched when their bytes are wanted: single files, file sets, images, lists of artifacts.

Everything is downloaded whole into a temporary file before anyone reads it, so that a download that comes short can be
made again and nobody sees half a file.
"""

from __future__ import annotations

import io
import itertools
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final, cast

from neptune_assets.errors import FileGoneError
from neptune_assets.sources.neptune2.artifacts import ArtifactStore, files_list, list_files
from neptune_assets.sources.neptune2.calls import Calls
from neptune_assets.sources.neptune2.errors import CallError, understood
from neptune_assets.sources.neptune2.references import Reference
from neptune_assets.sources.protocol import SourceFile
from neptune_assets.sources.values import text

_IN_MEMORY: Final = 1 << 20
"""Downloads up to this many bytes never touch the disk."""
_LONGEST_PAUSE: Final = 5.0
_LARGEST_IMAGE: Final = 1 << 30
"""Bytes of an image of a series, whose size the server does not tell; clients send no more than 32 MiB."""
_LARGEST_ARCHIVE: Final = 64 << 30
"""Bytes of the archive of a file set whose size the server does not tell."""
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
    """What an archive lacks of its file set: there is nothing to open, and the reason is told."""

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

        Bytes that are read at most: of an image, of a file set whose size the server does not tell, and of an archive
        beside the size that it tells.
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
