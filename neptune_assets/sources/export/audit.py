"""What is wrong with a project as a whole: files nobody names, files that several rows name, classes left out."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.schema import CLASS_TYPES, FILE_TYPES
from neptune_assets.sources.export.directory import RunParts
from neptune_assets.sources.export.heading import Heading
from neptune_assets.sources.export.parts import PartError, open_part
from neptune_assets.sources.export.roots import Root
from neptune_assets.sources.protocol import Issue

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


def missing_classes(headings: Iterable[Heading]) -> list[Issue]:
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
