"""Folders of neptune-client 2.x, and the files that recordings in them name: uploads, file sets, artifacts, images.

Three layouts of folders occur, recognized by names: ``run__<uuid>__<pid>__<random>/`` (and a fifth part for
partitioned queues), ``run__<uuid>/exec-<time>-.../``, and ``<uuid>/exec-.../``; offline runs of the older two have
the log directly inside. The client copies only what was uploaded from memory; of the rest the log keeps absolute paths
and patterns. Only what the log names is read. Patterns and names follow the client, which uses glob and os.path.

A reference in ``file_value.path`` is ``<mark>:<kind>:<place>``; the mark is the recording's. Images and single files
are found by the place of their record in the log, which is read again when the file is opened; file sets and artifacts
by their path.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, Final

from neptune_assets.errors import FileGoneError, UnsafePathError
from neptune_assets.schema import AttributeType, Scope
from neptune_assets.sources.files import (
    AllowedRoots,
    FileSearch,
    Limits,
    composed,
    forbidden_root,
    has_magic,
    open_regular,
    spelled,
)
from neptune_assets.sources.offline.client_log import SERIES, ContainerKey, Entry, Log, SetChange, Tracked, Upload
from neptune_assets.sources.offline.recordings import (
    Folder,
    RecordedFile,
    Refusal,
    allowed_roots,
    file_limits,
    training_directory,
)
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.protocol import SourceFile
from neptune_assets.sources.values import printable, printable_names

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


LIMITS: Final = "source.offline.file_limits"

_SIGNATURES: Final = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpg"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)
"""How images begin."""


@dataclass(frozen=True, slots=True)
class FileInMemory:
    """A file whose bytes came out of the log or were made from it."""

    relative_path: str
    data: bytes

    def open(self) -> BinaryIO:
        """Open for streaming."""
        return io.BytesIO(self.data)


def gone(path: str, why: str) -> FileGoneError:
    """The error for a file that a recording names and nobody has."""
    return FileGoneError(
        f"{path} is named by the recording, but {why}.",
        hint="Put it back, or add a directory that holds it to source.offline.search_files_in.",
    )


class FileFinder:
    """Finds what was recorded under a path: there, or beside the recording, or below the directories of settings.

    Recordings move with their folders and to other machines, so a path is also looked for by its last parts: below the
    directory that holds ``.neptune`` if two parts agree, and by name below ``search_files_in``. Of several candidates
    the one that agrees furthest is taken; a tie is refused, since a guess could be the wrong file. Only what is below
    the allowed roots is found.
    """

    def __init__(self, settings: OfflineSource) -> None:
        self.directories = [Path(directory).absolute() for directory in settings.search_files_in]
        self.limits = file_limits(settings)
        self._index: dict[str, list[str]] | None = None
        self._unfinished = ""

    def find(
        self,
        recorded: str,
        roots: AllowedRoots,
        ran_in: Path | None,
        accept: Callable[[str], bool],
        beside: Path | None = None,
    ) -> str:
        """Where what was recorded under a path is now; ``beside`` is one more directory to look in.

        Raises FileGoneError if it is nowhere, UnsafePathError if it is only where nothing may be read from.
        """
        refused: UnsafePathError | None = None
        for candidate in self.candidates(recorded, ran_in, beside):
            if accept(candidate):
                try:
                    roots.real(candidate)
                except UnsafePathError as error:
                    refused = refused or error
                    continue
                return candidate
        if refused is not None:
            raise refused
        parts = _parts(recorded)[1]
        found = [path for path in self._named(parts[-1]) if accept(path)] if parts else []
        if not found:
            raise self.gone(recorded, "it is gone")
        agreement = [_agreement(parts, Path(path).parts) for path in found]
        best = [path for path, count in zip(found, agreement, strict=True) if count == max(agreement)]
        exact = [path for path in best if os.path.basename(path) == parts[-1]]  # noqa: PTH119
        if len(best) > 1 and len(exact) != 1:
            raise self.gone(recorded, f"it is gone, and several of the name {parts[-1]!r} could be it")
        roots.real(best[0])
        return best[0] if len(best) == 1 else exact[0]

    def candidates(self, recorded: str, ran_in: Path | None, beside: Path | None = None) -> Iterator[str]:
        """Places where it may be, but for those that only a search by name finds."""
        kind, parts = _parts(recorded)
        if kind == "posix":
            yield recorded
        if not parts:
            return
        if beside is not None and parts[-1] not in {".", ".."}:
            yield str(beside / parts[-1])
        for folder in [*([] if ran_in is None else [ran_in]), *self.directories]:
            if kind == "relative":
                yield from spelled(folder, parts)
                continue
            for start in range(1, len(parts)):
                # One name alone is too little to tell a file by, unless its folder's name agrees too.
                if start < len(parts) - 1 or parts[start - 1] == folder.name:
                    yield from spelled(folder, parts[start:])
            if parts[-1] == folder.name:
                yield str(folder)

    def gone(self, recorded: str, why: str) -> FileGoneError:
        """The error for what a recording names and was not found."""
        searched = ", ".join(map(str, self.directories))
        if not searched:
            return gone(recorded, why)
        return FileGoneError(
            f"{recorded} is named by the recording, but {why}; it was looked for below {searched} too."
            f"{self._unfinished}",
            hint="Put it back where it was, or below one of these under the folders it was in.",
        )

    def _named(self, name: str) -> list[str]:
        """Files and folders of a name below ``search_files_in``, without following links to folders."""
        if self._index is None:
            self._index = self._indexed()
        return sorted(set(self._index.get(composed(name), ())))

    def _indexed(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        deadline = time.monotonic() + self.limits.seconds
        for directory in self.directories:
            if forbidden_root(os.path.realpath(directory)) is not None:
                continue
            index.setdefault(composed(directory.name), []).append(str(directory))
            for folder, folders, names in os.walk(directory):
                for found in [*folders, *names]:
                    index.setdefault(composed(found), []).append(f"{folder}{os.sep}{found}")
                if time.monotonic() > deadline:
                    self._unfinished = (
                        f" The search was ended after {self.limits.seconds:g} seconds; raise {LIMITS}.seconds."
                    )
                    return index
        return index


def not_folder(path: str) -> bool:
    """True if something is at a path that is not a directory; opening looks at what it is."""
    return os.path.exists(path) and not os.path.isdir(path)  # noqa: PTH110, PTH112


def copied_upload(upload_path: Path, name: str) -> Path:
    """The file that the client copied into ``upload_path``; raises UnsafePathError if it would be elsewhere."""
    path = upload_path / name
    if not name or name in {".", ".."} or "/" in name or "\0" in name or os.sep in name:
        inside = False
    else:
        inside = path.resolve().parent == upload_path.resolve()
    if not inside:
        raise UnsafePathError(
            f"The recording in {upload_path.parent} names the upload {name!r}, which would leave {upload_path.name}.",
            hint="The client writes plain names only; the recording was changed and is not followed.",
        )
    if not path.exists():
        raise gone(str(path), "it is gone; the client deletes it once the server has acknowledged it")
    return path


def set_members(
    change: SetChange, ran_in: Path | None, finder: FileFinder, roots: AllowedRoots
) -> tuple[dict[str, Path], list[str]]:
    """Files that the patterns of one upload match now, by their names in the set; and messages for what is missing.

    Names are relative to the directory the client ran in if all files are below it, else to the directory the recorded
    paths have in common.
    """
    search = FileSearch(roots, finder.limits, LIMITS)
    found: dict[str, str] = {}
    for pattern in change.globs:
        try:
            found.update(_matching(pattern, ran_in, finder, roots, search))
        except (FileGoneError, UnsafePathError) as error:
            search.problem(str(error))
    if not found:
        return {}, search.problems
    if ran_in is not None and all(_moved_along(recorded, path, ran_in) for recorded, path in found.items()):
        found = {path: path for path in found.values()}
        common = str(ran_in)
    else:
        common = os.path.commonpath(found)
        if common in found and not os.path.isdir(found[common]):  # noqa: PTH112
            common = str(Path(common).parent)
    members: dict[str, Path] = {}
    walked: set[str] = set()
    for recorded, path in sorted(found.items()):
        target = os.path.relpath(recorded, common)
        if not os.path.isdir(path):  # noqa: PTH112
            members[Path(target).as_posix()] = Path(path)
            continue
        covered = os.path.dirname(path) in walked and not Path(path).is_symlink()  # noqa: PTH120
        walked.add(path)
        if not covered:
            for file in search.files(path):
                inside = os.path.normpath(Path(target, os.path.relpath(file, path)))
                members[Path(inside).as_posix()] = Path(file)
    return members, search.problems


def _moved_along(recorded: str, path: str, ran_in: Path) -> bool:
    """True if a path is below the directory the client ran in as it was when it was recorded."""
    inside = os.path.relpath(path, ran_in)
    return inside == "." or (not inside.startswith("..") and recorded.endswith(f"/{inside}"))


def _matching(
    pattern: str, ran_in: Path | None, finder: FileFinder, roots: AllowedRoots, search: FileSearch
) -> dict[str, str]:
    """What one pattern matches: recorded absolute paths, and where each is now."""
    kind, parts = _parts(pattern)
    if kind == "relative":
        if ran_in is None:
            raise UnsafePathError(
                f"The recording names the files {pattern!r}, which is not an absolute path.",
                hint="Put the recording back below the directory it was made in, as .neptune.",
            )
        pattern, parts = str(ran_in / pattern), (*ran_in.parts[1:], *parts)
    literal = next((number for number, part in enumerate(parts) if has_magic(part)), None)
    if literal is None:
        path = finder.find(pattern, roots, ran_in, os.path.exists)
        return {os.path.normpath("/" + "/".join(parts)): os.path.normpath(path)}
    folder = "/" + "/".join(parts[:literal])
    rest = parts[literal:]
    try:
        place = os.path.normpath(finder.find(folder, roots, ran_in, os.path.isdir))
    except FileGoneError:
        raise finder.gone(pattern, "no file matches it") from None
    matches = {os.path.normpath(match) for match in search.matches(place, rest)}
    if not matches and not search.problems:
        raise finder.gone(pattern, "no file matches it")
    return {os.path.normpath(f"{folder}/{os.path.relpath(match, place)}"): match for match in matches}


def delete_members(members: dict[str, Path], deleted: Iterable[str]) -> None:
    """Take files, or everything below folders, out of a file set."""
    for name in deleted:
        plain = name.strip("/")
        for member in [member for member in members if member == plain or member.startswith(plain + "/")]:
            del members[member]


@dataclass(frozen=True, slots=True)
class TrackedFile:
    """A local file that an artifact tracks: its name in the artifact and its place."""

    name: str
    path: Path


_REMOTE: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://")
"""A location in some storage; one letter and a colon is a drive of Windows."""


@dataclass(frozen=True, slots=True)
class TrackedLocation:
    """What an artifact tracks in storage elsewhere, or by the hash it was assigned; its files were never listed."""

    location: str
    destination: str | None = None
    hash: str | None = None

    def entry(self) -> dict[str, Any]:
        """Its entry in the list of the artifact's files, with null for what only the server could have added."""
        match = _REMOTE.match(self.location)
        return {
            "filePath": printable(self.destination or ""),
            "fileHash": self.hash,
            "type": match["scheme"].upper() if match else "Artifact",
            "size": None,
            "metadata": [{"key": "location", "value": printable(self.location)}] if match else [],
        }


def is_remote(location: str) -> bool:
    """True if an artifact's location is in storage elsewhere, not in files."""
    match = _REMOTE.match(location)
    return match is not None and match["scheme"].lower() != "file"


def tracked_files(
    location: str, destination: str | None, ran_in: Path | None, finder: FileFinder, roots: AllowedRoots
) -> tuple[list[TrackedFile], list[str]]:
    """Files behind one local location of an artifact: a file, or all files below a folder; and what is left out.

    Relative locations start where the client ran. Raises FileGoneError if there is nothing, UnsafePathError if it is
    where nothing may be read from.
    """
    place = os.path.expanduser(location.removeprefix("file://"))  # noqa: PTH111 - Path's raises for unknown users
    path = finder.find(place, roots, ran_in, os.path.exists)
    below = Path(destination) if destination is not None else Path()
    if not os.path.isdir(path):  # noqa: PTH112
        return [TrackedFile((below / Path(path).name).as_posix(), Path(path))], []
    search = FileSearch(roots, finder.limits, LIMITS)
    files = [TrackedFile((below / os.path.relpath(file, path)).as_posix(), Path(file)) for file in search.files(path)]
    return files, search.problems


def files_list(
    tracked: Iterable[TrackedFile], elsewhere: Iterable[TrackedLocation], roots: AllowedRoots, limits: Limits
) -> bytes:
    """The list of an artifact's files as JSON, in the words of Neptune's service.

    Sorted by name; of two files of one name the later is meant. Times of change are in UTC. What was never listed has
    an entry that names its location only.
    Raises FileGoneError if a file went away meanwhile, UnsafePathError if it is where nothing may be read from.
    """
    files = {file.name: file.path for file in tracked}
    names = printable_names(files)
    described = [_description(names[name], files[name], roots, limits) for name in sorted(files)]
    described.extend(
        item.entry() for item in sorted(elsewhere, key=lambda item: (item.destination or "", item.location))
    )
    return json.dumps(described, ensure_ascii=False).encode()


def _description(name: str, path: Path, roots: AllowedRoots, limits: Limits) -> dict[str, Any]:
    digest = hashlib.sha1(usedforsecurity=False)
    try:
        with roots.open(path, limits.bytes) as file:
            status = os.fstat(file.fileno())
            while block := file.read(1024 * 1024):
                digest.update(block)
    except OSError as error:
        raise gone(str(path), error.strerror or "it cannot be read") from error
    changed = moment_of(status.st_mtime)
    return {
        "filePath": name,
        "fileHash": digest.hexdigest(),
        "type": "Local",
        "size": status.st_size,
        "metadata": [
            {"key": "file_path", "value": printable(f"file://{path.resolve().as_posix()}")},
            *([{"key": "last_modified", "value": changed.strftime("%Y-%m-%d %H:%M:%S")}] if changed else []),
        ],
    }


def image_data(value: Any) -> str:
    """The base64 text of a logged image, in either form the client wrote; raises ValueError if there is none."""
    data = value.get("data") if isinstance(value, dict) else value
    if not isinstance(data, str) or not data:
        raise ValueError("the client recorded no bytes for this image (it drops images that are too large)")
    return data


def image_extension(data: str) -> str:
    """File extension of a base64 image, from how it begins; ``bin`` if that says nothing."""
    head = decode(data[:64])
    for signature, extension in _SIGNATURES:
        if head.startswith(signature):
            return extension
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return "svg" if head.lstrip().startswith((b"<svg", b"<?xml")) else "bin"


def decode(data: str) -> bytes:
    """Bytes of a base64 text; raises ValueError if it is none."""
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"invalid base64 ({error})") from error


def _parts(recorded: str) -> tuple[str, tuple[str, ...]]:
    """Whether a path is of a POSIX system, of Windows, or relative; and its parts without root or drive."""
    if recorded.startswith("/"):
        return "posix", PurePosixPath(recorded).parts[1:]
    windows = PureWindowsPath(recorded)
    if windows.is_absolute():
        return "windows", windows.parts[1:]
    return "relative", (windows if "\\" in recorded and "/" not in recorded else PurePosixPath(recorded)).parts


def _agreement(recorded: Sequence[str], candidate: Sequence[str]) -> int:
    """How many last parts of two paths are equal."""
    count = 0
    for one, other in zip(reversed(recorded), reversed(candidate), strict=False):
        if composed(one) != composed(other):
            break
        count += 1
    return count


class References:
    """Makes the references of one recording and resolves them."""

    def __init__(
        self, path: Path, executions: Sequence[Execution], finder: FileFinder, settings: OfflineSource
    ) -> None:
        self._path = path
        self._executions = executions
        self._finder = finder
        self._roots = allowed_roots([execution.folder for execution in executions], settings)
        self.mark = hashlib.blake2b(str(path).encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()

    def upload(self, upload: Upload) -> str:
        """Reference of a single file."""
        return f"{self.mark}:upload:{upload.execution}:{upload.log}:{upload.offset}"

    def collection(self, kind: AttributeType, path: str) -> str:
        """Reference of a file set or an artifact."""
        return f"{self.mark}:{kind}:{printable(path)}"

    def image(self, execution: int, entry: Entry, path: str, index: int, value: Any) -> str:
        """Reference of an image; raises ValueError if the record holds none."""
        image_extension(image_data(value))
        return f"{self.mark}:image:{execution}:{entry.log}:{entry.offset}:{index}"

    def members(self, changes: Sequence[SetChange]) -> tuple[dict[str, Path], list[str]]:
        """Files of a file set by name, and a message for everything that is missing."""
        members: dict[str, Path] = {}
        missing: list[str] = []
        for change in changes:
            execution = self._executions[change.execution]
            found, problems = set_members(change, execution.ran_in, self._finder, self._roots)
            members.update(found)
            delete_members(members, change.deleted)
            missing.extend(problems)
        return members, missing

    def tracked(self, tracked: Tracked) -> tuple[list[TrackedFile], list[TrackedLocation], list[str]]:
        """Files an artifact tracks, locations that were never listed, and a message for everything that is missing."""
        if tracked.hash is not None:
            return [], [TrackedLocation("", hash=tracked.hash)], []
        found: list[TrackedFile] = []
        elsewhere: list[TrackedLocation] = []
        missing: list[str] = []
        for number, location, destination in tracked.entries:
            if is_remote(location):
                elsewhere.append(TrackedLocation(location, destination))
                continue
            ran_in = self._executions[number].ran_in
            try:
                files, problems = tracked_files(location, destination, ran_in, self._finder, self._roots)
            except (FileGoneError, UnsafePathError) as error:
                missing.append(str(error))
                continue
            found.extend(files)
            missing.extend(problems)
        return found, elsewhere, missing

    def files_list(self, tracked: Tracked) -> bytes:
        """The list of what an artifact tracks; raises as :func:`~.client_files.files_list` does."""
        found, elsewhere, _ = self.tracked(tracked)
        return files_list(found, elsewhere, self._roots, self._finder.limits)

    def logged_file(self, reference: str, kind: str, place: str) -> SourceFile:
        """The file of one record: an image, an upload from memory, or an upload by path."""
        parts = place.split(":")
        unknown = gone(f"The file {reference!r} of {self._path}", "its record is no longer there")
        if len(parts) != (4 if kind == "image" else 3) or not (parts[0].isdecimal() and parts[2].isdecimal()):
            raise unknown
        number = int(parts[0])
        if number >= len(self._executions):
            raise unknown
        execution = self._executions[number]
        operation = execution.log.operation(parts[1], int(parts[2])) or {}
        name = str((operation.get("path") or ["file"])[-1])
        try:
            if kind == "image" and operation.get("type") == "LogImages":
                data = image_data(operation["values"][int(parts[3])]["value"])
                return FileInMemory(_file_name(name, image_extension(data)), decode(data))
            if kind == "upload" and operation.get("type") == "UploadFileContent":
                return FileInMemory(_file_name(name, operation["ext"]), decode(operation["file_content"]))
            if kind == "upload" and operation.get("type") == "UploadFile":
                return self.on_disk(_file_name(name, operation.get("ext")), self._uploaded(execution, operation))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise gone(f"The file {name!r} of {self._path}", f"its record cannot be used ({error})") from error
        raise unknown

    def _uploaded(self, execution: Execution, operation: Mapping[str, Any]) -> Path:
        recorded, copied = operation.get("file_path"), operation.get("tmp_file_name")
        if recorded:
            return self._found(str(recorded), execution)
        return copied_upload(execution.uploads, str(copied or ""))

    def _found(self, recorded: str, execution: Execution) -> Path:
        if not Path(recorded).is_absolute() and not PureWindowsPath(recorded).is_absolute():
            raise UnsafePathError(
                f"The recording names the file {recorded!r}, which is not an absolute path.",
                hint="The client writes absolute paths only; the recording was changed and is not followed.",
            )
        return Path(self._finder.find(recorded, self._roots, execution.ran_in, not_folder, beside=execution.uploads))

    def on_disk(self, name: str, path: Path) -> RecordedFile:
        """A file at a path."""
        return RecordedFile(name, [path], None, str(self._path), self._roots, self._finder.limits.bytes)


def _file_name(segment: str, extension: Any) -> str:
    """A file's name: the attribute's last segment and the extension, without anything that would lead elsewhere."""
    name = printable(segment).replace("/", "_").replace("\0", "_")
    plain = isinstance(extension, str) and extension and not set(extension) & {"/", "\\", "\0"}
    return f"{name}.{extension}" if plain else (name if name not in {"", ".", ".."} else "file")
