"""The hash by which an artifact is known: over its files, sorted by path, with or without their metadata.

Clients compute it for a new artifact and the server for one that grows, so both must agree to the byte. Lengths are
counted in characters and written as four bytes, sizes as eight, both big-endian.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
