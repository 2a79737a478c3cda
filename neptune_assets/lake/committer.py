"""Commit runs: stage parts, name them in the manifest, move them in place; finish or undo an interrupted commit.

The runs of one commit write their parts to one directory, ``.staging/<group>/``. After the manifest names their
generations they are moved to their final names: the old part_0 of a run goes first and the new part_0 last, because
neptune-exporter takes part_0 for the mark of a complete run. Until then readers that know the manifest find them in
staging. The views of neptune.duckdb do not know it: for the time of a move that is more than one rename, they find all
parts of the new run linked in ``.<project>/`` beside the project's directory. So a kill at any moment leaves the old
run or the new one.

On object stores a request may be carried out long after its sender lost the lease. There the names of parts hold their
generation, see :mod:`neptune_assets.lake.layout`. Parts are copied, then old ones are removed, then those in staging;
views read the newest generation that has a part_0.

What a commit costs does not depend on how many runs are in it, so small runs wait for each other.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from neptune_assets.durable import SyncPool
from neptune_assets.errors import LakeError
from neptune_assets.lake.layout import Layout, parse_part_name, part_sequence, safe_name, staging_group
from neptune_assets.lake.manifest import IssueRecord, Manifest, ManifestStore, RunRecord
from neptune_assets.lake.parts import WriteLimits, part_generation
from neptune_assets.lake.reader import digest_in_place
from neptune_assets.lake.repair import NOT_COUNTS
from neptune_assets.lake.reports import RunIssue, WriteReport
from neptune_assets.lake.statistics import RunStatistics, RunStats, StatisticsFiles
from neptune_assets.lake.storage import Storage
from neptune_assets.schema import Scope
from neptune_assets.settings import LakeSettings

_T = TypeVar("_T")


class BatchBuffer(Generic[_T]):
    """A FIFO buffer limited by item count, by bytes, and by how long its first item has waited."""

    def __init__(self, max_items: int, max_bytes: int, max_seconds: float) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._items: list[_T] = []
        self._bytes = 0
        self._since = 0.0

    def add(self, item: _T, nbytes: int) -> None:
        """Append an item that holds this many bytes."""
        if not self._items:
            self._since = time.monotonic()
        self._items.append(item)
        self._bytes += nbytes

    @property
    def ready(self) -> bool:
        """True if it is full, or its first item has waited long enough."""
        if not self._items:
            return False
        full = len(self._items) >= self._max_items or self._bytes >= self._max_bytes
        return full or time.monotonic() - self._since >= self._max_seconds

    def drain(self) -> list[_T]:
        """Remove and return all items."""
        items, self._items, self._bytes = self._items, [], 0
        return items


INTENT: Final = "intent"
COMPLETE: Final = "complete"
"""File that says that ``.<project>/`` holds all parts of some runs, to be read instead of those in the project's."""


class Staging:
    """Staging of one project: begin, promote, recover. All under the project's lock."""

    def __init__(self, storage: Storage, layout: Layout, project_id: str, scope: Scope) -> None:
        self._storage = storage
        self._project_id = project_id
        self._project = layout.project(project_id, scope)
        self._root = layout.staging(project_id, scope)
        self._manifest = layout.manifest(project_id, scope)
        self._shown = layout.shown(project_id) if scope is Scope.RUNS else None
        self._files = layout.files(project_id, scope)
        self._files_staging = layout.files_staging(project_id, scope)
        self._syncs = SyncPool()
        self._state = Manifest(project_id)
        self._group = ""
        self._number = 0
        self._begun = False

    def directory(self, generation: str) -> str:
        """Where the parts of a commit are staged."""
        return f"{self._root}/{staging_group(generation)}"

    def part_written(self, path: str) -> None:
        """Begin to make a part that was written whole durable, while others are written."""
        if self._storage.local:
            self._syncs.file(path)

    def file_placed(self, path: str) -> None:
        """Begin to make a file that has its final name durable, and the names that lead to it; :meth:`seal` waits."""
        if self._storage.local:
            self._syncs.file(path)
            while len(path) > len(self._files):
                path = path.rpartition("/")[0]
                self._syncs.directory(path)

    def new_generation(self) -> str:
        """Return the generation of a run that is to be built; the runs until the next :meth:`seal` share a commit."""
        if not self._number:
            self._group = uuid.uuid4().hex
            if not self._storage.local:
                # What a run is replaced by begins after its own commit, so it has a higher number.
                self._group = f"{self._state.sequence:010d}-{self._group[:16]}"
        self._number += 1
        return f"{self._group}.{self._number}"

    def begin(self, generation: str) -> str:
        """Make the directory that a run's parts are staged in and return it."""
        directory = self.directory(generation)
        if not self._begun:
            self._storage.make_directory(directory)
            self._begun = True
        return directory

    def note_files(self, generation: str, run_id: str) -> None:
        """Note that a run is about to store files, so that an interrupted commit is known to have left some."""
        name = f"{INTENT}-{generation.partition('.')[2]}.json"
        # Not made durable: after a power cut without it, at worst some unreferenced files stay.
        content = json.dumps({"run_id": run_id}).encode("ascii")
        self._storage.note(f"{self.directory(generation)}/{name}", content)

    def seal(self) -> str:
        """Make all that was staged since the last call durable and return its group; the next run begins another."""
        group, begun = self._group, self._begun
        self._number, self._begun = 0, False
        if begun and self._storage.local:
            self._syncs.directory(f"{self._root}/{group}")
        self._syncs.wait()
        return group

    def promote(
        self,
        records: Iterable[RunRecord],
        *,
        final: Mapping[str, Iterable[str]] | None = None,
        with_files: Collection[str] | None = None,
    ) -> None:
        """Move the parts of committed runs, all of one group, to their final names and remove what they replaced.

        May be repeated after any interruption. ``final`` are the names that parts have now, by cleaned run id; the
        directory is listed if it is left out, which takes long among many runs. ``with_files`` are the runs that may
        have files, old or new; all if left out.
        """
        staged: dict[str, set[str]] = {}
        if final is None:
            final = parts_by_run(self._storage.names(self._project))
        records, moves, old, shown = list(records), [], [], []
        for record in records:
            directory = self.directory(record.generation)
            if directory not in staged:
                staged[directory] = set(self._storage.names(directory))
            names = {part.name for part in record.parts}
            moving = staged[directory] & names
            # A final name that the new generation lacks is of the old one; so is, where parts are moved, one that is
            # still staged.
            replaced = moving if self._storage.local else set()
            gone = {name for name in final.get(safe_name(record.run_id), ()) if name in replaced or name not in names}
            moves += [(directory, name) for name in sorted(moving, key=_part_number, reverse=True)]
            if self._storage.local and len(names) == 1 and gone <= names:
                continue  # One move replaces the one part of the run.
            old += sorted(gone, key=_part_number)
            shown += [f"{directory if name in moving else self._project}/{name}" for name in sorted(names)]
        if self._storage.local:
            if moves and shown:
                self._show(shown)
            self._remove(old)
        move = self._storage.move if self._storage.local else self._storage.link
        for directory, name in moves:
            move(f"{directory}/{name}", f"{self._project}/{name}")
        if not self._storage.local:
            self._remove(old)
        elif moves and shown:
            self._unshow()
        for record in records:
            if with_files is None or record.run_id in with_files:
                self.sweep_files(record.run_id, record)
        if staged:
            # The caller removes the staging directory next, and with it the only other name of these parts.
            self._storage.sync(self._project)

    def _remove(self, parts: Iterable[str]) -> None:
        for name in parts:
            self._storage.delete(f"{self._project}/{name}")

    def _show(self, parts: Iterable[str]) -> None:
        """Link all parts of runs that are about to be moved where views look, unless an interrupted move did so."""
        if self._shown is None or self._storage.exists(f"{self._shown}/{COMPLETE}"):
            return
        self._storage.delete_tree(self._shown)
        for part in parts:
            self._storage.link(part, f"{self._shown}/{part.rpartition('/')[2]}")
        self._storage.note(f"{self._shown}/{COMPLETE}", b"")

    def _unshow(self) -> None:
        """Let views look at the final places again, where all parts are now."""
        if self._shown is not None:
            self._storage.delete(f"{self._shown}/{COMPLETE}")
            self._storage.delete_tree(self._shown)

    def clear(self, group: str) -> None:
        """Remove the directory of a commit whose parts were moved; until then the next writer moves them again."""
        self._storage.delete_tree(f"{self._root}/{group}")

    def discard(self, generation: str, run_id: str) -> None:
        """Remove the parts that one run staged and did not commit."""
        directory, prefix = self.directory(generation), safe_name(run_id)
        for name in self._storage.names(directory):
            parsed = parse_part_name(name)
            if parsed is not None and parsed[0] == prefix:
                self._storage.delete(f"{directory}/{name}")
        self._storage.delete_tree(self._files_staging)

    def close(self) -> None:
        """Let go of the threads that make parts durable."""
        self._syncs.close()

    def tidy(self) -> None:
        """Remove empty staging directories, and the one in which nothing waits for a commit."""
        self.clear(self._group)
        for directory in (self._root, self._files_staging):
            self._storage.prune(directory)

    def remove_copy(self, run_id: str) -> None:
        """Remove all files and final parts of a run: it is read in place from now on.

        Parts go last: as long as one is there, :meth:`recover` does this again.
        """
        self.sweep_files(run_id, None)
        names = parts_by_run(self._storage.names(self._project)).get(safe_name(run_id), ())
        self._remove(sorted(names, key=_part_number))

    def sweep_files(self, run_id: str, record: RunRecord | None) -> None:
        """Remove the files of a run that its record does not name."""
        directory = f"{self._files}/{safe_name(run_id)}"
        keep = set()
        if record is not None and record.in_place is None:
            keep = {f"{self._files}/{item.path}" for item in record.files}
        removed = False
        for path in self._storage.walk(directory):
            if path not in keep:
                self._storage.delete(path)
                removed = True
        if removed or (not keep and self._storage.local):
            self._storage.prune(directory)

    def left_behind(self) -> bool:
        """True if an interrupted writer, or one that is still at work, staged something."""
        return bool(self._groups())

    def recover(self, manifest: Manifest) -> list[str]:
        """Finish or undo what an interrupted writer left behind. Returns run ids that were finished.

        To be called before anything is built: later generations are numbered by this snapshot, which grows.
        """
        self._state = manifest
        committed: dict[str, list[RunRecord]] = {}
        for record in manifest.records.values():
            committed.setdefault(staging_group(record.generation), []).append(record)
        finished: list[str] = []
        self._storage.delete_tree(self._files_staging)
        for name in self._storage.names(self._manifest):
            if name.endswith(".tmp"):
                self._storage.delete(f"{self._manifest}/{name}")
        for group in self._groups():
            records = committed.get(group, [])
            for run_id in self._noted(group):
                self.sweep_files(run_id, manifest.records.get(run_id))
            finished.extend(record.run_id for record in records)
            self.promote(records)
            self.clear(group)
        self._unshow()
        in_place = {
            safe_name(run_id): run_id for run_id, record in manifest.records.items() if record.in_place is not None
        }
        if in_place:
            copied = {parsed[0] for name in self._storage.names(self._project) if (parsed := parse_part_name(name))}
            for prefix in sorted(copied & in_place.keys()):
                self.remove_copy(in_place[prefix])
        return finished

    def present(self, manifest: Manifest) -> tuple[dict[str, int], list[str]]:
        """Return all final parts with their sizes, and those of them that this lake wrote but no record names.

        Parts that newer ones of their run replaced are removed: a request to copy them was carried out late.
        Raises LakeError if there are parts of somebody else: nothing of theirs is ever touched.
        """
        sizes = {name: size for name, size in self._storage.sizes(self._project).items() if parse_part_name(name)}
        known = {part.name for record in manifest.records.values() if record.in_place is None for part in record.parts}
        strays = sorted(name for name in sizes if name not in known)
        foreign = [name for name in strays if not self._ours(name)]
        if foreign:
            raise LakeError(
                f"{self._storage.url(self._project)} holds {len(foreign):,} Parquet parts that this lake did not "
                f"write, such as {foreign[0]}: lake.root already holds a foreign export.",
                hint="Set lake.root to an empty place (source.export.mode in_place reads an export where it is), "
                "or move these parts away.",
            )
        replaced = superseded(strays, manifest.records.values())
        self._remove(sorted(replaced))
        for name in replaced:
            del sizes[name]
        return sizes, [name for name in strays if name not in replaced]

    def _groups(self) -> list[str]:
        if self._storage.local:
            return self._storage.names(self._root)
        prefix = f"{self._root}/"
        return sorted({path.removeprefix(prefix).split("/", 1)[0] for path in self._storage.walk(self._root)})

    def _noted(self, group: str) -> list[str]:
        found = []
        for name in self._storage.names(f"{self._root}/{group}"):
            if name.startswith(INTENT):
                try:
                    note = json.loads(self._storage.read(f"{self._root}/{group}/{name}"))
                except ValueError:
                    # A power cut can leave it empty: at worst some unreferenced files stay.
                    continue
                found.append(str(note["run_id"]))
        return found

    def _ours(self, name: str) -> bool:
        try:
            with self._storage.open(f"{self._project}/{name}") as stream:
                return part_generation(pq.read_metadata(stream)) is not None
        except (OSError, pa.ArrowException):
            return False


def parts_by_run(names: Iterable[str]) -> dict[str, set[str]]:
    """Return the names that are of parts, by the cleaned name of their run."""
    found: dict[str, set[str]] = {}
    for name in names:
        parsed = parse_part_name(name)
        if parsed is not None:
            found.setdefault(parsed[0], set()).add(name)
    return found


def superseded(names: Iterable[str], records: Iterable[RunRecord]) -> set[str]:
    """Return the parts whose run has newer ones by their names, which only those on object stores tell."""
    newest = {
        safe_name(record.run_id): max((part_sequence(part.name) for part in record.parts), default=-1)
        for record in records
        if record.in_place is None
    }
    by_run = parts_by_run(names)
    return {name for run in by_run.keys() & newest for name in by_run[run] if 0 <= part_sequence(name) < newest[run]}


def _part_number(name: str) -> int:
    parsed = parse_part_name(name)
    return parsed[1] if parsed else -1


@dataclass(frozen=True, slots=True)
class _Change:
    """One run that waits for its commit."""

    record: RunRecord
    old: RunRecord | None
    built: str | None
    """The generation that was staged for it, with other content than the lake has; None if its parts stay."""
    facts: RunStats | None = None
    counted: bool = True
    """Whether it counts as read: a complete state that only was marked as stale does not."""


class Committer:
    """Commits runs of one project while the lock is held.

    ``present`` maps the names of final parts to their sizes and is kept up to date. ``holds`` returns whether the
    parts and files of a record are in the lake as they were written.
    """

    def __init__(
        self,
        settings: LakeSettings,
        manifest: Manifest,
        store: ManifestStore,
        staging: Staging,
        statistics: StatisticsFiles | None,
        report: WriteReport,
        present: dict[str, int],
        holds: Callable[[RunRecord], bool],
        *,
        limits: WriteLimits,
        full_refresh: bool,
    ) -> None:
        self._settings = settings
        self._manifest = manifest
        self._store = store
        self._staging = staging
        self._statistics = statistics
        self._report = report
        self.present = present
        self._holds = holds
        self._names = parts_by_run(present)
        self._full_refresh = full_refresh
        self._buffer = BatchBuffer[_Change](limits.commit_runs, limits.commit_bytes, limits.wait_seconds)

    def commit(self, record: RunRecord, statistics: RunStatistics) -> None:
        """Commit a run that was built, with the ones before it or with the next ones; each run at most once."""
        old = self._manifest.records.get(record.run_id)
        if old is not None and self._outranks(old, record):
            self._keep_complete(old, record)
            return
        facts = None
        if self._statistics is not None:
            facts = statistics.facts(record.run_id, record.digest)
        if (
            old is not None
            and not self._full_refresh
            and same_content(old, record)
            and (old.in_place is not None or self._holds(old))
        ):
            if record.in_place is None:
                self._staging.discard(record.generation, record.run_id)
                record = keep_parts(old, record)
            self._add(_Change(record, old, None, facts))
        else:
            self._add(_Change(record, old, record.generation, facts))

    def discard(self, run_id: str, generation: str) -> None:
        """Remove what was staged and stored for a run that could not be built."""
        self._staging.discard(generation, run_id)
        self._staging.sweep_files(run_id, self._manifest.records.get(run_id))

    def tick(self) -> None:
        """Commit what waits if it is enough, or has waited long enough."""
        if self._buffer.ready:
            self.flush()

    def flush(self) -> None:
        """Commit all that waits. If that fails, these runs stay as they were."""
        changes = self._buffer.drain()
        if not changes:
            return
        # If this fails, nothing of it is removed: others may have the lock, or the commit was made and its answer lost.
        # What it leaves in staging is finished or removed by the next writer.
        group = self._staging.seal()
        self._store.commit(self._manifest, [change.record for change in changes], written_at=now())
        self._replace([change for change in changes if change.built is not None])
        self._staging.clear(group)
        for change in changes:
            if change.counted:
                self._note(change.record, kept=change.built is None)
            if change.facts is not None and self._statistics is not None:
                self._statistics.add(change.facts)

    def reads_the_same(self, record: RunRecord) -> bool:
        """True if reading a run in place, without its source, gives the rows that the source gave."""
        try:
            return digest_in_place(record, self._report.project_id, self._settings) == record.digest
        except (LakeError, ValueError, OSError, pa.ArrowException):
            return False

    def _outranks(self, old: RunRecord, new: RunRecord) -> bool:
        """True if the complete state that the lake holds must not give way to a partial one."""
        if self._full_refresh or not old.complete or new.complete:
            return False
        return self._holds(old) if old.in_place is None else self.reads_the_same(old)

    def _keep_complete(self, old: RunRecord, new: RunRecord) -> None:
        """Discard a partial reading, leave the run as it is, and record why it is not newer."""
        self.discard(old.run_id, new.generation)
        kept = replace(old, stale=stale_reason(new.errors), vanished_at=None)
        if kept != old:
            self._add(_Change(kept, old, None, counted=False))
        for issue in new.errors:
            message = f"{issue.message} The complete state read before was kept."
            self._report.issues.append(RunIssue(old.run_id, message, issue.attribute_path, issue.attribute_type))

    def _add(self, change: _Change) -> None:
        nbytes = 0 if change.facts is None else change.facts.nbytes
        if change.built is not None and change.record.in_place is None:
            nbytes += sum(part.bytes for part in change.record.parts)
        self._buffer.add(change, nbytes)
        self.tick()

    def _replace(self, changes: list[_Change]) -> None:
        """Move the parts of committed runs to their places, and remove copies of runs that are read in place now."""
        staged = [change.record for change in changes if change.record.in_place is None]
        with_files = {
            change.record.run_id
            for change in changes
            if change.record.files or (change.old is not None and change.old.files)
        }
        self._staging.promote(staged, final=self._names, with_files=with_files)
        for record in staged:
            self._names[safe_name(record.run_id)] = {part.name for part in record.parts}
        for change in changes:
            if change.record.in_place is not None and change.old is not None and change.old.in_place is None:
                self._staging.remove_copy(change.record.run_id)
                self._names.pop(safe_name(change.record.run_id), None)
            self.present.update((part.name, part.bytes) for part in change.record.parts)

    def _note(self, record: RunRecord, *, kept: bool) -> None:
        report = self._report
        if kept:
            report.unchanged_content.append(record.run_id)
        elif record.in_place is None:
            report.bytes += sum(part.bytes for part in record.parts) + sum(item.size for item in record.files)
            report.files += len(record.files)
        if not kept:
            for kind, count in record.rows.items():
                report.rows[kind] = report.rows.get(kind, 0) + count
        for name, count in record.repairs.items():
            if name not in NOT_COUNTS:
                report.repairs[name] = report.repairs.get(name, 0) + count
        for issue in (*record.errors, *record.notes):
            report.issues.append(RunIssue(record.run_id, issue.message, issue.attribute_path, issue.attribute_type))


def same_content(old: RunRecord, new: RunRecord) -> bool:
    """True if both records describe the same rows and files, so that the old parts can stay."""
    return (
        old.digest == new.digest
        and old.rows == new.rows
        and old.in_place == new.in_place
        and set(old.files) == set(new.files)
    )


def keep_parts(old: RunRecord, new: RunRecord) -> RunRecord:
    """Return the new record, pointing at the old parts."""
    return replace(new, generation=old.generation, parts=old.parts, files=old.files)


def stale_reason(errors: Sequence[IssueRecord]) -> str:
    """Return why a state of a run was not taken, in one line of bounded length."""
    reasons = [
        f"{error.attribute_path}: {error.message}" if error.attribute_path else error.message for error in errors
    ]
    rest = f" and {len(reasons) - 5:,} more" if len(reasons) > 5 else ""
    return "; ".join(message[:1_000] for message in reasons[:5]) + rest


def now() -> str:
    """Return the present moment as the manifest writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
