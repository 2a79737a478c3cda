"""What a project holds, as files in ``.manifest``: one checkpoint, then one small delta for each commit.

``<seq>.jsonl`` holds a header line, one run record a line, and last the sha256 of all bytes before it. Other lines end
with a checksum of their own, so that damage to one record leaves the others usable. A delta is created exclusively
under the next number, so two writers cannot both commit; a checkpoint holds all runs and makes older files superfluous.
Creating a delta **is** the commit: what it does not name does not exist. Numbers only grow: who creates one that a
checkpoint made free finds a higher one right after, and has not committed.
"""

from __future__ import annotations

import dataclasses
import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Literal

from neptune_assets.errors import LakeBusyError, LakeDamagedError, LakeError
from neptune_assets.lake.layout import Layout
from neptune_assets.lake.storage import Storage
from neptune_assets.schema import Scope

State = Literal["complete", "partial"]


@dataclass(frozen=True, slots=True)
class PartRecord:
    """One Parquet file of a run: file name in the project's directory (or absolute, in place), rows, bytes and sha256.

    ``sha256`` is None for a part that was written before parts were hashed.
    """

    name: str
    rows: int
    bytes: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One stored file: which attribute (and step, in micro-steps) it belongs to, its path, size and sha256.

    ``path`` is relative to the project's files directory. Members of a file set have one record each, with ``member``
    their path inside the set.
    """

    attribute_path: str
    attribute_type: str
    path: str
    size: int
    sha256: str
    step: int | None = None
    member: str | None = None


@dataclass(frozen=True, slots=True)
class IssueRecord:
    """One problem of a run, as reported by the source or met while writing."""

    message: str
    attribute_path: str | None = None
    attribute_type: str | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run in the manifest. Partial is never complete.

    ``digest`` is the content hash over all rows and file contents (hex), independent of parts, row order and storage.
    ``rows`` and ``attributes`` count by attribute type; ``promised`` is what the source announced.
    ``generation`` names the commit the parts belong to and is stored in each part's Parquet metadata.
    Times are ISO 8601 in UTC. ``vanished_at`` is set when the run is no longer in the source.
    """

    run_id: str
    state: State
    digest: str
    fingerprint: str
    generation: str
    committed_at: str
    rows: Mapping[str, int] = field(default_factory=dict)
    attributes: Mapping[str, int] = field(default_factory=dict)
    promised: Mapping[str, int] | None = None
    parts: tuple[PartRecord, ...] = ()
    files: tuple[FileRecord, ...] = ()
    errors: tuple[IssueRecord, ...] = ()
    notes: tuple[IssueRecord, ...] = ()
    repairs: Mapping[str, int] = field(default_factory=dict)
    source: str = ""
    created_at: str | None = None
    name: str | None = None
    parent: str | None = None
    fork_step: int | None = None
    """Step of the fork in micro-steps."""
    in_place: str | None = None
    """Files root of an export that is read in place; None for runs whose parts are in the lake."""
    vanished_at: str | None = None
    stale: str | None = None
    """Why a newer state of the run could not be read whole; this complete, earlier one was kept. None if there is none.

    Fingerprint and everything else are of the state that was kept, and the run is read again next time.
    """

    @property
    def complete(self) -> bool:
        """True if every attribute that the source promised arrived."""
        return self.state == "complete"

    @property
    def hashed(self) -> bool:
        """True if the sha256 of every part is known; older records gain it by ``verify --upgrade``."""
        return all(part.sha256 is not None for part in self.parts)

    @property
    def total_rows(self) -> int:
        """Rows of all types."""
        return sum(self.rows.values())

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that :meth:`from_json` turns back into an equal record; what is not known is left out."""
        # By hand: dataclasses.asdict copies in depth, which costs more than the rest of committing a small run.
        data: dict[str, Any] = {name: getattr(self, name) for name in _REQUIRED_FIELDS}
        for name in _OPTIONAL_FIELDS:
            value = getattr(self, name)
            if value is not None and value != () and value != {}:
                data[name] = value
        for name, fields in _NESTED_FIELDS.items():
            if name in data:
                data[name] = [
                    {field: value for field in fields if (value := getattr(item, field)) is not None}
                    for item in data[name]
                ]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunRecord:
        """Build a record from what :meth:`to_json` returned; raises TypeError or KeyError for anything else."""
        fields = dict(data)
        fields["parts"] = tuple(PartRecord(**part) for part in fields.get("parts", ()))
        fields["files"] = tuple(FileRecord(**item) for item in fields.get("files", ()))
        fields["errors"] = tuple(IssueRecord(**item) for item in fields.get("errors", ()))
        fields["notes"] = tuple(IssueRecord(**item) for item in fields.get("notes", ()))
        return cls(**fields)


_REQUIRED_FIELDS: Final = tuple(
    item.name
    for item in dataclasses.fields(RunRecord)
    if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
)
_OPTIONAL_FIELDS: Final = tuple(
    item.name for item in dataclasses.fields(RunRecord) if item.name not in _REQUIRED_FIELDS
)
_NESTED_FIELDS: Final = {
    name: tuple(item.name for item in dataclasses.fields(kind))
    for name, kind in {"parts": PartRecord, "files": FileRecord, "errors": IssueRecord, "notes": IssueRecord}.items()
}


FORMAT: Final = "neptune_assets.manifest/2"
_WITHOUT_SUMS: Final = "neptune_assets.manifest/1"
"""Format of manifests that were written before they had checksums; still read."""

_NAME: Final = re.compile(r"([0-9]{10})\.jsonl")
_ATTEMPTS: Final = 5
_HINT: Final = "Restore it from a backup, or run `python -m neptune_assets.verify --repair`, which keeps whole records."


@dataclass(slots=True)
class Manifest:
    """A snapshot of a project: its records by run id, sorted, and the number of the newest file read."""

    project_id: str
    records: dict[str, RunRecord] = field(default_factory=dict)
    sequence: int = 0
    deltas: int = 0


class ManifestStore:
    """Reads and commits the manifest of one project and scope; ``max_deltas`` commits are followed by a checkpoint."""

    def __init__(
        self, storage: Storage, layout: Layout, project_id: str, scope: Scope, *, max_deltas: int = 1_000
    ) -> None:
        self._max_deltas = max_deltas
        self._storage = storage
        self._directory = layout.manifest(project_id, scope)
        self._project_id = project_id
        self._scope = scope

    def read(self) -> Manifest | None:
        """Return the newest state, or None if there is no manifest. Raises LakeError if it cannot be understood."""
        for attempt in range(_ATTEMPTS):
            numbers = self._numbers()
            if not numbers:
                return None
            try:
                return self._assemble(numbers)
            except FileNotFoundError:
                # A writer put a checkpoint in place and removed older files while we read: look again.
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def commit(self, manifest: Manifest, changed: Iterable[RunRecord], *, written_at: str) -> None:
        """Make these records part of the project, all or none. Updates ``manifest``.

        Raises LakeBusyError if another writer committed in between.
        """
        records = list(changed)
        self._create(manifest.sequence + 1, "delta", records, written_at)
        manifest.sequence += 1
        manifest.deltas += 1
        for record in records:
            manifest.records[record.run_id] = record
        if manifest.deltas >= self._max_deltas:
            self.compact(manifest, written_at=written_at)

    def fence(self, *, written_at: str) -> Manifest:
        """Commit nothing under the next number and return the newest state: older snapshots can no longer be committed.

        Whoever held the lock before and goes on later finds its next number taken. Only after this is what no commit
        names nobody's. Raises LakeBusyError if others keep committing.
        """
        for _ in range(_ATTEMPTS):
            manifest = self.read() or Manifest(self._project_id)
            try:
                self.commit(manifest, [], written_at=written_at)
            except LakeBusyError as error:
                busy = error
                continue
            return manifest
        raise busy

    def compact(self, manifest: Manifest, *, written_at: str) -> None:
        """Write all records as one checkpoint and remove the files it replaces."""
        self._create(manifest.sequence + 1, "checkpoint", list(manifest.records.values()), written_at)
        manifest.sequence += 1
        manifest.deltas = 0
        for number in self._numbers():
            if number < manifest.sequence:
                self._storage.delete(self._path(number))

    def _create(self, number: int, kind: str, records: list[RunRecord], written_at: str) -> None:
        header = {
            "format": FORMAT,
            "seq": number,
            "kind": kind,
            "project_id": self._project_id,
            "scope": self._scope.value,
            "written_at": written_at,
            # No two files are equal, so that a writer knows its own when the answer to creating it got lost.
            "token": uuid.uuid4().hex,
        }
        created = self._storage.create(self._path(number), manifest_bytes(header, records))
        # A higher number means that this one was free only because a checkpoint had removed it.
        if not created or any(found > number for found in self._numbers()):
            raise LakeBusyError(
                f"Project {self._project_id!r} was changed by another writer while this one was writing.",
                hint="Wait until the other materialization has finished, then materialize again.",
            )

    def _assemble(self, numbers: list[int]) -> Manifest:
        files: list[tuple[int, list[RunRecord]]] = []
        start = None
        for number in reversed(numbers):
            kind, records = self._load(number)
            files.append((number, records))
            if kind == "checkpoint":
                start = number
                break
        if start is None:
            start = 1
        expected = list(range(start, numbers[-1] + 1))
        if [number for number, _ in reversed(files)] != expected:
            if self._numbers() != numbers:
                raise FileNotFoundError(self._directory)
            raise self._damaged(f"files are missing between {start} and {numbers[-1]}")
        merged: dict[str, RunRecord] = {}
        for _, records in reversed(files):
            merged.update((record.run_id, record) for record in records)
        ordered = {run_id: merged[run_id] for run_id in sorted(merged)}
        return Manifest(self._project_id, ordered, sequence=numbers[-1], deltas=numbers[-1] - start)

    def _load(self, number: int) -> tuple[str, list[RunRecord]]:
        path = self._path(number)
        raw = self._storage.read(path)
        header, records = parse_manifest(raw, self._storage.url(path))
        if header["project_id"] != self._project_id or header["scope"] != self._scope.value:
            raise self._damaged(f"{number:010d}.jsonl is of {header['project_id']!r}, {header['scope']!r}")
        if header["seq"] != number:
            raise self._damaged(f"{number:010d}.jsonl says that it is number {header['seq']}")
        return header["kind"], records

    def _numbers(self) -> list[int]:
        return sorted(int(m[1]) for name in self._storage.names(self._directory) if (m := _NAME.fullmatch(name)))

    def _path(self, number: int) -> str:
        return f"{self._directory}/{number:010d}.jsonl"

    def _damaged(self, reason: str) -> LakeError:
        return LakeDamagedError(
            f"The manifest of {self._project_id!r} in {self._storage.url(self._directory)} is damaged: {reason}.",
            hint=_HINT,
        )


def manifest_bytes(header: Mapping[str, Any], records: Iterable[RunRecord]) -> bytes:
    """Return a manifest file: header, records by run id, and the checksums of each line and of the whole."""
    lines = [header, *(record.to_json() for record in sorted(records, key=lambda item: item.run_id))]
    # ASCII with escapes keeps even lone surrogates; allow_nan=False keeps the file JSON.
    texts = (json.dumps(line, allow_nan=False, separators=(",", ":")).encode("ascii")[:-1] for line in lines)
    data = b"".join(b'%b,"sum":"%b"}\n' % (text, _line_sum(text)) for text in texts)
    return data + _last_line(data)


def parse_manifest(raw: bytes, name: str) -> tuple[dict[str, Any], list[RunRecord]]:
    """Split a manifest file into header and records.

    Raises LakeDamagedError, naming the file, if a byte of it changed or it is not one of ours.
    """
    header, lines = _checked_lines(raw, name)
    try:
        return header, [_record(line) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise LakeDamagedError(f"Manifest {name} cannot be understood: {error!r}.", hint=_HINT) from error


def salvage_manifest(raw: bytes) -> tuple[dict[str, Any] | None, list[RunRecord], int]:
    """Return what of a damaged manifest file is whole by its own checksum: header, records, and how many are lost.

    Nothing of a file that was written before there were checksums is known to be whole.
    """
    header, records, lost = None, [], 0
    for line in raw.split(b"\n"):
        text, _, rest = line.rpartition(b',"sum":"')
        if not text or rest != _line_sum(text) + b'"}':
            lost += bool(line) and not line.startswith(b'{"sha256":')
        elif line.startswith(b'{"format":'):
            header = json.loads(line)
        else:
            records.append(_record(line))
    return header, records, lost


def _checked_lines(raw: bytes, name: str) -> tuple[dict[str, Any], list[bytes]]:
    """Return the header and the lines of records of a file that is as it was written."""
    if not raw.endswith(b"\n"):
        raise LakeDamagedError(f"Manifest {name} is cut off.", hint=_HINT)
    lines = raw[:-1].split(b"\n")
    try:
        header = json.loads(lines[0])
        found = header["format"]
        for key in ("seq", "kind", "project_id", "scope"):
            header[key]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise LakeDamagedError(f"Manifest {name} has no header: {error!r}.", hint=_HINT) from error
    if found == _WITHOUT_SUMS:
        return header, lines[1:]
    if found != FORMAT:
        text, _, rest = lines[0].rpartition(b',"sum":"')
        if text and rest != _line_sum(text) + b'"}':
            raise LakeDamagedError(f"Manifest {name} is damaged: its header is not as it was written.", hint=_HINT)
        raise LakeError(
            f"Manifest {name} has format {found!r}; this version knows {FORMAT!r}.",
            hint="Use the version of neptune_assets that wrote the lake, or a newer one.",
        )
    end = len(raw) - len(lines[-1]) - 1
    if raw[end:] != _last_line(raw[:end]):
        _, records, lost = salvage_manifest(raw)
        raise LakeDamagedError(
            f"Manifest {name} is damaged: its sha256 is not the recorded one; {len(records):,} of its records are as "
            f"they were written, {lost:,} lines are not.",
            hint=_HINT,
        )
    return header, lines[1:-1]


def _record(line: bytes) -> RunRecord:
    fields = json.loads(line)
    fields.pop("sum", None)
    return RunRecord.from_json(fields)


def _line_sum(text: bytes) -> bytes:
    """Return the checksum of one line: short, because the file as a whole has a strong one."""
    return sha256(text).hexdigest()[:16].encode("ascii")


def _last_line(data: bytes) -> bytes:
    return b'{"sha256":"%b"}\n' % sha256(data).hexdigest().encode("ascii")


def project_of_manifest(storage: Storage, directory: str) -> tuple[str, str] | None:
    """Return (project id, scope) that a manifest directory belongs to, or None if it holds no manifest."""
    for attempt in range(_ATTEMPTS):
        names = [name for name in storage.names(directory) if _NAME.fullmatch(name)]
        if not names:
            return None
        path = f"{directory}/{names[-1]}"
        try:
            header, _ = _checked_lines(storage.read(path), storage.url(path))
        except FileNotFoundError:
            if attempt == _ATTEMPTS - 1:
                raise
            continue
        return str(header["project_id"]), str(header["scope"])
    raise AssertionError("unreachable")
