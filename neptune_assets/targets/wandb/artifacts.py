"""W&B artifacts: what Neptune's file sets, artifacts and model versions become, and the records that upload them.

wandb's own ``log_artifact`` copies files to a directory that ``wandb sync`` may empty when it is done. An offline run
does not say which directory, and versions of wandb differ in what they then take for copies. So the *request* to log an
artifact is written here: it names an empty directory, and staged files are of no use to anybody else.

W&B tells versions of a model apart by the digest of their files. One file of ours therefore says which version it is,
so that two versions with the same files stay two, and one whose stage or fields change stays the one it is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from neptune_assets.lake.layout import extension_of, format_step, member_paths
from neptune_assets.lake.reader import LakeRun
from neptune_assets.schema import PARAMETER_TYPES, VALUE_COLUMN, AttributeType
from neptune_assets.targets.columns import plain, typed_rows
from neptune_assets.targets.rules import wanted_name
from neptune_assets.targets.times import whole_milliseconds
from neptune_assets.targets.wandb.codec import MAX_EXACT, json_text, protobuf
from neptune_assets.targets.wandb.files import FOLDER, StagedFile
from neptune_assets.targets.wandb.mapping import MAX_NAME, digest_of, distinct, json_value, shorten

TYPES: Final[Mapping[str, str]] = {
    str(AttributeType.FILE_SET): "neptune-file-set",
    str(AttributeType.ARTIFACT): "neptune-artifact",
}
"""Attribute types that become artifacts, and W&B's type of these."""
STAGING: Final = "artifacts"
"""Empty directory of a staged run where ``wandb sync`` may write manifests."""
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
    art.aliases.append("latest")
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


TYPE: Final = "model"
"""W&B's type of collections of models."""
VERSION: Final = "neptune_version"
PROJECT: Final = "neptune_project"
STAGE: Final = "neptune_stage"
TAGS: Final = "neptune_tags"
"""Tags that a load gave to a version, so that a later one knows which of them are ours to take away."""
DIGEST: Final = "neptune_digest"
"""Key of the metadata that is written last: the version is as it must be."""
IDENTITY: Final = "neptune_assets/version.json"
"""The file, of the run and of the version, that says which version it is."""
MAX_TEXT: Final = 5_000
MAX_METADATA: Final = 500_000
"""Characters of all fields in the metadata together, as a bound of ours: W&B states none."""

_PLAIN: Final = re.compile(r"[A-Z0-9_.-]+")
_ALIAS: Final = re.compile(r"(?!(?:[vV]\d+|(?i:latest|none))$)[A-Za-z0-9_.\-]{1,128}")
_TAG: Final = re.compile(r"[-\w]+( +[-\w]+)*", re.ASCII)
_FILES: Final = frozenset(
    {AttributeType.FILE, AttributeType.FILE_SERIES, AttributeType.FILE_SET, AttributeType.ARTIFACT}
)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model version as W&B must hold it, its files left out."""

    collection: str
    project_id: str
    version_id: str
    creator: str
    """W&B id of the run that made it."""
    stage: str | None
    """Alias for its stage; of all versions in it the last one has it."""
    tags: tuple[str, ...]
    description: str
    metadata: Mapping[str, Any]
    settled: bool = False
    """True if a load gives it its aliases once it is logged: logging takes an alias away from whoever has it."""

    @property
    def aliases(self) -> tuple[str, ...]:
        """Aliases that it is logged with, in their order; a later version may take those of stages away."""
        wanted = ("latest", *(() if self.settled else (self.stage, alias_of(self.version_id))))
        return tuple(dict.fromkeys(alias for alias in wanted if alias is not None))

    @property
    def identity(self) -> bytes:
        """Content of :data:`IDENTITY`."""
        return json_text({"project_id": self.project_id, "version_id": self.version_id}).encode()


def collection_name(model_id: str) -> str:
    """Return the collection of a model: its id where that is one of Neptune's own, else with a digest."""
    clean = _NOT_IN_NAMES.sub("_", model_id)
    # Whether W&B folds case is not known, so names in small letters are told apart too.
    return shorten(clean, MAX_NAME, source=model_id, always=_PLAIN.fullmatch(model_id) is None)


def registry_name(project: str, collection: str) -> str:
    """Return what a collection is called in a registry, where those of other projects are too."""
    text = f"{project}-{collection}"
    clean = _NOT_IN_NAMES.sub("_", text)
    return shorten(clean, MAX_NAME, source=text, always=clean != text)


def alias_of(text: str | None) -> str | None:
    """Return a text as an alias; None for what W&B keeps for itself or does not take, and for the stage ``none``."""
    return text if text is not None and _ALIAS.fullmatch(text) else None


def parameters_of(run: LakeRun) -> dict[tuple[str, str], Any]:
    """Return all parameters of a model or version that have a value, by path and type."""
    found: dict[tuple[str, str], Any] = {}
    for kind, rows in typed_rows(run, PARAMETER_TYPES):
        paths, values = plain(rows.column("attribute_path")), whole_milliseconds(plain(rows.column(VALUE_COLUMN[kind])))
        for path, value in zip(paths.to_pylist(), values.to_pylist(), strict=True):
            if value is not None:
                found[path, str(kind)] = value
    return found


def model_of(version_id: str, values: Mapping[tuple[str, str], Any]) -> str:
    """Return the id of the model that a version belongs to."""
    named = values.get(("sys/model_id", str(AttributeType.STRING)))
    return str(named or version_id.rpartition("-")[0] or version_id)


def entry_of(
    run: LakeRun, project_id: str, own_run: str, neptune_run: str | None, linked: str, *, settled: bool
) -> ModelEntry:
    """Return what W&B must hold of a model version.

    ``own_run`` is the W&B run that holds everything of it, ``linked`` the one of ``neptune_run``, "" if not loaded.
    """
    values = parameters_of(run)
    sys = {path: value for (path, _), value in values.items() if path.startswith("sys/")}
    model_id, stage = model_of(run.run_id, values), sys.get("sys/stage")
    facts: dict[str, Any] = {
        PROJECT: project_id,
        "neptune_model": model_id,
        VERSION: run.run_id,
        STAGE: None if stage is None else _text(str(stage)),
        "neptune_run": neptune_run,
        "wandb_run": own_run,
        "wandb_run_of_origin": linked or None,
    }
    fields, left_out = _fields(run, values)
    if left_out:
        facts["neptune_fields_only_in_run"] = left_out
    tags = tuple(sorted({tag for tag in sys.get("sys/tags") or () if len(tag) <= MAX_NAME and _TAG.fullmatch(tag)}))
    facts[TAGS] = list(tags) or None
    return ModelEntry(
        collection=collection_name(model_id),
        project_id=project_id,
        version_id=run.run_id,
        creator=linked or own_run,
        stage=alias_of(None if stage is None else str(stage)),
        tags=tags,
        description=_text(str(sys.get("sys/description") or "")),
        metadata={**{key: value for key, value in facts.items() if value is not None}, "fields": fields},
        settled=settled,
    )


def _fields(run: LakeRun, values: Mapping[tuple[str, str], Any]) -> tuple[dict[str, Any], int]:
    """Return parameters as metadata, and how many there was no room for. The run behind a version has them exactly."""
    wanted, paths = wanted_name(run), Counter(path for path, _ in values)
    names = distinct(
        {item: (wanted(item[0]), item[0] if paths[item[0]] == 1 else "\n".join(item)) for item in sorted(values)},
        limit=1 << 30,
        reserved={""},
    )
    fields: dict[str, Any] = {}
    size = left_out = 0
    for item, name in sorted(names.items()):
        kept = _metadata_value(item[1], values[item])
        size += len(name) + len(json_text(kept))
        if size > MAX_METADATA:
            left_out += 1
        else:
            fields[name] = kept
    return fields, left_out


def _metadata_value(kind: str, value: Any) -> Any:
    kept, _ = json_value(kind, value)
    if isinstance(kept, str):
        return _text(kept)
    if kind == AttributeType.STRING_SET:
        return [_text(item) for item in sorted(kept)]
    return str(kept) if kind == AttributeType.INT and abs(kept) > MAX_EXACT else kept


def _text(text: str) -> str:
    text = text.replace("\x00", "\ufffd")
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def artifact_of(entry: ModelEntry, staged: Iterable[StagedFile], files: Path) -> Artifact:
    """Return the version's files, ours among them, below names made of their attributes; reads them to hash them."""
    names: dict[str, StagedFile] = {}
    for item in sorted(staged, key=lambda item: (item.path, item.attribute_path, item.attribute_type)):
        if item.attribute_type in _FILES:
            name = _name(item)
            names[name if name not in names and name != IDENTITY else f"{name}-{digest_of(item.path, 16)}"] = item
    # Ours is among the names that are told apart, so that no file can take its place.
    safe = member_paths([*names, IDENTITY])
    entries = [Entry(safe[name], item.path, md5_of(files / item.path), item.size) for name, item in names.items()]
    entries.append(Entry(safe[IDENTITY], IDENTITY, md5_of(files / IDENTITY), len(entry.identity)))
    return Artifact("", entry.collection, TYPE, tuple(entries))


def _name(item: StagedFile) -> str:
    if item.path.startswith(f"{FOLDER}/"):
        return item.path.removeprefix(f"{FOLDER}/")
    extension = extension_of(item.path.rpartition("/")[2])
    name = item.attribute_path if item.step is None else f"{item.attribute_path}/step_{format_step(item.step)}"
    return name if extension_of(name.rpartition("/")[2]) == extension else f"{name}.{extension}"


def version_record(entry: ModelEntry, artifact: Artifact, *, entity: str, project: str, directory: Path) -> Any:
    """Return the request to log a model version; ``directory`` is where the staged run will lie when it is synced."""
    made = request(artifact, entity=entity, project=project, wandb_run=entry.creator, directory=directory)
    art = made.request.log_artifact.artifact
    art.description, art.metadata = entry.description, json_text(entry.metadata)
    # Collections of other projects may have the same name, and these numbers are for all of W&B.
    art.sequence_client_id = client_id(entity, project, entry.collection)
    art.client_id = client_id(entity, project, entry.collection, artifact.digest)
    art.aliases.extend(entry.aliases)
    art.tags.extend(entry.tags)
    return made


def compared(record: Any) -> str:
    """Return a request to log a model version as a text by which two can be compared."""
    return hashlib.sha256(record.SerializeToString(deterministic=True)).hexdigest()


def local_files(record: Any, directory: Path) -> list[str]:
    """Return the files, below the run's own, that a request to log an artifact uploads."""
    root = f"{directory / 'files'}/"
    return [item.local_path.removeprefix(root) for item in record.request.log_artifact.artifact.manifest.contents]


def is_version(record: Any) -> bool:
    """True if a request logs a model version of ours."""
    art = record.request.log_artifact.artifact
    return bool(art.type == TYPE and VERSION in json.loads(art.metadata or "{}"))
