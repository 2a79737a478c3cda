"""One run in the lake: its rows in order, and its files. Opened by :mod:`neptune_assets.lake.reader`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neptune_assets.errors import LakeDamagedError, LakeError, UnsafePathError
from neptune_assets.lake.digest import RunDigest
from neptune_assets.lake.in_place import AGAIN, check_in_place, rows_in_place, storage_in_place
from neptune_assets.lake.integrity import REPAIR, CheckedFile, hash_stream
from neptune_assets.lake.parts import CHECKED_WHOLE, open_parquet, part_generation, row_group_bounds
from neptune_assets.lake.records import FileRecord, PartRecord, RunRecord
from neptune_assets.lake.rows import Attributes, pack, pieces, unpack
from neptune_assets.lake.storage import Storage
from neptune_assets.schema import SCHEMA, AttributeType
from neptune_assets.sources.files import composed

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeProject

_READ_ROWS: Final = 65_536
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
        are missing, of another commit, or hold other bytes or rows than the manifest says; rows of earlier parts may
        have left by then. Bytes are compared with the part's sha256 where the record has one, else see :meth:`check`.
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
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise self.unreadable(error) from error
        if rows != expected:
            raise LakeDamagedError(
                f"Run {self.run_id!r} of {self.project_id!r} holds {rows:,} rows where the manifest says {expected:,}: "
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
        storage = lake.storage if root is None else storage_in_place(root, lake.settings)
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

        ``progress`` is told how many bytes were read.
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

    def _own_batches(self, kinds: list[str] | None, wanted: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        read = wanted if kinds is None or "attribute_type" in wanted else [*wanted, "attribute_type"]
        with ExitStack() as stack:
            # All parts are opened before the first row leaves: no reader gets half of a run that is not all there.
            files = []
            for part in self.record.parts:
                file, place = self._open_part(part, ())
                stack.enter_context(file)
                files.append((part, file, place))
            schema = pa.schema([SCHEMA.field(name) for name in wanted])
            for part, file, place in files:
                groups = _row_groups(file, kinds)
                if not groups:
                    continue
                # Just before it is read: then its bytes are still at hand, and are fetched from the disk once.
                content = self._fetch(part, place)
                self._check_part(part, place, content)
                with ExitStack() as fetched:
                    if content is not None:
                        file = fetched.enter_context(open_parquet(self.project.lake.storage, place, content=content))
                    for batch in file.iter_batches(batch_size=batch_rows, row_groups=groups, columns=read):
                        if kinds is not None:
                            batch = _of_kinds(batch, kinds)
                        if batch.num_rows:
                            yield pa.RecordBatch.from_arrays([batch[name] for name in wanted], schema=schema)

    def open_part(self, part: PartRecord, encoded: Sequence[str] = ()) -> pq.ParquetFile:
        """Open a part of this commit, in staging or in its final place; an unfinished move may run at the same time.

        Columns named in ``encoded`` stay dictionary-encoded. Raises LakeDamagedError if the part is gone or is not
        what was recorded. On object stores only the pages of a large part are compared, as they are read: fetching all
        of it for one row group would cost too much.
        """
        file, place = self._open_part(part, encoded)
        if self.project.lake.storage.local or part.rows <= CHECKED_WHOLE:
            try:
                self._check_part(part, place)
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
