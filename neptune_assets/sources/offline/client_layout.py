"""Folders of neptune-client 2.x: which container a folder with a log belongs to, and when it was recorded."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Final

from neptune_assets.schema import Scope
from neptune_assets.sources.files import open_regular
from neptune_assets.sources.offline.client_log import Entry, Log
from neptune_assets.sources.offline.client_operations import SERIES, ContainerKey
from neptune_assets.sources.offline.recorded_files import training_directory
from neptune_assets.sources.offline.recordings import Folder, Refusal
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.values import printable

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
    order: tuple[float, int]
    """Epoch seconds by which executions of one container are ordered, 0 if nothing tells; then the folder's number."""
    empty: bool = False
    """True if nothing was recorded, not even lost: forked workers and clients that were killed leave such folders."""
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
        return f"OFFLINE-{printable(identifier)}"


def execution_in(
    folder: Folder, names: tuple[str, ...], settings: OfflineSource
) -> tuple[ContainerKey, Execution] | Refusal | None:
    """The execution in a folder with log files; None if the files are of some other program."""
    path = folder.path
    project = settings.project
    metadata = _metadata(path / "metadata.json") if "metadata.json" in folder.files else {}
    key = _key(path) or _metadata_key(metadata)
    log = Log.of(path, names, int(settings.record_mb * 10**6))
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
        return refusal_of(
            key,
            path,
            f"{path} has structureVersion {structure!r}; this version reads {min(_STRUCTURES)} to {max(_STRUCTURES)}. "
            "Install a newer neptune_assets, or report it if there is none.",
            project,
        )
    try:
        first = next(log.entries(skim=True), None)
        started_at = _started_at(metadata, first)
        order = (_seconds(path.name, log) if started_at is None else started_at.timestamp(), _number(path.name))
        empty = first is None and _nothing_lost(log)
        return key, Execution(path, log, started_at, order, empty, _metadata_key(metadata))
    except OSError as error:
        return refusal_of(key, path, f"{error.filename or path} cannot be read: {error.strerror or error}.", project)


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


def _started_at(metadata: Mapping[str, Any], first: Entry | None) -> datetime | None:
    """When an execution began: from its metadata, or from its first record."""
    written = metadata.get("createdAt")
    if isinstance(written, str):
        try:
            moment = datetime.fromisoformat(written)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            pass
    return None if first is None or first.at is None else moment_of(first.at)


_EXECUTION: Final = re.compile(
    r"exec-(?P<number>\d{1,12}(?:\.\d+)?)-(?P<date>\d{4}-\d\d-\d\d[ T_]\d\d[:.]\d\d[:.]\d\d(?:\.\d+)?)(?:-.*)?",
    re.ASCII,
)
"""Names of executions: ``exec-<count>-<local date>``, or ``exec-<epoch seconds>-<date>`` with more parts behind.

Source: neptune-client 0.9.19 and 0.10.10 ``new/internal/init_impl.py``, 0.14.3 ``operation_processors/factory.py``,
0.16.19 and 1.3.2 ``operation_processors/async_operation_processor.py``.
"""
_EPOCH_SECONDS: Final = 1_000_000_000
_QUARTER: Final = 900.0
_POINTS_LOOKED_AT: Final = 1_000


def _number(name: str) -> int:
    """The number in an execution's folder name, 0 if it has none."""
    match = _EXECUTION.fullmatch(name)
    return int(float(match["number"])) if match else 0


def _seconds(name: str, log: Log) -> float:
    """When an execution began that records no times, by its folder's name and its points; 0 if neither tells.

    The name's date is local time: the time of the first point tells how many quarters of an hour it is off.
    """
    match = _EXECUTION.fullmatch(name)
    if match and float(match["number"]) >= _EPOCH_SECONDS:
        return float(match["number"])
    point = _first_point(log)
    if match is None:
        return point or 0.0
    date, clock = match["date"][:10], match["date"][11:]
    try:
        local = datetime.fromisoformat(f"{date}T{clock[:8].replace('.', ':')}").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return point or 0.0
    local += float(f"0{clock[8:]}")
    away = 0.0 if point is None else _QUARTER * ((point - local) // _QUARTER)
    return local + away if abs(away) <= 24 * 3_600 else local


def _first_point(log: Log) -> float | None:
    """The time of the first point among the first records, if it is one in seconds that a calendar has."""
    for entry in islice(log.entries(), _POINTS_LOOKED_AT):
        values = entry.operation.get("values")
        if entry.operation.get("type") in SERIES and isinstance(values, list):
            for item in values:
                ts = item.get("ts") if isinstance(item, dict) else None
                if isinstance(ts, int | float) and not isinstance(ts, bool) and moment_of(ts) is not None:
                    return float(ts)
    return None


class _Losses:
    """Counts what is missing in a log."""

    def __init__(self) -> None:
        self.lost_any = False

    def lost(self, message: str) -> None:
        """Data is missing."""
        self.lost_any = True

    def noted(self, message: str) -> None:
        """Nothing is missing."""


def _nothing_lost(log: Log) -> bool:
    losses = _Losses()
    for _ in log.entries(losses, skim=True):
        pass
    return not losses.lost_any


def refusal_of(key: ContainerKey, path: Path, message: str, project: str | None) -> Refusal:
    """A refusal of what belongs to a known container."""
    if key[0] not in SCOPES:
        return Refusal(path, message, project)
    return Refusal(path, message, project, run_id=stable_id(key[1]), scope=SCOPES[key[0]])


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
    kept.sort(key=lambda item: (item.order, str(item.folder)))
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
