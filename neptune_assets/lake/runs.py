"""One run in the lake: its rows in order, and its files. Opened by :mod:`neptune_assets.lake.reader`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neptune_assets.errors import LakeError, UnsafePathError
from neptune_assets.lake.digest import RunDigest
from neptune_assets.lake.in_place import AGAIN, rows_in_place, storage_in_place
from neptune_assets.lake.parts import open_parquet, part_generation, row_group_bounds
from neptune_assets.lake.records import FileRecord, PartRecord, RunRecord
from neptune_assets.lake.rows import Attributes, pack, pieces, unpack
from neptune_assets.lake.storage import Storage
from neptune_assets.schema import SCHEMA, AttributeType

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeProject

_READ_ROWS: Final = 65_536


class LakeRun:
    """One run: rows in order, and files."""

    def __init__(self, project: LakeProject, record: RunRecord) -> None:
        self.project = project
        self.project_id = project.project_id
        self.run_id = record.run_id
        self.record = record

    def batches(
        self,
        types: Collection[AttributeType] | None = None,
        columns: Sequence[str] | None = None,
        batch_rows: int = _READ_ROWS,
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows in the lake's schema (or ``columns`` of it), sorted, without duplicates, in bounded memory.

        ``types`` keeps only these attribute types. Raises LakeError if parts are missing, damaged, of another commit,
        or hold other rows than the manifest says.
        """
        wanted = SCHEMA.names if columns is None else list(columns)
        unknown = [name for name in wanted if name not in SCHEMA.names]
        if unknown:
            raise ValueError(f"no such columns: {', '.join(unknown)}")
        kinds = None if types is None else sorted(str(AttributeType(kind)) for kind in types)
        expected = sum(count for kind, count in self.record.rows.items() if kinds is None or kind in kinds)
        if kinds is not None and not expected:
            return
        rows = 0
        try:
            batches = self._own_batches(kinds, wanted, batch_rows) if self.record.in_place is None else None
            if batches is None:
                batches = self._batches_in_place(kinds, wanted, batch_rows)
            for batch in batches:
                rows += batch.num_rows
                yield batch
        except (pa.ArrowException, OSError) as error:
            raise LakeError(
                f"A Parquet part of run {self.run_id!r} of {self.project_id!r} cannot be read: {error}.", hint=AGAIN
            ) from error
        if rows != expected:
            raise LakeError(
                f"Run {self.run_id!r} of {self.project_id!r} holds {rows:,} rows where the manifest says {expected:,}: "
                "its parts changed since they were recorded.",
                hint=AGAIN,
            )

    def open_file(self, path: str) -> BinaryIO:
        """Open a file by its path as in ``file_value.path`` (or of a record). Raises LakeError if it is not there."""
        parts = path.replace("\\", "/").split("/") if self.record.in_place is not None else path.split("/")
        if not path or any(part in {"", ".", ".."} for part in parts) or "\x00" in path:
            raise UnsafePathError(
                f"File path {path!r} of run {self.run_id!r} would leave the files directory.",
                hint="Use a path from file_value.path or from the run's file records.",
            )
        if self.record.in_place is not None:
            return self._open_in_place(path, "/".join(parts))
        lake = self.project.lake
        root = lake.layout.files(self.project_id, self.project.scope)
        return self._open(lake.storage, root, [f"{root}/{path}"], path)

    def file_records(self, attribute_path: str) -> list[FileRecord]:
        """Return the records of the files of one attribute: one for a file, one a step or member for others."""
        return [item for item in self.record.files if item.attribute_path == attribute_path]

    def content_digest(self) -> str:
        """Read all rows and hash all files again; equal to ``record.digest`` as long as nothing was damaged.

        Files are hashed by the sha256 that the manifest holds, so only rows are read.
        """
        attributes = Attributes()
        by_row: dict[tuple[str, int | None], list[FileRecord]] = {}
        for item in self.record.files:
            by_row.setdefault((item.attribute_path, item.step), []).append(item)
        digest = RunDigest(attributes.names, lambda path, step, _: by_row.get((path, step), []))
        for batch in self.batches():
            digest.update(pack(batch, attributes))
        return digest.hexdigest()

    def _own_batches(self, kinds: list[str] | None, wanted: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        read = wanted if kinds is None or "attribute_type" in wanted else [*wanted, "attribute_type"]
        with ExitStack() as stack:
            # All parts are opened and checked before the first row leaves: no reader gets half of a run.
            files = [stack.enter_context(self.open_part(part)) for part in self.record.parts]
            schema = pa.schema([SCHEMA.field(name) for name in wanted])
            for file in files:
                groups = _row_groups(file, kinds)
                if not groups:
                    continue
                for batch in file.iter_batches(batch_size=batch_rows, row_groups=groups, columns=read):
                    if kinds is not None:
                        batch = _of_kinds(batch, kinds)
                    if batch.num_rows:
                        yield pa.RecordBatch.from_arrays([batch[name] for name in wanted], schema=schema)

    def open_part(self, part: PartRecord, encoded: Sequence[str] = ()) -> pq.ParquetFile:
        """Open a part of this commit, in staging or in its final place; an unfinished move may run at the same time.

        Columns named in ``encoded`` stay dictionary-encoded. Raises LakeError if the part is gone.
        """
        layout, storage, scope = self.project.lake.layout, self.project.lake.storage, self.project.scope
        staged = layout.staged_part(self.project_id, self.record.generation, part.name, scope)
        final = layout.part(self.project_id, part.name, scope)
        found: str | None = None
        for place in (final, staged, final):
            try:
                file = open_parquet(storage, place, encoded)
            except FileNotFoundError:
                continue
            found = part_generation(file.metadata)
            if found == self.record.generation:
                return file
            file.close(force=True)
        now = self.project.current_record(self.run_id)
        if now is None or now.generation != self.record.generation:
            error = LakeError(
                f"Run {self.run_id!r} of {self.project_id!r} was materialized again while it was read.",
                hint="Open the project again and read the run anew.",
            )
            error.transient = True
            raise error
        what = "is missing" if found is None else f"is of another commit ({found})"
        raise LakeError(f"Part {storage.url(final)} of run {self.run_id!r} {what}.", hint=AGAIN)

    def _batches_in_place(
        self, kinds: list[str] | None, wanted: list[str], batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        settings = self.project.lake.settings
        for compact, attributes in rows_in_place(self.record, self.project_id, settings, kinds):
            rows = unpack(compact, attributes, self.project_id, self.run_id)
            yield from pieces(rows.select(wanted), batch_rows, settings.sort_memory_mb << 20)

    def _open_in_place(self, path: str, normal: str) -> BinaryIO:
        root = self.record.in_place or ""
        if not root:
            raise LakeError(f"Run {self.run_id!r} is read in place from an export without files.", hint=AGAIN)
        storage = storage_in_place(root, self.project.lake.settings)
        candidates = [f"{storage.root}/{item}" for item in dict.fromkeys((path, normal))]
        return self._open(storage, storage.root, candidates, path)

    def _open(self, storage: Storage, root: str, candidates: Sequence[str], path: str) -> BinaryIO:
        for candidate in candidates:
            if storage.local and not Path(candidate).resolve().is_relative_to(Path(root).resolve()):
                raise UnsafePathError(
                    f"File {path!r} of run {self.run_id!r} is a link that leaves {root}.",
                    hint="Replace the link by the file that it points at.",
                )
            try:
                return storage.open(candidate)
            except (FileNotFoundError, IsADirectoryError):
                continue
        raise LakeError(
            f"File {path!r} of run {self.run_id!r} is not in {storage.url(root)}.",
            hint="Materialize the project's lake asset with full_refresh to fetch it again.",
        )


def _of_kinds(batch: pa.RecordBatch, kinds: list[str]) -> pa.RecordBatch:
    """Return the rows of these attribute types; without copying where they lie side by side, as points mostly do."""
    mask = pc.is_in(batch["attribute_type"], pa.array(kinds))
    count = mask.true_count
    if count == len(mask):
        return batch
    first = max(0, pc.index(mask, True).as_py())
    if mask.slice(first, count).true_count == count:
        return batch.slice(first, count)
    return batch.filter(mask)


def _row_groups(file: pq.ParquetFile, kinds: list[str] | None) -> list[int]:
    """Return the row groups that may hold one of the attribute types, by their statistics."""
    bounds = row_group_bounds(file, "attribute_type")
    return [
        group
        for group, bound in enumerate(bounds)
        if kinds is None or bound is None or any(bound[0] <= kind <= bound[1] for kind in kinds)
    ]
