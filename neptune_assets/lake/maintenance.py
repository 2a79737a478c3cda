"""What is done to a lake that was found old or damaged, apart from reading runs anew: hashes added, manifests saved."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from neptune_assets.errors import LakeDamagedError, LakeError
from neptune_assets.lake.commits import now
from neptune_assets.lake.in_place import storage_in_place
from neptune_assets.lake.integrity import hash_stream
from neptune_assets.lake.lock import project_lock
from neptune_assets.lake.manifest import Manifest, ManifestStore, parse_manifest, salvage_manifest
from neptune_assets.lake.reader import Lake, LakeProject
from neptune_assets.lake.records import PartRecord, RunRecord
from neptune_assets.lake.runs import LakeRun
from neptune_assets.schema import Scope

_TOGETHER: Final = 500
"""Runs whose hashes are committed at once."""


def upgrade_project(lake: Lake, project_id: str, scope: Scope) -> tuple[int, dict[str, str]]:
    """Give a project that was written before there were hashes its sha256 of parts and checksums of manifests.

    A run's hashes are taken only if its rows still have the content digest that was recorded. Parts are not written
    anew: their pages stay without checksums, the sha256 covers them. Returns how many runs gained hashes, and what is
    wrong with the others, by run id. Raises LakeBusyError if the project is being written.
    """
    manifest_directory = lake.layout.manifest(project_id, scope)
    unsafe = lake.settings.allow_unsafe_locks
    with project_lock(lake.storage, manifest_directory, project_id, allow_unsafe=unsafe) as lock:
        store = ManifestStore(lake.storage.guarded(lock.check), lake.layout, project_id, scope)
        manifest = store.fence(written_at=now()) if lock.taken_over else store.read()
        if manifest is None:
            return 0, {}
        project = lake.project(project_id, scope)
        damaged: dict[str, str] = {}
        waiting: list[RunRecord] = []
        count = 0
        for record in list(manifest.records.values()):
            if record.hashed:
                continue
            try:
                waiting.append(_hashed(project, record))
            except LakeError as error:
                damaged[record.run_id] = error.message
                continue
            count += 1
            if len(waiting) == _TOGETHER:
                store.commit(manifest, waiting, written_at=now())
                waiting = []
        if waiting:
            store.commit(manifest, waiting, written_at=now())
        # A checkpoint replaces all manifest files, also those of old formats.
        store.compact(manifest, written_at=now())
    project.damaged.add(damaged)
    return count, damaged


def save_manifest(lake: Lake, project_id: str, scope: Scope) -> tuple[int, int]:
    """Make a new manifest of all records that are whole, and keep the damaged files as ``<number>.damaged``.

    Returns how many records were kept and how many lines were lost. Runs that are lost are read anew by the next
    materialization if the source still has them. Raises LakeBusyError if the project is being written.
    """
    directory = lake.layout.manifest(project_id, scope)
    unsafe = lake.settings.allow_unsafe_locks
    with project_lock(lake.storage, directory, project_id, allow_unsafe=unsafe) as lock:
        storage = lake.storage.guarded(lock.check)
        store = ManifestStore(storage, lake.layout, project_id, scope)
        records: dict[str, RunRecord] = {}
        lost, last = 0, 0
        for name in storage.names(directory):
            number, _, extension = name.partition(".")
            if extension != "jsonl" or not number.isdigit():
                continue
            last = int(number)
            raw = storage.read(f"{directory}/{name}")
            try:
                header, found = parse_manifest(raw, name)
                if header["kind"] == "checkpoint":
                    records = {}
            except LakeDamagedError:
                _, found, broken = salvage_manifest(raw)
                lost += broken
                storage.put(f"{directory}/{number}.damaged", raw)
            records.update((record.run_id, record) for record in found)
        if last:
            store.compact(Manifest(project_id, dict(sorted(records.items())), sequence=last), written_at=now())
    return len(records), lost


def _hashed(project: LakeProject, record: RunRecord) -> RunRecord:
    """Return a record with the sha256 of its parts. Raises LakeError if the rows are not those of its digest."""
    new = replace(record, parts=tuple(_hashed_part(project, record, part) for part in record.parts))
    if LakeRun(project, new).content_digest() != record.digest:
        raise LakeDamagedError(
            f"The rows of run {record.run_id!r} are damaged: their digest is not the recorded {record.digest}.", hint=""
        )
    return new


def _hashed_part(project: LakeProject, record: RunRecord, part: PartRecord) -> PartRecord:
    storage, path = project.lake.storage, project.lake.layout.part(project.project_id, part.name, project.scope)
    if record.in_place is not None:
        storage = storage_in_place(part.name, project.lake.settings)
        path = storage.root
    try:
        with storage.open(path) as stream:
            _, digest = hash_stream(stream)
    except OSError as error:
        raise LakeDamagedError(
            f"Part {part.name} of run {record.run_id!r} cannot be read: {error}.", hint=""
        ) from error
    return replace(part, sha256=digest)
