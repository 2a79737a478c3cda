"""Artifacts: the hash over their list of files as 2.x clients compute it, and those of runs only the lake has."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from neptune_assets.errors import NeptuneAssetsError
from neptune_assets.schema import AttributeType

if TYPE_CHECKING:
    from neptune_assets.server.catalog.tables import Run
    from neptune_assets.server.series import SeriesReader

ArtifactFile = Mapping[str, Any]
"""One file as it is sent: filePath, fileHash, type, size (or None) and metadata (list of key and value)."""


def _text(value: str) -> bytes:
    return len(value).to_bytes(4, "big") + value.encode("utf-8")


def artifact_hash(files: Iterable[ArtifactFile], *, with_metadata: bool) -> str:
    """Return the hash (64 hexadecimal digits) of an artifact that holds `files`.

    `with_metadata` is how version 1 of the artifact calls hashes: times and places count too, so the same bytes
    tracked from two places differ. Version 2 leaves them out.
    """
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: str(file["filePath"])):
        digest.update(b"#" + _text(str(file["filePath"])))
        digest.update(b"#" + str(file["fileHash"]).encode("utf-8"))
        digest.update(b"#")
        if file.get("size") is not None:
            digest.update(int(file["size"]).to_bytes(8, "big"))
        digest.update(b"#")
        digest.update(_text(str(file["type"])))
        if with_metadata:
            digest.update(b"#")
            for entry in sorted(file.get("metadata") or (), key=lambda entry: str(entry["key"])):
                digest.update(b"|" + _text(str(entry["key"])) + b"|" + _text(str(entry["value"])))
    return digest.hexdigest()


def artifact_size(files: Iterable[ArtifactFile]) -> int | None:
    """Return the size of all files in bytes, or None where that of one of them is not known."""
    sizes = [file.get("size") for file in files]
    return None if any(size is None for size in sizes) else sum(int(size) for size in sizes if size is not None)


def merged(current: Iterable[ArtifactFile], added: Iterable[ArtifactFile]) -> Sequence[ArtifactFile]:
    """Return the files of an artifact after `added` were tracked into it; they replace those of the same path."""
    return list({str(file["filePath"]): file for file in (*current, *added)}.values())


_KNOWN: Final = 100_000
_MAX_BYTES: Final = 256 << 20


class LakeArtifacts:
    """Reads lists of files; remembers which hash stands for which one, since clients ask for the list by it."""

    def __init__(self, series: SeriesReader) -> None:
        self._series = series
        self._hashes: dict[tuple[int, Any, str], str] = {}
        self._places: dict[tuple[str, str], tuple[Run, str]] = {}
        self._guard = threading.Lock()

    def complete(self, run: Run, attributes: Sequence[dict[str, Any]]) -> None:
        """Write the hashes into those of the attributes that are artifacts of the lake."""
        for attribute in attributes:
            if attribute["type"] == "artifact" and not attribute["artifactProperties"]["hash"]:
                attribute["artifactProperties"]["hash"] = self.hash_of(run, attribute["name"])

    def hash_of(self, run: Run, path: str) -> str:
        """Return the hash of an artifact, computed of its files; empty if the lake has no list of them."""
        key = (run.number, run.version, path)
        with self._guard:
            known = self._hashes.get(key)
        if known is not None:
            return known
        files = self._read(run, path)
        digest = "" if files is None else artifact_hash(files, with_metadata=False)
        with self._guard:
            if len(self._hashes) >= _KNOWN:
                self._hashes.clear()
                self._places.clear()
            self._hashes[key] = digest
            self._places[(run.project, digest)] = (run, path)
        return digest

    def files(self, project_id: str, digest: str) -> list[dict[str, Any]] | None:
        """Return the files behind a hash that :meth:`hash_of` gave out; None for any other."""
        with self._guard:
            place = self._places.get((project_id, digest))
        return None if place is None or not digest else self._read(*place)

    def _read(self, run: Run, path: str) -> list[dict[str, Any]] | None:
        if run.origin != "lake":
            return None
        try:
            return read_files_list(self._series.lake_run(run), path)
        except NeptuneAssetsError:
            return None


def read_files_list(run: Any, path: str) -> list[dict[str, Any]] | None:
    """Return the files of an artifact of a lake's run; None if what the lake has is not a list of files.

    Raises LakeError if it cannot be read.
    """
    records = [record for record in run.file_records(path) if record.attribute_type == AttributeType.ARTIFACT]
    if len(records) != 1 or records[0].size > _MAX_BYTES:
        return None
    with run.open_file(records[0].path) as stream:
        content = stream.read()
    try:
        files = json.loads(content)
    except ValueError:
        return None
    if not isinstance(files, list):
        return None
    needed = {"filePath", "fileHash", "type"}
    return files if all(isinstance(file, dict) and needed <= file.keys() for file in files) else None
