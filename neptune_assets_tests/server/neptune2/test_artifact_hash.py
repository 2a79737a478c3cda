from __future__ import annotations

from typing import Any

import pytest

from neptune_assets.server.neptune2.artifacts import artifact_hash, artifact_size, merged


def file(path: str, digest: str = "ab" * 20, size: int | None = 3, **metadata: str) -> dict[str, Any]:
    entries = [{"key": key, "value": value} for key, value in metadata.items()]
    return {"filePath": path, "fileHash": digest, "type": "Local", "size": size, "metadata": entries}


FILES = [
    file("b/x.txt", size=2**40, last_modified="2024-01-01", file_path="file:///somewhere/é.txt"),
    file("a.txt", "cd" * 20, None),
    file("ünïcode/日本.bin", "ef" * 20, 0, z="1", a="2"),
]


@pytest.mark.parametrize("files", [[], FILES[:1], FILES, FILES[::-1]])
def test_hashes_are_those_of_the_client(files: list[dict[str, Any]]) -> None:
    from neptune.internal.artifacts.file_hasher import FileHasher
    from neptune.internal.artifacts.types import ArtifactFileData

    theirs = [
        ArtifactFileData(
            entry["filePath"],
            entry["fileHash"],
            entry["type"],
            {pair["key"]: pair["value"] for pair in entry["metadata"]},
            entry["size"],
        )
        for entry in files
    ]
    assert artifact_hash(files, with_metadata=True) == FileHasher.get_artifact_hash(theirs)
    assert artifact_hash(files, with_metadata=False) == FileHasher.get_artifact_hash_without_metadata(theirs)


def test_only_the_first_version_looks_at_metadata() -> None:
    here, there = [file("a", file_path="file:///1")], [file("a", file_path="file:///2")]
    assert artifact_hash(here, with_metadata=False) == artifact_hash(there, with_metadata=False)
    assert artifact_hash(here, with_metadata=True) != artifact_hash(there, with_metadata=True)


def test_size_is_unknown_where_one_is() -> None:
    assert artifact_size(FILES) is None
    assert artifact_size([FILES[0], FILES[2]]) == 2**40
    assert artifact_size([]) == 0


def test_a_file_tracked_again_replaces_the_old_one() -> None:
    files = merged([file("a", "old"), file("b", "kept")], [file("a", "new"), file("c", "more")])
    assert {entry["filePath"]: entry["fileHash"] for entry in files} == {"a": "new", "b": "kept", "c": "more"}
