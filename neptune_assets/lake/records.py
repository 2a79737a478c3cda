"""What the manifest says of a run: state, counts, digest, parts, files, errors. JSON in, JSON out, nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

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
    """One stored file: which attribute (and step, in micro-steps) it belongs to, where it lies, size and sha256.

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
    """One thing wrong with a run, as reported by the source or met while writing."""

    message: str
    attribute_path: str | None = None
    attribute_type: str | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run in the manifest. Partial is never complete.

    ``digest`` is the content hash over all rows and file contents (hex), independent of parts, row order and storage.
    ``rows`` and ``attributes`` count by attribute type; ``promised`` is what the source said there would be.
    ``generation`` names the commit the parts belong to and stands in each part's Parquet metadata.
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
    """Files root of an export that is read in place; None for runs whose parts lie in the lake."""
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
