"""Folders of neptune-client 2.x: which container a folder with a log belongs to, and when it was recorded."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from neptune_assets.schema import Scope
from neptune_assets.sources.files import open_regular
from neptune_assets.sources.offline.client_log import Log
from neptune_assets.sources.offline.client_operations import ContainerKey
from neptune_assets.sources.offline.recorded_files import training_directory
from neptune_assets.sources.offline.recordings import Folder, Refusal

SCOPES: Final = {"run": Scope.RUNS, "model": Scope.MODELS, "model_version": Scope.MODEL_VERSIONS}
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_TYPES: Final = frozenset({*SCOPES, "project"})
_STRUCTURES: Final = frozenset({1, 2, 3})
_MAX_METADATA: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Execution:
    """One process's recording of a container: a folder with a log, and when it began as far as that is known."""

    folder: Path
    log: Log
    started_at: datetime | None
    recorded_as: ContainerKey | None = None
    """What its metadata call the container: another one than the folder's name after `neptune sync` moved it."""

    @property
    def uploads(self) -> Path:
        """Where the client copied uploads from memory to."""
        return self.folder / "upload_path"

    @property
    def ran_in(self) -> Path | None:
        """The directory the process ran in, as far as can be known."""
        return training_directory(self.folder)

    def facts(self) -> list[tuple[str, int, int]]:
        """Name, size and time of change (ns) of every file of the recording; files that went away are passed over."""
        facts = self.log_facts()
        facts.extend(_facts(self.folder / name for name in ("metadata.json", "last_put_version")))
        if self.uploads.is_dir():
            facts.extend(_facts(sorted(self.uploads.iterdir())))
        return facts

    def log_facts(self) -> list[tuple[str, int, int]]:
        """Name, size and time of change (ns) of the log files."""
        return _facts(self.folder / name for name in self.log.files)


def stable_id(identifier: str) -> str:
    """The run id of a container whose ``sys/id`` is unknown: the same for every copy of its recording."""
    try:
        return f"OFFLINE-{uuid.UUID(identifier).hex[:12]}"
    except ValueError:
        return f"OFFLINE-{identifier}"


def execution_in(
    folder: Folder, names: tuple[str, ...], project: str | None
) -> tuple[ContainerKey, Execution] | Refusal | None:
    """The execution in a folder with log files; None if the files are of some other program."""
    path = folder.path
    metadata = _metadata(path / "metadata.json") if "metadata.json" in folder.files else {}
    key = _key(path) or _metadata_key(metadata)
    log = Log.of(path, names)
    if key is None:
        try:
            with open_regular(path / log.files[0]) as file:
                if not file.read(64).lstrip().startswith(b'{"obj"'):
                    return None
        except OSError as error:
            return Refusal(path, f"{path / log.files[0]} cannot be read: {error.strerror or error}.", project)
        return Refusal(
            path,
            f"{path} holds a log of neptune-client, but neither its name nor metadata.json says of which run. "
            "Give it its own name back: run__<uuid>__<pid>__<random>.",
            project,
        )
    structure = metadata.get("structureVersion", 3)
    if structure not in _STRUCTURES:
        return Refusal(
            path,
            f"{path} has structureVersion {structure!r}; this version reads {min(_STRUCTURES)} to {max(_STRUCTURES)}. "
            "Install a newer neptune_assets, or report it if there is none.",
            project,
        )
    try:
        return key, Execution(path, log, _started_at(metadata, log), _metadata_key(metadata))
    except OSError as error:
        return Refusal(path, f"{error.filename or path} cannot be read: {error.strerror or error}.", project)


def _key(path: Path) -> ContainerKey | None:
    """Type and id of the container whose execution lies at a path, from the names of folders; None if they say nothing.

    The name is right even after `neptune sync`, which moves offline runs and leaves their metadata as it was.
    """
    parts = path.name.split("__")
    if len(parts) in {2, 4, 5} and parts[0] in _TYPES and parts[1]:
        return parts[0], parts[1]
    if path.name.startswith("exec-"):
        parent = path.parent.name.split("__")
        if len(parent) == 2 and parent[0] in _TYPES and parent[1]:
            return parent[0], parent[1]
        if len(parent) == 1 and path.parent.parent.name == "async":
            return "run", parent[0]
    if len(parts) == 1 and path.parent.name == "offline":
        return "run", parts[0]
    return None


def _metadata(path: Path) -> Mapping[str, Any]:
    """The client's notes on an execution; empty if they are no JSON object, as the client itself reads them."""
    try:
        with open_regular(path, _MAX_METADATA) as file:
            found = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _metadata_key(metadata: Mapping[str, Any]) -> ContainerKey | None:
    kind, identifier = metadata.get("containerType"), metadata.get("containerId")
    if isinstance(kind, str) and kind in _TYPES and isinstance(identifier, str) and identifier:
        return kind, identifier
    return None


def _started_at(metadata: Mapping[str, Any], log: Log) -> datetime | None:
    """When an execution began: from its metadata, or from its first record that can be read."""
    written = metadata.get("createdAt")
    if isinstance(written, str):
        try:
            moment = datetime.fromisoformat(written)
        except ValueError:
            pass
        else:
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    first = next(log.entries(), None)
    return None if first is None or first.at is None else moment_of(first.at)


def _facts(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    facts = []
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        facts.append((path.name, status.st_size, status.st_mtime_ns))
    return facts


def moment_of(seconds: float) -> datetime | None:
    """Epoch seconds as a time; None if no calendar has it."""
    try:
        return EPOCH + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        return None


def distinct(executions: Iterable[Execution]) -> tuple[list[Execution], list[Path]]:
    """Executions in the order they began, and folders left out since they are copies of one of them.

    A copy has the same name (which holds a process id and a random or time part) and a log that is the other's, or its
    beginning: `.neptune` folders get copied while runs go on.
    """
    kept: list[Execution] = []
    copies: list[Path] = []
    longest = sorted(executions, key=lambda item: (-sum(size for _, size, _ in item.log_facts()), str(item.folder)))
    for execution in longest:
        if any(execution.folder.name == other.folder.name and _begins(execution, other) for other in kept):
            copies.append(execution.folder)
        else:
            kept.append(execution)
    kept.sort(key=lambda item: (item.started_at or EPOCH, str(item.folder)))
    return kept, copies


def _begins(execution: Execution, other: Execution) -> bool:
    """True if every log file of an execution is one of the other's or begins it."""
    for name in execution.log.files:
        if name not in other.log.files:
            return False
        with open_regular(execution.folder / name) as mine, open_regular(other.folder / name) as theirs:
            while block := mine.read(1024 * 1024):
                if theirs.read(len(block)) != block:
                    return False
    return True
