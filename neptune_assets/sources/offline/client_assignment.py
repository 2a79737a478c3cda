"""What a replayed log of neptune-client leaves in attributes, put into the state of a run; points of series aside."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from neptune_assets.schema import AttributeType
from neptune_assets.sources.offline.client_layout import EPOCH
from neptune_assets.sources.offline.client_operations import Plan, SeriesPlan, Tracked, Upload
from neptune_assets.sources.offline.client_references import References
from neptune_assets.sources.offline.state import RunState
from neptune_assets.sources.values import printable_names


def assign(plan: Plan, state: RunState, references: References, run_id: str, created: datetime | None) -> None:
    """Put a plan's attributes into the state, points aside, and tell what the lake has no place for.

    ``run_id`` and ``created`` are assigned to ``sys/id`` and ``sys/creation_time`` where the log does not say them.
    """
    for path, kinds in plan.attributes.items():
        for kind, value in kinds.items():
            if isinstance(value, SeriesPlan):
                if value.described:
                    state.note(
                        f"Of {path!r}, {value.described} images have a name or description, "
                        "which the lake has no column for.",
                        path,
                        kind,
                    )
            elif not isinstance(value, Upload | list | Tracked):
                state.assign(path, kind, value)
            elif state.rows.wants(kind, path):
                _assign_file(path, kind, value, state, references)
    for path in sorted(plan.configured):
        state.note(f"The range or unit configured for {path!r} is not kept; the lake has no column for it.", path)
    if state.assigned("sys/id", AttributeType.STRING) is None:
        state.assign("sys/id", AttributeType.STRING, run_id)
    if created is not None and state.assigned("sys/creation_time", AttributeType.DATETIME) is None:
        state.assign("sys/creation_time", AttributeType.DATETIME, (created - EPOCH) // timedelta(milliseconds=1))


def _assign_file(path: str, kind: AttributeType, value: Any, state: RunState, references: References) -> None:
    if isinstance(value, Upload):
        state.assign(path, kind, references.upload(value))
        _note_change(path, value, state)
        return
    if isinstance(value, Tracked):
        found, elsewhere, missing = references.tracked(value)
        for item in elsewhere:
            what = f"tracks {item.location}" if item.location else f"was assigned by the hash {item.hash}"
            state.note(
                f"The artifact {path!r} {what}. A list of its files was never recorded, so that is all there is of it.",
                path,
                kind,
            )
        there = bool(found or elsewhere) or not value.entries
    else:
        members, missing = references.members(value)
        there = bool(members)
        if any(shown != name for name, shown in printable_names(members).items()):
            state.note(
                f"The file set {path!r} has names that are not UTF-8; its names are kept with escapes like \\xe9, and "
                "with backslashes doubled.",
                path,
                kind,
            )
    for message in missing:
        state.error(message, path, kind)
    if there:
        state.assign(path, kind, references.collection(kind, path))


def _note_change(path: str, upload: Upload, state: RunState) -> None:
    """Say so if a file that was named, not copied, is newer than the record that names it."""
    recorded = upload.operation.get("file_path")
    if not isinstance(recorded, str) or upload.at is None:
        return
    try:
        changed = Path(recorded).stat().st_mtime
    except (OSError, ValueError):
        return  # gone: opening it says so
    if changed > upload.at + 1:
        state.note(f"{recorded} was changed after it was logged as {path!r}; it is taken as it is now.", path)
