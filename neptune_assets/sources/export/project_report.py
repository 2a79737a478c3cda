"""What is wrong with a project of an export as a whole: its error report, files without owner, classes left out.

The exporter writes ``neptune_exporter_errors.jsonl`` to the directory it was started in, by default two levels above
the data; it is looked for in the data directory and the two above. ``source.export.error_report`` names another place.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.errors import FileGoneError, SourceError
from neptune_assets.schema import CLASS_TYPES, FILE_TYPES, AttributeType
from neptune_assets.sources.export.parts import PartError, open_part
from neptune_assets.sources.export.projects import RunHeader, RunParts
from neptune_assets.sources.export.roots import Root
from neptune_assets.sources.filters import Selection
from neptune_assets.sources.protocol import Issue

FILE_NAME: Final = "neptune_exporter_errors.jsonl"


@dataclass(frozen=True, slots=True)
class Failure:
    """One download that failed: an attribute of a run, or with no attribute, a whole class of them."""

    attribute_path: str | None
    attribute_type: str | None
    exception: str


@dataclass(slots=True)
class ErrorReport:
    """All failures by project and run, the places they were read from, and lines that could not be read."""

    failures: dict[tuple[str, str], list[Failure]] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    unreadable: list[Issue] = field(default_factory=list)

    def projects(self) -> set[str]:
        """Return the projects that the report names."""
        return {project_id for project_id, _ in self.failures}

    def runs(self, project_id: str) -> set[str]:
        """Return the runs of a project that the report names."""
        return {run_id for project, run_id in self.failures if project == project_id}

    def mark(self, project_id: str, run_id: str) -> str:
        """Hash over one run's failures, for its fingerprint."""
        failures = self.failures.get((project_id, run_id), [])
        text = json.dumps([[item.attribute_path, item.attribute_type, item.exception] for item in failures])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def issues(self, project_id: str, run_id: str, selection: Selection) -> list[Issue]:
        """Return what failed of one run, without attributes that filters leave out."""
        return [
            Issue(
                f"The exporter could not download {failure.attribute_path or 'some attributes'} of {run_id}: "
                f"{failure.exception}. Export the run again; if that was done, take the line out of {self.places[0]}.",
                failure.attribute_path,
                failure.attribute_type,
            )
            for failure in dict.fromkeys(self.failures.get((project_id, run_id), []))
            if _wanted(failure, selection)
        ]


def read_error_report(root: Root, named: Root | None = None) -> ErrorReport:
    """Read every error report near the data directory, and the one that settings name.

    Raises SourceError if the one that settings name is not there.
    """
    report = ErrorReport()
    above = root.base.rsplit("/", 1)[0]
    for directory in dict.fromkeys((root.base, above, above.rsplit("/", 1)[0])):
        path = f"{directory}/{FILE_NAME}"
        entry = root.describe(path) if directory else None
        if entry is not None and entry.unread is not None:
            report.unreadable.append(Issue(entry.unread))
        elif entry is not None and not entry.is_directory:
            _read(root, path, report)
    if named is not None and named.address(named.base) not in map(root.address, report.places):
        if not named.filesystem.isfile(named.base):
            raise SourceError(
                f"There is no error report at {named.url}.",
                hint="Correct source.export.error_report, or leave it out if the exporter wrote none.",
            )
        _read(named, named.base, report)
    return report


def _read(root: Root, path: str, report: ErrorReport) -> None:
    report.places.append(path)
    try:
        stream = root.filesystem.open(path, "rb")
    except FileNotFoundError as error:
        raise FileGoneError(f"{path} went away while it was read.", hint="Try again.") from error
    with stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
                key = (_text(fields["project_id"]), _text(fields["run_id"]))
                failure = Failure(
                    _optional(fields.get("attribute_path")),
                    _optional(fields.get("attribute_type")),
                    _text(fields.get("exception") or "unknown error"),
                )
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                report.unreadable.append(
                    Issue(f"Line {number} of {path} is not a valid error report; what failed there is unknown.")
                )
                continue
            report.failures.setdefault(key, []).append(failure)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _optional(value: object) -> str | None:
    return None if value is None else _text(value)


def _wanted(failure: Failure, selection: Selection) -> bool:
    if failure.attribute_path is None:
        return True
    types = [failure.attribute_type] if failure.attribute_type else list(AttributeType)
    return any(selection.attribute(failure.attribute_path, kind) for kind in types)


_FILES: Final = frozenset(str(kind) for kind in FILE_TYPES)
_COLUMNS: Final = ("run_id", "attribute_path", "attribute_type", "file_value")
_NAMED: Final = 1_000
"""Stray files named one by one; further ones are counted."""


def named_files(root: Root, runs: Iterable[RunParts]) -> tuple[dict[str, tuple[str, str]], list[Issue]]:
    """Return every file reference of the runs with a run and attribute that name it, and what several runs name.

    Only row groups that can hold files are read. Parts that cannot be read are passed over: their run reports them.
    """
    owners: dict[str, tuple[str, str]] = {}
    shared: list[Issue] = []
    for run in runs:
        for entry in run.parts.values():
            try:
                with open_part(root, entry) as part:
                    groups = [group for group in part.row_groups if part.may_hold(group, "attribute_type", _FILES)]
                    for batch in part.batches(groups, _COLUMNS):
                        _collect(batch, owners, shared)
            except PartError:
                continue
    return owners, shared


def stray_files(root: Root, directory: str, owners: Mapping[str, tuple[str, str]]) -> list[Issue]:
    """Return the files below ``directory`` of the files root that no row names, nor lies in a named directory."""
    named = {_normal(reference) for reference in owners}
    stray: list[Issue] = []
    count = 0
    if not any(entry.is_directory and entry.name == directory for entry in root.entries() or []):
        return stray
    for inside, entry in root.walk(root.locate(directory)):
        segments = _normal(inside).split("/")
        if any("/".join(segments[:depth]) in named for depth in range(1, len(segments) + 1)) or inside in owners:
            continue
        count += 1
        if count <= _NAMED:
            stray.append(Issue(f"No row names the file {entry.path}; it is not taken.", notice=True))
    if count > _NAMED:
        stray.append(Issue(f"No row names {count - _NAMED} more files below {root.url}/{directory}.", notice=True))
    return stray


def missing_classes(headings: Iterable[RunHeader]) -> list[Issue]:
    """Return the classes of attributes that no run of the project has."""
    readable = [heading for heading in headings if heading.types]
    if not readable:
        return []
    present = frozenset().union(*(heading.types for heading in readable))
    return [
        Issue(
            f"No run of the project has any attribute of class {name}. If the exporter ran with --classes or "
            "--exclude, export them too.",
            notice=True,
        )
        for name, types in CLASS_TYPES.items()
        if not present & types
    ]


def _collect(batch: pa.RecordBatch, owners: dict[str, tuple[str, str]], shared: list[Issue]) -> None:
    rows = batch.filter(pc.is_in(batch["attribute_type"], pa.array(sorted(_FILES))))
    paths = pc.struct_field(rows["file_value"], "path").to_pylist()
    columns = (rows[name].to_pylist() for name in ("run_id", "attribute_path"))
    for run_id, attribute, path in zip(*columns, paths, strict=True):
        if path is None:
            continue
        other_run, other_attribute = owners.setdefault(path, (run_id, attribute))
        # Two rows of one run are that run's own note.
        if other_run != run_id:
            shared.append(
                Issue(
                    f"{attribute} of {run_id} and {other_attribute} of {other_run} both name the file {path}, so "
                    "one of them has lost its own.",
                    attribute,
                    notice=True,
                )
            )


def _normal(reference: str) -> str:
    """Return a path as it is compared: forward slashes, and letters in Unicode form C."""
    forward = unicodedata.normalize("NFC", reference).replace("\\", "/")
    return "/".join(segment for segment in forward.split("/") if segment not in {"", "."})
