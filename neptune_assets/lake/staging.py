"""How a commit becomes visible, and how a commit that was cut short is finished or undone.

Parts are written to ``.staging/<generation>/``. After the manifest names the generation they are moved to their final
names: the old part_0 goes first and the new part_0 comes last, because neptune-exporter takes part_0 for the mark of
a complete run. Until then readers that know the manifest find them in staging. So a kill at any moment leaves the
old run or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from neptune_assets.errors import LakeError
from neptune_assets.lake.layout import Layout, parse_part_name, safe_name
from neptune_assets.lake.manifest import Manifest
from neptune_assets.lake.parts import part_generation
from neptune_assets.lake.records import RunRecord
from neptune_assets.lake.storage import Storage
from neptune_assets.schema import Scope

INTENT: Final = "intent.json"


class Staging:
    """Staging of one project: begin, promote, recover. All under the project's lock."""

    def __init__(self, storage: Storage, layout: Layout, project_id: str, scope: Scope) -> None:
        self._storage = storage
        self._project_id = project_id
        self._project = layout.project(project_id, scope)
        self._root = layout.staging(project_id, scope)
        self._manifest = layout.manifest(project_id, scope)
        self._files = layout.files(project_id, scope)
        self._files_staging = layout.files_staging(project_id, scope)

    def directory(self, generation: str) -> str:
        """Where the parts of a commit are staged."""
        return f"{self._root}/{generation}"

    def begin(self, generation: str, run_id: str) -> str:
        """Make the staging directory of a commit and note whose it is; returns the directory."""
        directory = self.directory(generation)
        self._storage.make_directory(directory)
        # Not made durable: after a power cut without it, at worst some unreferenced files stay.
        self._storage.put(f"{directory}/{INTENT}", json.dumps({"run_id": run_id}).encode("ascii"), durable=False)
        return directory

    def promote(self, record: RunRecord, *, final: Iterable[str] | None = None, sweep: bool = True) -> None:
        """Move the parts of a committed generation to their final names, then remove what it replaced.

        May be repeated after any interruption. ``final`` are the names that parts of the run have now; the directory
        is listed if left out, which takes long among many runs. ``sweep`` False: no old files can be there.
        """
        directory = self.directory(record.generation)
        staged = {name for name in self._storage.names(directory) if parse_part_name(name)}
        wanted = {part.name for part in record.parts}
        if final is None:
            final = parts_by_run(self._storage.names(self._project)).get(safe_name(record.run_id), ())
        # A final name that is still staged, or that the new generation lacks, is of the old generation.
        old = [name for name in final if name in staged or name not in wanted]
        for name in sorted(old, key=_part_number):
            self._storage.delete(f"{self._project}/{name}")
        for name in sorted(staged & wanted, key=_part_number, reverse=True):
            self._storage.move(f"{directory}/{name}", f"{self._project}/{name}")
        if sweep:
            self.sweep_files(record.run_id, record)
        # Last, because until it is gone the next writer does all of this again.
        # No sync here: should a power cut undo these moves, the parts are in staging again and are moved again.
        self._storage.delete_tree(directory)

    def discard(self, generation: str) -> None:
        """Remove what a commit staged and did not commit."""
        self._storage.delete_tree(self.directory(generation))
        self._storage.delete_tree(self._files_staging)

    def tidy(self) -> None:
        """Remove empty staging directories."""
        for directory in (self._root, self._files_staging):
            self._storage.prune(directory)

    def remove_copy(self, run_id: str) -> None:
        """Remove all files and final parts of a run: it is read in place from now on.

        Parts go last: as long as one is there, :meth:`recover` does this again.
        """
        self.sweep_files(run_id, None)
        names = parts_by_run(self._storage.names(self._project)).get(safe_name(run_id), ())
        for name in sorted(names, key=_part_number):
            self._storage.delete(f"{self._project}/{name}")

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

    def recover(self, manifest: Manifest) -> list[str]:
        """Finish or undo what an interrupted writer left behind. Returns run ids that were finished."""
        committed = {record.generation: record for record in manifest.records.values()}
        finished: list[str] = []
        self._storage.delete_tree(self._files_staging)
        for name in self._storage.names(self._manifest):
            if name.endswith(".tmp"):
                self._storage.delete(f"{self._manifest}/{name}")
        for generation in self._generations():
            record = committed.get(generation)
            if record is not None:
                self.promote(record)
                finished.append(record.run_id)
                continue
            run_id = self._intent(generation)
            if run_id is not None:
                self.sweep_files(run_id, manifest.records.get(run_id))
            self._storage.delete_tree(self.directory(generation))
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
                hint="Set lake.root to an empty place (source.export.mode in_place reads an export where it lies), "
                "or move these parts away.",
            )
        return sizes, strays

    def _generations(self) -> list[str]:
        if self._storage.local:
            return self._storage.names(self._root)
        prefix = f"{self._root}/"
        return sorted({path.removeprefix(prefix).split("/", 1)[0] for path in self._storage.walk(self._root)})

    def _intent(self, generation: str) -> str | None:
        try:
            found = json.loads(self._storage.read(f"{self.directory(generation)}/{INTENT}"))
            return str(found["run_id"])
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            # Killed before the note was written: nothing was stored for any run.
            return None

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


def _part_number(name: str) -> int:
    parsed = parse_part_name(name)
    return parsed[1] if parsed else -1
