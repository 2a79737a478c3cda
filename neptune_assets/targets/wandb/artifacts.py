"""Neptune's file sets and artifacts as W&B artifacts: their names, their manifests, and the records that upload them.

wandb's own ``log_artifact`` copies files to a directory that ``wandb sync`` may empty when it is done. An offline run
does not say which directory, and versions of wandb differ in what they then take for copies. So the *request* to log an
artifact is written here: it names an empty directory, and staged files are no copies to anybody.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from neptune_assets.lake.layout import member_paths
from neptune_assets.schema import AttributeType
from neptune_assets.targets.wandb.media import StagedFile
from neptune_assets.targets.wandb.naming import MAX_NAME, digest_of, shorten
from neptune_assets.targets.wandb.records import json_text, protobuf

TYPES: Final[Mapping[str, str]] = {
    str(AttributeType.FILE_SET): "neptune-file-set",
    str(AttributeType.ARTIFACT): "neptune-artifact",
}
"""Attribute types that become artifacts, and W&B's type of these."""
STAGING: Final = "artifacts"
"""Empty directory of a staged run where ``wandb sync`` may write manifests."""
_ALIAS: Final = "latest"
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: ``path`` in the artifact, ``file`` below the run's ``files`` directory, and its MD5 in base 64."""

    path: str
    file: str
    md5: str
    size: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """One attribute of a run as a W&B artifact."""

    attribute_path: str
    name: str
    type: str
    entries: tuple[Entry, ...]

    @property
    def digest(self) -> str:
        """W&B's digest of the manifest: equal for equal files under equal names."""
        digest = hashlib.md5(b"wandb-artifact-manifest-v1\n", usedforsecurity=False)
        for entry in sorted(self.entries, key=lambda entry: entry.path):
            digest.update(f"{entry.path}:{entry.md5}\n".encode())
        return digest.hexdigest()


def artifact_name(wandb_run: str, path: str) -> str:
    """Return the name of a run's artifact: at most 128 characters, and different for different attributes."""
    plain = f"{wandb_run}-{_NOT_IN_NAMES.sub('_', path)}"
    return shorten(plain, MAX_NAME, source=path, always=plain != f"{wandb_run}-{path}")


def made_of(staged: Iterable[StagedFile], wandb_run: str, files: Path) -> list[Artifact]:
    """Return the artifacts that staged files belong to, by attribute; reads the files to hash them."""
    groups: dict[tuple[str, str], list[StagedFile]] = {}
    for item in staged:
        if item.attribute_type in TYPES:
            groups.setdefault((item.attribute_path, item.attribute_type), []).append(item)
    found = []
    for (path, kind), members in sorted(groups.items()):
        names = [item.member or item.path.rpartition("/")[2] for item in members]
        safe = member_paths(names)
        entries = [
            Entry(safe[name], item.path, md5_of(files / item.path), item.size)
            for name, item in zip(names, members, strict=True)
        ]
        found.append(Artifact(path, artifact_name(wandb_run, path), TYPES[kind], tuple(entries)))
    return found


def record(artifact: Artifact, *, entity: str, project: str, wandb_run: str, directory: Path) -> Any:
    """Return the request to upload the artifact of an attribute; see :func:`request`."""
    made = request(artifact, entity=entity, project=project, wandb_run=wandb_run, directory=directory)
    art = made.request.log_artifact.artifact
    art.metadata = json_text({"neptune_attribute": artifact.attribute_path})
    art.aliases.append(_ALIAS)
    return made


def request(artifact: Artifact, *, entity: str, project: str, wandb_run: str, directory: Path) -> Any:
    """Return the request to upload an artifact, which tells nothing of it but its name, type and files.

    ``wandb_run`` is the run that made it, ``directory`` where the staged run will lie when it is synced.
    """
    made = protobuf().Record()
    made.request.log_artifact.staging_dir = str(directory / STAGING)
    art = made.request.log_artifact.artifact
    art.run_id, art.entity, art.project = wandb_run, entity, project
    art.type, art.name, art.digest, art.digest_algorithm = artifact.type, artifact.name, artifact.digest, "MANIFEST_MD5"
    art.finalize = True
    # Numbers of the client's own; the same for the same content, so that a second upload is known to be one.
    art.client_id = client_id(artifact.name, artifact.digest)
    art.sequence_client_id = client_id(artifact.name)
    art.manifest.version, art.manifest.storage_policy = 1, "wandb-storage-policy-v1"
    art.manifest.storage_policy_config.add(key="storageLayout", value_json=json.dumps("V2"))
    for entry in sorted(artifact.entries, key=lambda entry: entry.path):
        art.manifest.contents.add(
            path=entry.path,
            digest=entry.md5,
            size=entry.size,
            local_path=str(directory / "files" / entry.file),
            skip_cache=True,
        )
    return made


def read(record: Any, directory: Path) -> Artifact:
    """Return the artifact of a parsed request. A file outside of ``directory`` keeps its absolute path."""
    art = record.request.log_artifact.artifact
    root = f"{directory / 'files'}/"
    entries = [
        Entry(item.path, item.local_path.removeprefix(root), item.digest, item.size) for item in art.manifest.contents
    ]
    path = str(json.loads(art.metadata)["neptune_attribute"])
    return Artifact(path, art.name, art.type, tuple(entries))


def differences(
    held: Mapping[str, Artifact], staged: Iterable[StagedFile], wandb_run: str, files: Path
) -> Iterator[str]:
    """Yield in what the artifacts of a staged run, by name, are not what its files say."""
    expected = {artifact.name: artifact for artifact in made_of(staged, wandb_run, files)}
    for name in sorted({*expected, *held}):
        if expected.get(name) != held.get(name):
            yield f"{name}: the artifact is not what was staged"


def md5_of(path: Path) -> str:
    """Return the MD5 of a file in base 64, as W&B names content; that of nothing if it is not there."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return base64.b64encode(digest.digest()).decode("ascii")


def client_id(*parts: str) -> str:
    """Return a number of the client's own for W&B, the same for the same parts."""
    return digest_of("\n".join(parts), 64) * 2
