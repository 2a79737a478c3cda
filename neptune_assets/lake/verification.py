"""Read a whole lake again and compare every byte with what was recorded; add missing hashes, save damaged manifests.

The unit is a run: its parts and its files. When each was verified last is kept beside the manifest
(``.manifest/verified.json``), so that a part of a lake can be read each day, what was read longest ago first, and an
interrupted reading goes on where it ended.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final, Literal

from neptune_assets.errors import LakeDamagedError, LakeError, SettingsError
from neptune_assets.lake.committer import now, superseded
from neptune_assets.lake.integrity import hash_stream
from neptune_assets.lake.layout import MANIFEST, parse_part_name
from neptune_assets.lake.lock import project_lock
from neptune_assets.lake.manifest import (
    Manifest,
    ManifestStore,
    PartRecord,
    RunRecord,
    parse_manifest,
    project_of_manifest,
    salvage_manifest,
)
from neptune_assets.lake.reader import Lake, LakeProject, LakeRun, external_storage
from neptune_assets.schema import Scope

Kind = Literal["manifest", "part", "file", "stray", "statistics", "table", "receipts", "database"]

_SAVE_SECONDS: Final = 30.0
_SUBSET: Final = re.compile(
    r"(?P<part>[0-9]+)/(?P<of>[0-9]+)|(?P<share>[0-9]+(?:\.[0-9]+)?)%|(?P<size>[0-9]+)(?P<unit>[KMGT]?)"
)


@dataclass(frozen=True, slots=True)
class Damage:
    """One part, file, table or manifest that is not as it was recorded."""

    project_id: str
    scope: Scope
    run_id: str | None
    """None for damage that is not of one run."""
    kind: Kind
    message: str


@dataclass(slots=True)
class VerifyReport:
    """What was read and what was found. ``notes`` say what could not be compared, and why; they are not damage."""

    runs: int = 0
    runs_total: int = 0
    rows: int = 0
    parts: int = 0
    files: int = 0
    bytes: int = 0
    bytes_total: int = 0
    """Bytes of the runs that were chosen."""
    projects: int = 0
    seconds: float = 0.0
    damaged: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verified_through: dict[tuple[str, Scope], str | None] = field(default_factory=dict)
    """By project: when the run that was verified longest ago was verified; None if one never was."""


@dataclass(frozen=True, slots=True)
class Subset:
    """Which runs to read: ``1/30`` by the hash of their names, ``5%`` or ``10G`` those read longest ago."""

    part: int = 1
    of: int = 1
    share: float | None = None
    size: int | None = None

    @classmethod
    def parse(cls, text: str) -> Subset:
        """Read a subset as restic writes it. Raises SettingsError."""
        match = _SUBSET.fullmatch(text.strip())
        if match is not None:
            if match["of"] and 1 <= int(match["part"]) <= int(match["of"]):
                return cls(part=int(match["part"]), of=int(match["of"]))
            if match["share"] and 0 < float(match["share"]) <= 100:
                return cls(share=float(match["share"]) / 100)
            if match["size"] and int(match["size"]):
                return cls(size=int(match["size"]) << 10 * " KMGT".index(match["unit"] or " "))
        raise SettingsError(
            f"{text!r} is not a valid subset of a lake.", hint="Give one such as 1/30, 5% or 10G, as to restic check."
        )

    def choose(self, runs: Sequence[LakeRun], verified: VerifiedRuns) -> list[LakeRun]:
        """Return the runs of a project to read, those that were verified longest ago first."""
        chosen = [run for run in runs if self.of == 1 or _bucket(run, self.of) == self.part - 1]
        chosen.sort(key=lambda run: (verified.when(run.record) or "", run.run_id))
        if self.share is None and self.size is None:
            return chosen
        limit = self.size if self.size is not None else sum(map(run_bytes, chosen)) * (self.share or 0.0)
        taken, total = [], 0
        for run in chosen:
            taken.append(run)
            total += run_bytes(run)
            if total >= limit:
                break
        return taken


class VerifiedRuns:
    """When each run of a project was verified, and of which commit it was then."""

    def __init__(self, project: LakeProject) -> None:
        lake = project.lake
        self._storage = lake.storage
        self._path = f"{lake.layout.manifest(project.project_id, project.scope)}/verified.json"
        self._runs: dict[str, list[str]] = {}
        try:
            found = json.loads(self._storage.read(self._path))
            self._runs = {str(run_id): [str(value) for value in values] for run_id, values in found.items()}
        except FileNotFoundError:
            pass
        except (ValueError, AttributeError, TypeError):
            # Only when runs were read is lost: all of them are read again.
            self._runs = {}

    def when(self, record: RunRecord) -> str | None:
        """Return when a run was verified as it is now; None if it never was."""
        known = self._runs.get(record.run_id)
        return known[1] if known is not None and len(known) == 2 and known[0] == record.generation else None

    def note(self, record: RunRecord, moment: str) -> None:
        """Note that a run is whole at a moment."""
        self._runs[record.run_id] = [record.generation, moment]

    def forget(self, record: RunRecord) -> None:
        """Note that a run is not whole."""
        self._runs.pop(record.run_id, None)

    def save(self, records: dict[str, RunRecord]) -> None:
        """Write the notes of runs that are still there. Raises OSError if the lake cannot be written."""
        kept = {run_id: values for run_id, values in self._runs.items() if run_id in records}
        self._storage.put(self._path, json.dumps(kept, sort_keys=True).encode("ascii"))


class Verification:
    """Verifies projects of one lake; ``rows`` also decodes all rows and compares their content digests.

    ``progress`` is called with the report whenever bytes were read.
    """

    def __init__(
        self, lake: Lake, *, rows: bool = False, progress: Callable[[VerifyReport], None] | None = None
    ) -> None:
        self._lake = lake
        self._rows = rows
        self._progress = progress or (lambda _: None)
        self.report = VerifyReport()
        self._started = time.monotonic()

    def run(
        self,
        projects: Sequence[tuple[str, Scope]],
        subset: Subset | None = None,
        *,
        only: Collection[str] | None = None,
    ) -> VerifyReport:
        """Verify these projects, of each the runs of the subset, and note what is damaged for the next materialization.

        ``only`` leaves out all other runs.
        Damage is in the report. Raises LakeError or OSError if the lake cannot be read at all.
        """
        subset = subset or Subset()
        chosen: list[tuple[LakeProject, VerifiedRuns, list[LakeRun]]] = []
        for project_id, scope in projects:
            self.report.projects += 1
            try:
                project = self._lake.project(project_id, scope)
            except LakeDamagedError as error:
                self._damage(project_id, scope, None, "manifest", error.message)
                continue
            verified = VerifiedRuns(project)
            runs = subset.choose([run for run in project.runs() if only is None or run.run_id in only], verified)
            self.report.runs_total += len(runs)
            self.report.bytes_total += sum(map(run_bytes, runs))
            chosen.append((project, verified, runs))
        for project, verified, runs in chosen:
            self._project(project, verified, runs)
        self.report.seconds = time.monotonic() - self._started
        return self.report

    def _project(self, project: LakeProject, verified: VerifiedRuns, runs: Sequence[LakeRun]) -> None:
        records = project.records()
        found: dict[str, str] = {}
        whole: list[str] = []
        saved = time.monotonic()
        try:
            for run in runs:
                wrong = self._run(run)
                if wrong:
                    found[run.run_id] = wrong[0]
                    verified.forget(run.record)
                else:
                    whole.append(run.run_id)
                    verified.note(run.record, datetime.now(UTC).isoformat(timespec="seconds"))
                if time.monotonic() - saved > _SAVE_SECONDS:
                    self._save(project, verified, found, whole)
                    saved = time.monotonic()
        finally:
            self._save(project, verified, found, whole)
        self._strays(project)
        old = sum(not record.hashed for record in records.values())
        if old:
            self._note(project, f"{old:,} runs were written before parts were hashed; their rows were compared instead")
        moments = [verified.when(record) for record in records.values()]
        oldest = None if None in moments else min((moment for moment in moments if moment), default=None)
        self.report.verified_through[project.project_id, project.scope] = oldest

    def _save(self, project: LakeProject, verified: VerifiedRuns, found: dict[str, str], whole: list[str]) -> None:
        try:
            verified.save(project.records())
            project.damaged.add(found)
            project.damaged.remove(whole)
        except OSError as error:
            self._note(project, f"what was verified cannot be noted in the lake: {error}")

    def _run(self, run: LakeRun) -> list[str]:
        """Return what is wrong with a run, which is in the report already."""
        wrong: list[tuple[Kind, str]] = []
        self.report.runs += 1
        try:
            try:
                self._parts(run)
            except LakeDamagedError:
                raise
            except LakeError as error:
                # It was materialized again in the meantime: what is there now counts.
                record = run.project.current_record(run.run_id)
                if not error.transient or record is None:
                    raise
                run = LakeRun(run.project, record)
                self._parts(run)
        except LakeError as error:
            # Bytes that the disk does not give back are as lost as bytes that changed.
            wrong.append(("part", error.message))
        for item in run.record.files:
            problem = run.file_damage(item, self._read)
            self.report.files += 1
            if problem is not None:
                wrong.append(("file", problem))
        for kind, message in wrong:
            self._damage(run.project_id, run.project.scope, run.run_id, kind, message)
        return [message for _, message in wrong]

    def _parts(self, run: LakeRun) -> None:
        run.check()
        if self._rows and run.record.hashed and run.content_digest() != run.record.digest:
            raise LakeDamagedError(
                f"The rows of run {run.run_id!r} are not those of its content digest {run.record.digest}.", hint=""
            )
        self.report.rows += run.record.total_rows
        self.report.parts += len(run.record.parts)
        self._read(sum(part.bytes for part in run.record.parts))

    def _read(self, count: int) -> None:
        self.report.bytes += count
        self.report.seconds = time.monotonic() - self._started
        self._progress(self.report)

    def _strays(self, project: LakeProject) -> None:
        """Find parts that no record names: with an old manifest put back, those of the newer commits remain."""
        storage, layout = self._lake.storage, self._lake.layout
        present = storage.names(layout.project(project.project_id, project.scope))
        # Listed first: what a writer commits meanwhile is in the manifest by now.
        now = ManifestStore(storage, layout, project.project_id, project.scope).read()
        records = list(now.records.values()) if now else []
        known = {part.name for record in records for part in record.parts}
        strays = [name for name in present if parse_part_name(name) is not None and name not in known]
        replaced = superseded(strays, records)
        if replaced:
            self._note(project, f"{len(replaced):,} parts were replaced and wait for the next materialization to go")
        for name in strays:
            if name not in replaced:
                self._damage(
                    project.project_id,
                    project.scope,
                    None,
                    "stray",
                    f"Part {name} belongs to no run of the manifest, which may be an older one that was put back.",
                )

    def _damage(self, project_id: str, scope: Scope, run_id: str | None, kind: Kind, message: str) -> None:
        self.report.damaged.append(Damage(project_id, scope, run_id, kind, message))

    def _note(self, project: LakeProject, message: str) -> None:
        self.report.notes.append(f"{project.project_id} ({project.scope}): {message}.")


def projects_of(lake: Lake) -> Iterator[tuple[str, Scope] | Damage]:
    """Yield every project of a lake by scope, or the damage of a manifest that does not say whose it is."""
    for scope in Scope:
        base, inner = lake.layout.base(scope), "" if scope is Scope.RUNS else f"/{scope.value}"
        for name in lake.storage.names(base):
            directory = f"{base}/{name}{inner}/{MANIFEST}"
            try:
                known = project_of_manifest(lake.storage, directory)
            except LakeError as error:
                yield Damage(name, scope, None, "manifest", error.message)
                continue
            if known is not None:
                yield known[0], scope


def has_project(lake: Lake, project_id: str, scope: Scope) -> bool:
    """True if the lake holds anything of a project in this scope, whole or not."""
    return any(name.endswith(".jsonl") for name in lake.storage.names(lake.layout.manifest(project_id, scope)))


def run_bytes(run: LakeRun) -> int:
    """Return the bytes of parts and files that verifying a run reads."""
    return sum(part.bytes for part in run.record.parts) + sum(item.size for item in run.record.files)


def _bucket(run: LakeRun, of: int) -> int:
    name = f"{run.project_id}\n{run.project.scope.value}\n{run.run_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(sha256(name).digest()[:8], "big") % of


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
        storage = external_storage(part.name, project.lake.settings)
        path = storage.root
    try:
        with storage.open(path) as stream:
            _, digest = hash_stream(stream)
    except OSError as error:
        raise LakeDamagedError(
            f"Part {part.name} of run {record.run_id!r} cannot be read: {error}.", hint=""
        ) from error
    return replace(part, sha256=digest)
