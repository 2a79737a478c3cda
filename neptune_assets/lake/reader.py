"""Read the lake: projects, runs, rows in order, files. Knows nothing of sources.

A run is read as its manifest record describes it: parts of exactly that commit, wherever an unfinished move has left
them, or an export's own parts with repairs made on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neptune_assets.errors import LakeDamagedError, LakeError, UnknownProjectError, UnsafePathError
from neptune_assets.lake.digest import RunDigest, digest_of_project
from neptune_assets.lake.integrity import REPAIR, CheckedFile, CheckedParts, DamagedRuns, hash_stream
from neptune_assets.lake.layout import MANIFEST, Layout, staging_group
from neptune_assets.lake.manifest import FileRecord, ManifestStore, PartRecord, RunRecord, project_of_manifest
from neptune_assets.lake.parts import CHECKED_WHOLE, open_parquet, part_generation, row_group_bounds
from neptune_assets.lake.repair import conform, own_rows, repair_batch
from neptune_assets.lake.rows import NONE, Attributes, pack, pieces, unpack
from neptune_assets.lake.sorting import RunSorter
from neptune_assets.lake.storage import Storage, storage_errors
from neptune_assets.parquet_footer import read_footer
from neptune_assets.schema import SCHEMA, AttributeType, Scope
from neptune_assets.settings import LakeSettings, StorageSettings
from neptune_assets.sources.files import composed

AGAIN: Final = "Materialize the project's lake asset with full_refresh to write the run anew."

_READ_ROWS: Final = 65_536


def rows_in_place(
    record: RunRecord, project_id: str, settings: LakeSettings, kinds: list[str] | None = None
) -> Iterator[tuple[pa.RecordBatch, Attributes]]:
    """Yield a run's compact rows, repaired, sorted and without duplicates, in bounded memory.

    ``kinds`` keeps only these attribute types. Raises LakeDamagedError if a part is gone or not as recorded.
    """
    lost = {issue.attribute_path for issue in record.errors}
    kept = {(item.attribute_path, item.step) for item in record.files}
    with RunSorter(settings.rows_in_memory, settings.sort_memory_mb, settings.scratch) as sorter:
        for part in record.parts:
            storage = check_in_place(record, part, settings)
            with open_parquet(storage, storage.root) as file:
                read = 0
                for batch in file.iter_batches(batch_size=_READ_ROWS):
                    read += batch.num_rows
                    rows = own_rows(conform(batch, project_id, record.run_id), project_id, record.run_id)
                    if kinds is not None:
                        rows = rows.filter(pc.is_in(rows["attribute_type"], pa.array(kinds)))
                    rows = repair_batch(rows, record.repairs)
                    if rows.num_rows:
                        sorter.add(rows)
            if read != part.rows:
                raise LakeDamagedError(
                    f"Part {part.name} of run {record.run_id!r} holds {read:,} rows; its footer says {part.rows:,}.",
                    hint="Export the run again.",
                )
        for compact in sorter.sorted_rows():
            yield _without_lost_files(compact, sorter.attributes, lost, kept), sorter.attributes


def check_in_place(record: RunRecord, part: PartRecord, settings: LakeSettings) -> Storage:
    """Compare a part of an export with size and sha256 as recorded, and return its storage.

    Raises LakeDamagedError if it is gone or differs.
    """
    storage = external_storage(part.name, settings)
    size = storage.size(storage.root)
    if size is None:
        what = "it is gone"
    elif size != part.bytes:
        what = f"it has {size:,} bytes instead of {part.bytes:,}"
    elif part.sha256 is None:
        return storage
    else:
        with storage.open(storage.root) as stream:
            _, found = hash_stream(stream)
        if found == part.sha256:
            return storage
        what = f"its sha256 is {found} instead of {part.sha256}"
    raise LakeDamagedError(
        f"Part {part.name} of run {record.run_id!r}, read in place, changed since it was recorded: {what}.", hint=AGAIN
    )


def digest_in_place(record: RunRecord, project_id: str, settings: LakeSettings) -> str:
    """Return the content digest of what reading the record gives. Raises LakeDamagedError or pyarrow.ArrowException."""
    by_row: dict[tuple[str, int | None], list[FileRecord]] = {}
    for item in record.files:
        by_row.setdefault((item.attribute_path, item.step), []).append(item)
    digest: RunDigest | None = None
    for rows, attributes in rows_in_place(record, project_id, settings):
        digest = digest or RunDigest(attributes.names, lambda path, step, _: by_row.get((path, step), []))
        digest.update(rows)
    return (digest or RunDigest([])).hexdigest()


def external_storage(place: str, settings: LakeSettings) -> Storage:
    """Reach an export: with its own storage settings, else with the lake's if it is on the same kind of storage."""
    if settings.export_storage is not None:
        return Storage(place, settings.export_storage if "://" in place else None)
    protocol = settings.root.partition("://")[0] if "://" in settings.root else ""
    same = protocol and place.startswith(f"{protocol}://")
    return Storage(place, settings.storage if same else StorageSettings())


def _without_lost_files(
    rows: pa.RecordBatch, attributes: Attributes, lost: set[str | None], kept: set[tuple[str, int | None]]
) -> pa.RecordBatch:
    """Make the path of a file null where hashing found no file, as copying into the lake would have done."""
    column = rows.schema.get_field_index("file_value")
    if column < 0 or not lost:
        return rows
    values = rows.column(column)
    paths = values.to_pylist()
    for place in np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False)).tolist():
        path, _ = attributes.names[rows["attribute"][place].as_py()]
        step = rows["step"][place].as_py()
        if path in lost and (path, None if step == NONE else step) not in kept:
            paths[place] = {"path": None}
    return rows.set_column(column, "file_value", pa.array(paths, values.type))


__all__ = ["Lake", "LakeProject", "LakeRun"]


class Lake:
    """A lake, opened for reading."""

    def __init__(self, settings: LakeSettings) -> None:
        self.settings = settings
        self.storage = Storage(settings.root, settings.storage)
        self.layout = Layout(self.storage.root)
        self.checked_parts = CheckedParts(self.storage)

    def projects(self, scope: Scope = Scope.RUNS) -> list[str]:
        """Return the projects that the lake holds, sorted."""
        base = self.layout.base(scope)
        inner = "" if scope is Scope.RUNS else f"/{scope.value}"
        found = []
        with storage_errors(self.storage, "Reading the lake"):
            for name in self.storage.names(base):
                known = project_of_manifest(self.storage, f"{base}/{name}{inner}/{MANIFEST}")
                if known is not None:
                    found.append(known[0])
        return sorted(found)

    def project(self, project_id: str, scope: Scope = Scope.RUNS) -> LakeProject:
        """Open one project as it is now. Raises UnknownProjectError, or LakeError if its manifest is damaged."""
        return LakeProject(self, project_id, scope)


class LakeProject:
    """One project at one moment: a snapshot of its manifest."""

    def __init__(self, lake: Lake, project_id: str, scope: Scope) -> None:
        self.lake = lake
        self.project_id = project_id
        self.scope = scope
        self._store = ManifestStore(lake.storage, lake.layout, project_id, scope)
        with storage_errors(lake.storage, f"Reading {project_id!r} in the lake"):
            manifest = self._store.read()
        if manifest is None:
            raise UnknownProjectError(
                f"The lake at {lake.storage.url(lake.storage.root)} holds no {scope.value} of project {project_id!r}.",
                hint="Materialize the project's lake asset first.",
            )
        self._records = manifest.records
        self._in_staging: dict[str, set[str]] | None = None

    @property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        """The file system of the lake."""
        return self.lake.storage.filesystem

    @property
    def digest(self) -> str:
        """Content digest over run ids, their digests and states."""
        return digest_of_project(self._records.values())

    def records(self) -> dict[str, RunRecord]:
        """Return the records of the manifest by run id, sorted."""
        return dict(self._records)

    def run(self, run_id: str) -> LakeRun:
        """Open one run. Raises LakeError if the project does not have it."""
        record = self._records.get(run_id)
        if record is None:
            raise LakeError(
                f"Project {self.project_id!r} has no run {run_id!r} in the lake.",
                hint="Materialize the project's lake asset, or check the run's id.",
            )
        return LakeRun(self, record)

    def runs(self) -> Iterator[LakeRun]:
        """Yield all runs in the order of their ids."""
        for record in self._records.values():
            yield LakeRun(self, record)

    def only(self, run_ids: Iterable[str]) -> LakeProject:
        """Return this snapshot with no other runs than these."""
        chosen = set(run_ids)
        project = copy.copy(self)
        project._records = {run_id: record for run_id, record in self._records.items() if run_id in chosen}
        return project

    def parts(self) -> dict[str, list[str]]:
        """Return, by run id, where its Parquet parts are now: absolute paths or URLs."""
        storage = self.lake.storage
        staged = self._staged()
        return {
            record.run_id: [
                part.name if record.in_place is not None else storage.url(self._place(record, part.name, staged))
                for part in record.parts
            ]
            for record in self._records.values()
        }

    def statistics(self) -> dict[str, str] | None:
        """Return where the writer's statistics of series and parameters are, as the summary's tables; None if missing.

        See :mod:`neptune_assets.lake.statistics`: they may lack runs, and say for which digest of
        a run they hold.
        """
        if self.scope is not Scope.RUNS:
            return None
        storage, directory = self.lake.storage, self.lake.layout.statistics(self.project_id)
        if not {"series.parquet", "params.parquet"} <= set(storage.names(directory)):
            return None
        return {f"{name}_facts": storage.url(f"{directory}/{name}.parquet") for name in ("series", "params")}

    def intact(self) -> set[str]:
        """Return the runs whose parts are in the lake with the sizes they were written with, or are read in place."""
        sizes = self.lake.storage.sizes(self.lake.layout.project(self.project_id, self.scope))
        return {
            record.run_id
            for record in self._records.values()
            if record.in_place is not None or all(sizes.get(part.name) == part.bytes for part in record.parts)
        }

    def file_sizes(self) -> dict[str, int]:
        """Return what the project's files directory holds, by one listing: full paths with sizes."""
        return self.lake.storage.walk_sizes(self.lake.layout.files(self.project_id, self.scope))

    @property
    def damaged(self) -> DamagedRuns:
        """The notes of runs that were found damaged, which the next materialization reads anew."""
        return DamagedRuns(self.lake.storage, self.lake.layout, self.project_id, self.scope)

    def current_record(self, run_id: str) -> RunRecord | None:
        """Read the manifest again and return the record of a run as it is now."""
        manifest = self._store.read()
        return None if manifest is None else manifest.records.get(run_id)

    def _staged(self) -> dict[str, set[str]]:
        storage, layout = self.lake.storage, self.lake.layout
        root = layout.staging(self.project_id, self.scope)
        staged: dict[str, set[str]] = {}
        for path in storage.walk(root):
            group, _, name = path[len(root) + 1 :].partition("/")
            staged.setdefault(group, set()).add(name)
        return staged

    def _place(self, record: RunRecord, name: str, staged: dict[str, set[str]]) -> str:
        layout = self.lake.layout
        if name in staged.get(staging_group(record.generation), ()):
            return layout.staged_part(self.project_id, record.generation, name, self.scope)
        return layout.part(self.project_id, name, self.scope)


_FETCHED_BYTES: Final = 64 << 20
"""Parts up to this size are fetched from an object store at once; larger ones are hashed first and then read again."""


class LakeRun:
    """One run: rows in order, and files."""

    def __init__(self, project: LakeProject, record: RunRecord) -> None:
        self.project = project
        self.project_id = project.project_id
        self.run_id = record.run_id
        self.record = record
        self.derived: dict[object, Any] = {}
        """What readers worked out of the run and want once, by what it is; gone with this object."""
        self._files: dict[str, FileRecord] | None = None

    def batches(
        self,
        types: Collection[AttributeType] | None = None,
        columns: Sequence[str] | None = None,
        batch_rows: int = _READ_ROWS,
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows in the lake's schema (or ``columns`` of it), sorted, without duplicates, in bounded memory.

        ``types`` keeps only these attribute types. Raises LakeError if parts cannot be read, LakeDamagedError if they
        are missing, of another commit, or hold other bytes or rows than the manifest records; rows of earlier parts may
        have left by then. Bytes are compared with the part's sha256 where the record has one, else see :meth:`check`.
        """
        columns = SCHEMA.names if columns is None else list(columns)
        unknown = [name for name in columns if name not in SCHEMA.names]
        if unknown:
            raise ValueError(f"no such columns: {', '.join(unknown)}")
        kinds = None if types is None else sorted(str(AttributeType(kind)) for kind in types)
        expected = sum(count for kind, count in self.record.rows.items() if kinds is None or kind in kinds)
        if kinds is not None and not expected:
            return
        rows = 0
        try:
            batches = self._own_batches(kinds, columns, batch_rows) if self.record.in_place is None else None
            if batches is None:
                batches = self._batches_in_place(kinds, columns, batch_rows)
            for batch in batches:
                rows += batch.num_rows
                yield batch
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise self.unreadable(error) from error
        if rows != expected:
            raise LakeDamagedError(
                f"Run {self.run_id!r} of {self.project_id!r} holds {rows:,} rows where the manifest has {expected:,}: "
                "its parts changed since they were recorded.",
                hint=REPAIR,
            )

    def open_file(self, path: str) -> BinaryIO:
        """Open a file by its path as in ``file_value.path`` (or of a record), to be read once from its beginning.

        Raises LakeError if it is not there; reading raises LakeDamagedError, before the last bytes leave, if it is
        not what was recorded.
        """
        return self._checked(self._open_stored(path), path)

    def _open_stored(self, path: str) -> BinaryIO:
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

    def file_problems(self, sizes: Mapping[str, int]) -> list[str]:
        """Compare the run's files with a listing of the lake's, or with the export: missing, or of other size."""
        lake, root = self.project.lake, self.record.in_place
        storage = lake.storage if root is None else external_storage(root, lake.settings)
        directory = lake.layout.files(self.project_id, self.project.scope) if root is None else storage.root
        wrong = []
        for item in self.record.files:
            path = f"{directory}/{item.path}"
            size = sizes.get(path) if root is None else storage.size(path) if root else None
            if size is None:
                wrong.append(f"{item.path} is missing")
            elif size != item.size:
                wrong.append(f"{item.path} has {size:,} bytes instead of {item.size:,}")
        return wrong

    def file_damage(self, item: FileRecord, progress: Callable[[int], None] | None = None) -> str | None:
        """Read one of the run's files and return what is wrong with it, None if it is as recorded.

        ``progress`` is called with how many bytes were read.
        """
        try:
            # Unlike a reader of rows this wants to go on after a damaged file, and to its end.
            with self._open_stored(item.path) as stream:
                size, found = hash_stream(stream, progress)
        except LakeError as error:
            return error.message
        except OSError as error:
            return f"File {item.path!r} of run {self.run_id!r} cannot be read: {error}."
        if (size, found) == (item.size, item.sha256):
            return None
        return (
            f"File {item.path!r} of run {self.run_id!r} is damaged: it has {size:,} bytes with sha256 {found} "
            f"instead of {item.size:,} with {item.sha256}."
        )

    def file_records(self, attribute_path: str) -> list[FileRecord]:
        """Return the records of the files of one attribute: one for a file, one a step or member for others."""
        return [item for item in self.record.files if item.attribute_path == attribute_path]

    def content_digest(self) -> str:
        """Read all rows and hash them again; equal to ``record.digest`` as long as nothing was damaged.

        Files count by the sha256 that the manifest holds, so only rows are read.
        """
        attributes = Attributes()
        digest = self.new_digest(attributes)
        for batch in self.batches():
            digest.update(pack(batch, attributes))
        return digest.hexdigest()

    def new_digest(self, attributes: Attributes) -> RunDigest:
        """Return the digest of the run before its first row, for who reads all of its rows anyway."""
        by_row: dict[tuple[str, int | None], list[FileRecord]] = {}
        for item in self.record.files:
            by_row.setdefault((item.attribute_path, item.step), []).append(item)
        return RunDigest(attributes.names, lambda path, step, _: by_row.get((path, step), []))

    def part_problem(self, part: PartRecord) -> str | None:
        """Look at a part's footer; return what is wrong, None if it is of this commit and has the rows and columns."""
        try:
            file, _ = self._open_part(part, ())
        except LakeDamagedError as error:
            return error.message
        with file:
            schema = file.schema_arrow
        if schema.remove_metadata().equals(SCHEMA):
            return None
        return f"Part {part.name} of run {self.run_id!r} has the columns {', '.join(schema.names)}."

    def check(self) -> None:
        """Compare the run's parts with what was recorded, in one pass of bytes; files are not looked at.

        A run that was written before parts were hashed is read and compared with its content digest instead, which
        costs as much as reading its rows. Raises LakeDamagedError if anything differs.
        """
        if not self.record.hashed:
            self.compare(self.content_digest())
            return
        try:
            for part in self.record.parts:
                if self.record.in_place is None:
                    file, place = self._open_part(part, ())
                    file.close(force=True)
                    self._check_part(part, place)
                else:
                    check_in_place(self.record, part, self.project.lake.settings)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise self.unreadable(error) from error

    def compare(self, digest: str) -> None:
        """Raise LakeDamagedError if the digest of all rows is not the recorded one."""
        if digest != self.record.digest:
            raise LakeDamagedError(
                f"The rows of run {self.run_id!r} of {self.project_id!r} in the lake are damaged: their digest is "
                f"not the recorded {self.record.digest}.",
                hint=REPAIR,
            )

    def unreadable(self, error: Exception) -> LakeError:
        """Return the error of a part that cannot be read: damaged, unless the storage refused to give its bytes."""
        # Arrow's own errors about what it read have no number, those of the system have one.
        kind = LakeError if isinstance(error, OSError) and error.errno is not None else LakeDamagedError
        return kind(
            f"A Parquet part of run {self.run_id!r} of {self.project_id!r} cannot be read: {error}.",
            hint=AGAIN if kind is LakeError else REPAIR,
        )

    def _own_batches(self, kinds: list[str] | None, columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        read = columns if kinds is None or "attribute_type" in columns else [*columns, "attribute_type"]
        with ExitStack() as stack:
            # All parts are opened before the first row leaves: no reader gets half of a run that is not all there.
            files = []
            for part in self.record.parts:
                file, place = self._open_part(part, ())
                stack.enter_context(file)
                files.append((part, file, place))
            schema = pa.schema([SCHEMA.field(name) for name in columns])
            for part, file, place in files:
                # Just before it is read: then its bytes are still at hand, and are fetched from the disk once. Before
                # its statistics are believed, too: a damaged bound would pass over rows without a word.
                content = self._fetch(part, place)
                self._check_part(part, place, content)
                with ExitStack() as fetched:
                    if content is not None:
                        file = fetched.enter_context(open_parquet(self.project.lake.storage, place, content=content))
                    groups = _row_groups(file, kinds)
                    if not groups:
                        continue
                    for batch in file.iter_batches(batch_size=batch_rows, row_groups=groups, columns=read):
                        if kinds is not None:
                            batch = _of_kinds(batch, kinds)
                        if batch.num_rows:
                            yield pa.RecordBatch.from_arrays([batch[name] for name in columns], schema=schema)

    def open_part(self, part: PartRecord, encoded: Sequence[str] = ()) -> pq.ParquetFile:
        """Open a part of this commit, in staging or in its final place; an unfinished move may run at the same time.

        Columns named in ``encoded`` stay dictionary-encoded. Raises LakeDamagedError if the part is gone or is not
        what was recorded. On object stores only the pages of a large part are compared, as they are read: fetching all
        of it for one row group would cost too much.
        """
        file, place = self._open_part(part, encoded)
        storage = self.project.lake.storage
        try:
            if storage.local or part.rows <= CHECKED_WHOLE:
                self._check_part(part, place)
            else:
                with storage.open(place) as stream:
                    read_footer(stream)
        except pa.ArrowInvalid as error:
            file.close(force=True)
            raise self._not_as_recorded(part, f"is damaged: {error}") from error
        except BaseException:
            file.close(force=True)
            raise
        return file

    def _open_part(self, part: PartRecord, encoded: Sequence[str]) -> tuple[pq.ParquetFile, str]:
        """Return a part, opened, and its path."""
        layout, storage, scope = self.project.lake.layout, self.project.lake.storage, self.project.scope
        staged = layout.staged_part(self.project_id, self.record.generation, part.name, scope)
        final = layout.part(self.project_id, part.name, scope)
        what = "is missing"
        for place in (final, staged, final):
            try:
                file = open_parquet(storage, place, encoded)
            except FileNotFoundError:
                continue
            except (pa.ArrowException, OSError, ValueError, KeyError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                what = f"cannot be read: {error}"
                continue
            found = part_generation(file.metadata)
            if found != self.record.generation:
                what = f"is of another commit ({found})"
            elif file.metadata.num_rows != part.rows:
                what = f"has {file.metadata.num_rows:,} rows by its footer instead of {part.rows:,}"
            else:
                return file, place
            file.close(force=True)
        raise self._not_as_recorded(part, what)

    def _fetch(self, part: PartRecord, place: str) -> bytes | None:
        """Return the bytes of a part that has to be compared and is not on a local disk, so that it is fetched once."""
        lake = self.project.lake
        if lake.storage.local or part.sha256 is None or part.bytes > _FETCHED_BYTES:
            return None
        return None if lake.checked_parts.known(place, part.sha256) else lake.storage.read(place)

    def _check_part(self, part: PartRecord, place: str, content: bytes | None = None) -> None:
        """Compare a part with its sha256, if one was recorded, unless that was done before."""
        if part.sha256 is None:
            return
        checked = self.project.lake.checked_parts
        try:
            difference = checked.difference(place, part.bytes, part.sha256, content)
        except FileNotFoundError:
            # It was opened in staging and has been moved since.
            final = self.project.lake.layout.part(self.project_id, part.name, self.project.scope)
            try:
                difference = checked.difference(final, part.bytes, part.sha256)
            except FileNotFoundError:
                difference = "it is missing"
        if difference is not None:
            raise self._not_as_recorded(part, f"is damaged: {difference}")

    def _not_as_recorded(self, part: PartRecord, what: str) -> LakeError:
        now = self.project.current_record(self.run_id)
        if now is None or now.generation != self.record.generation:
            error = LakeError(
                f"Run {self.run_id!r} of {self.project_id!r} was materialized again while it was read.",
                hint="Open the project again and read the run anew.",
            )
            error.transient = True
            return error
        lake = self.project.lake
        final = lake.storage.url(lake.layout.part(self.project_id, part.name, self.project.scope))
        return LakeDamagedError(f"Part {final} of run {self.run_id!r} of {self.project_id!r} {what}.", hint=REPAIR)

    def _checked(self, stream: BinaryIO, path: str) -> BinaryIO:
        """Have a file compared with its record while it is read."""
        record = self._record_of(path)
        if record is None:
            return stream

        def damaged(what: str) -> LakeDamagedError:
            return LakeDamagedError(
                f"File {path!r} of run {self.run_id!r} of {self.project_id!r} in the lake is damaged: {what}.",
                hint=REPAIR,
            )

        return cast(BinaryIO, CheckedFile(stream, record.size, record.sha256, damaged))

    def _record_of(self, path: str) -> FileRecord | None:
        """The record of a file; of one that is read in place also by the name that its row gives it."""
        if self._files is None:
            own = {item.path: item for item in self.record.files}
            # A row may name it in another form of Unicode than the disk, or with Windows's separators.
            self._files = own if self.record.in_place is None else {_form(name): own[name] for name in own} | own
        return self._files.get(path) or (None if self.record.in_place is None else self._files.get(_form(path)))

    def _batches_in_place(
        self, kinds: list[str] | None, columns: list[str], batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        settings = self.project.lake.settings
        for compact, attributes in rows_in_place(self.record, self.project_id, settings, kinds):
            rows = unpack(compact, attributes, self.project_id, self.run_id)
            yield from pieces(rows.select(columns), batch_rows, settings.sort_memory_mb << 20)

    def _open_in_place(self, path: str, normal: str) -> BinaryIO:
        root = self.record.in_place or ""
        if not root:
            raise LakeError(f"Run {self.run_id!r} is read in place from an export without files.", hint=AGAIN)
        storage = external_storage(root, self.project.lake.settings)
        record = self._record_of(path)
        names = dict.fromkeys((path, normal) if record is None else (path, normal, record.path))
        candidates = [f"{storage.root}/{item}" for item in names]
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


def _form(path: str) -> str:
    """A path of an export as it is compared: forward slashes, and letters in Unicode form C."""
    return composed(path).replace("\\", "/")


def _of_kinds(batch: pa.RecordBatch, kinds: list[str]) -> pa.RecordBatch:
    """Return the rows of these attribute types; without copying where they are adjacent, as points mostly do."""
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
