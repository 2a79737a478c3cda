"""Turn the rows of one run into staged parts, stored files and a record that can be committed.

Small runs are sorted, hashed and measured together, because numpy and Arrow cost a small run more per call than per
row; the result for each is the same as by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from neptune_assets.errors import LakeError, NeptuneAssetsError
from neptune_assets.lake.committer import BatchBuffer, Staging, now
from neptune_assets.lake.digest import HashedColumns, RunDigest
from neptune_assets.lake.external_sort import stable_order
from neptune_assets.lake.files import FileStore
from neptune_assets.lake.integrity import hash_stream
from neptune_assets.lake.layout import part_name, stored_contents, unique_file_path
from neptune_assets.lake.manifest import FileRecord, IssueRecord, PartRecord, RunRecord
from neptune_assets.lake.parts import PartWriter, WriteLimits, open_parquet
from neptune_assets.lake.reader import external_storage
from neptune_assets.lake.repair import CONFLICTING_ROWS, DUPLICATE_ROWS
from neptune_assets.lake.rows import NONE, Attributes, compact, distinct_codes, no_rows
from neptune_assets.lake.sorting import RunSorter, last_of_each, series_among, sort_keys
from neptune_assets.lake.statistics import RunStatistics
from neptune_assets.lake.storage import Storage
from neptune_assets.schema import FILE_TYPES, MICROSTEPS, SERIES_TYPES
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import InPlaceRun, Issue, RunEnd, RunInfo, RunRows
from neptune_assets.tempdirs import TempDirectory


class RunBuffer:
    """The rows of the run being read: as they arrived while they are few, then with a sorter."""

    def __init__(self, run_id: str, settings: LakeSettings, limits: WriteLimits) -> None:
        self.run_id = run_id
        self.rows = 0
        self.nbytes = 0
        self.error: Exception | None = None
        self.batches: list[pa.RecordBatch] = []
        """The rows of a run that is small so far."""
        self._sorter: RunSorter | None = None
        self._settings = settings
        self._limits = limits

    @property
    def small(self) -> bool:
        """True if it has few rows and none with files, which have to be stored before rows can be hashed."""
        return (
            self._sorter is None
            and self.rows <= self._limits.small_run_rows
            and not any(_has_files(batch) for batch in self.batches)
        )

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows; the first batch that cannot be understood makes the run fail."""
        if self.error is not None:
            return
        self.rows += batch.num_rows
        if self._sorter is None and self.rows <= self._limits.small_run_rows:
            self.nbytes += batch.nbytes
            if self.nbytes <= self._limits.small_run_bytes:
                self.batches.append(batch)
                return
        self._sort(batch)

    def sorter(self) -> RunSorter:
        """All rows, to be given back in order."""
        if self._sorter is None:
            self._sort()
        assert self._sorter is not None  # noqa: S101 - for the type checker
        return self._sorter

    def _sort(self, *more: pa.RecordBatch) -> None:
        if self._sorter is None:
            settings = self._settings
            self._sorter = RunSorter(settings.rows_in_memory, settings.sort_memory_mb, settings.scratch)
        batches, self.batches = [*self.batches, *more], []
        try:
            for batch in batches:
                self._sorter.add(batch)
        except (ValueError, KeyError, pa.ArrowException) as error:
            if isinstance(error, OSError):
                raise
            self.error = error
            self._sorter.close()

    def close(self) -> None:
        """Remove what sorting spilled."""
        if self._sorter is not None:
            self._sorter.close()


def _has_files(batch: pa.RecordBatch) -> bool:
    return bool(batch["file_value"].null_count < batch.num_rows)


class Chunks:
    """A source's chunks; an error of the source ends them and stays in :attr:`error`, apart from the lake's errors."""

    def __init__(self, chunks: Iterator[RunRows | RunEnd]) -> None:
        self._chunks = iter(chunks)
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[RunRows | RunEnd]:
        while True:
            try:
                chunk = next(self._chunks)
            except StopIteration:
                return
            except LakeError:
                raise
            except (NeptuneAssetsError, OSError, ValueError, KeyError, pa.ArrowException) as error:
                self.error = error
                return
            yield chunk


@dataclass(frozen=True, slots=True)
class SortedRun:
    """One small run, ready to be written."""

    attributes: Attributes
    rows: pa.RecordBatch
    """Compact rows in order, without duplicates."""
    duplicates: int
    """Rows left out as duplicates."""
    conflicts: dict[int, int]
    """How many of them had another value than the row that was kept, by attribute id."""
    digest: str
    statistics: RunStatistics


class BatchedRuns:
    """Small runs that were read and are sorted together."""

    def __init__(self, limits: WriteLimits) -> None:
        self._buffer = BatchBuffer[tuple[RunBuffer, RunEnd | None]](
            limits.sorted_runs, limits.sorted_bytes, limits.wait_seconds
        )

    def add(self, buffer: RunBuffer, end: RunEnd | None) -> None:
        """Take a run of few rows that was read to its end."""
        self._buffer.add((buffer, end), buffer.nbytes)

    @property
    def ready(self) -> bool:
        """True if there are enough, or one has waited long enough."""
        return self._buffer.ready

    def drain(self) -> Iterator[tuple[RunBuffer, RunEnd | None, SortedRun | None]]:
        """Remove and yield all runs in order; one without a SortedRun has to be sorted by itself."""
        waiting = self._buffer.drain()
        if not waiting:
            return
        try:
            runs: Sequence[SortedRun | None] = sort_together([buffer.batches for buffer, _ in waiting])
        except (ValueError, pa.ArrowException):
            # One of them cannot be understood: by itself it fails alone.
            runs = [None] * len(waiting)
        for (buffer, end), run in zip(waiting, runs, strict=True):
            yield buffer, end, run


def sort_together(runs: Sequence[Sequence[pa.RecordBatch]]) -> list[SortedRun]:
    """Sort several runs, each given as its rows in the lake's schema, and find out what is to be known of them.

    Rows with files are not meant to come here: what they hash to is known only once the files are stored. Raises
    ValueError or pyarrow.ArrowException for rows that cannot be understood.
    """
    batches = [batch for run in runs for batch in run if batch.num_rows]
    lengths = [sum(batch.num_rows for batch in run) for run in runs]
    if not batches:
        return [_empty() for _ in runs]
    rows = pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
    names, of_run, ids = _attributes(rows, np.repeat(np.arange(len(runs)), lengths), len(runs))
    edges = np.searchsorted(of_run, np.arange(len(runs) + 1))
    rows = compact(rows, ids)
    order = stable_order(sort_keys(rows, _ranks(names, of_run)))
    if order is not None:
        rows = rows.take(pa.array(order))
    kept, conflicts = last_of_each(rows, series_among(names))
    conflicts_of: list[dict[int, int]] = [{} for _ in runs]
    for number, count in conflicts.items():
        run = int(of_run[number])
        conflicts_of[run][number - int(edges[run])] = count
    ids = kept["attribute"].to_numpy()
    starts = np.searchsorted(of_run[ids], np.arange(len(runs) + 1)).tolist()
    statistics = RunStatistics(names)
    statistics.update(kept)
    hashed = HashedColumns(kept)
    local = ids - edges[of_run[ids]].astype(np.int32)
    kept = kept.set_column(0, "attribute", pa.array(local))
    found = []
    for run, measured in enumerate(statistics.split(edges.tolist())):
        start, end = starts[run], starts[run + 1]
        digest = RunDigest(names)
        if start < end:
            digest.take(hashed, start, end)
        found.append(
            SortedRun(
                attributes=Attributes(names[edges[run] : edges[run + 1]]),
                rows=kept.slice(start, end - start),
                duplicates=lengths[run] - (end - start),
                conflicts=conflicts_of[run],
                digest=digest.hexdigest(),
                statistics=measured,
            )
        )
    return found


def _attributes(
    rows: pa.RecordBatch, runs: npt.NDArray[np.int64], count: int
) -> tuple[list[tuple[str, str]], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return the attributes of all runs, those of a run together, the run of each, and the attribute of each row."""
    paths, kinds, codes = distinct_codes(rows["attribute_path"], rows["attribute_type"])
    width = max(1, len(paths) * len(kinds))
    distinct, ids = np.unique(runs * width + codes, return_inverse=True)
    names = [(paths[code // len(kinds)], kinds[code % len(kinds)]) for code in (distinct % width).tolist()]
    return names, distinct // width, ids.astype(np.int32)


def _ranks(names: Sequence[tuple[str, str]], of_run: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Return the place of each attribute: by run, then by path and type in code point order."""
    runs = of_run.tolist()
    order = sorted(range(len(names)), key=lambda number: (runs[number], names[number]))
    ranks = np.empty(len(order), np.int32)
    ranks[order] = np.arange(len(order), dtype=np.int32)
    return ranks


def _empty() -> SortedRun:
    return SortedRun(Attributes(), no_rows(), 0, {}, RunDigest([]).hexdigest(), RunStatistics([]))


_FILE_TYPES: Final = frozenset(str(kind) for kind in FILE_TYPES)
_SERIES_TYPES: Final = frozenset(str(kind) for kind in SERIES_TYPES)
_NAMED_CONFLICTS: Final = 1_000
_FACTS: Final = (
    ("sys/name", "string"),
    ("sys/creation_time", "datetime"),
    ("sys/forking/parent", "string"),
    ("sys/forking/step", "int"),
    ("sys/forking/step", "float"),
)


class RunBuilder:
    """Builds one run: streams its sorted rows once, staging parts and files, and describes them in a record."""

    def __init__(
        self,
        project_id: str,
        info: RunInfo,
        storage: Storage,
        staging: Staging,
        files: FileStore,
        old: RunRecord | None,
        *,
        settings: LakeSettings,
        limits: WriteLimits,
        source_kind: str,
    ) -> None:
        self._project_id = project_id
        self._info = info
        self._storage = storage
        self._staging = staging
        self._files = files
        self._settings = settings
        self._scratch = settings.scratch
        self._limits = limits
        self._source_kind = source_kind
        self.generation = staging.new_generation()
        self._stored: dict[str, str] = {}
        if old is not None and old.in_place is None:
            self._stored = stored_contents(item.path for item in old.files)
        self._records: list[FileRecord] = []
        self._by_row: dict[tuple[str, int | None], tuple[FileRecord, ...]] = {}
        self._errors: list[IssueRecord] = []
        self._facts: dict[tuple[str, str], Any] = {}
        self._noted = False

    def build(self, sorter: RunSorter, end: RunEnd | None, in_place: InPlaceRun | None) -> RunRecord:
        """Stage the run and return its record, not yet committed. Raises OSError if the lake cannot be written."""
        attributes = sorter.attributes
        counts = np.zeros(len(attributes), np.int64)
        digest = RunDigest(attributes.names, lambda path, step, _: self._by_row.get((path, step), ()))
        self.statistics = RunStatistics(attributes.names)
        taken = (
            self._take(rows, attributes, digest, counts, in_place=in_place is not None) for rows in sorter.sorted_rows()
        )
        if in_place is None:
            parts = self._stage(taken, attributes)
        else:
            for _ in taken:
                pass
            parts = self._parts_in_place(in_place)
        # How many duplicates there were is known only now.
        return self._record(
            attributes, counts, sorter.duplicates, sorter.conflicts, digest.hexdigest(), parts, end, in_place
        )

    def build_sorted(self, run: SortedRun, end: RunEnd | None) -> RunRecord:
        """Do the same for a run that was sorted together with others."""
        ids = run.rows["attribute"].to_numpy()
        counts = np.bincount(ids, minlength=len(run.attributes))
        self._note_facts(run.rows, ids, run.attributes)
        self.statistics = run.statistics
        parts = self._stage([run.rows], run.attributes)
        return self._record(run.attributes, counts, run.duplicates, run.conflicts, run.digest, parts, end, None)

    def _stage(self, batches: Iterable[pa.RecordBatch], attributes: Attributes) -> list[PartRecord]:
        directory = self._staging.begin(self.generation)
        with ExitStack() as cleanup:
            local = directory
            if not self._storage.local:
                local = str(cleanup.enter_context(TempDirectory("parts", self._scratch)))
            writer = PartWriter(
                local,
                self._project_id,
                self._info.run_id,
                self.generation,
                attributes,
                lambda number: part_name(self._info.run_id, number, self._named),
                self._staging.part_written,
                part_bytes=self._limits.part_bytes or self._settings.part_mb << 20,
                limits=self._limits,
            )
            try:
                for rows in batches:
                    writer.write(rows)
                parts = writer.close()
            except BaseException:
                writer.abort()
                raise
            if not self._storage.local:
                for part in parts:
                    self._storage.put_file(f"{local}/{part.name}", f"{directory}/{part.name}")
        return parts

    @property
    def _named(self) -> str | None:
        """The generation where names have to hold it: requests to object stores may be carried out late."""
        return None if self._storage.local else self.generation

    def _file_place(self, path: str) -> str:
        """Return where content is stored: where the run has it already, or under a name that never was in use."""
        if self._named is None:
            return path
        return self._stored.get(path) or unique_file_path(path, self._named)

    def _take(
        self,
        rows: pa.RecordBatch,
        attributes: Attributes,
        digest: RunDigest,
        counts: npt.NDArray[np.int64],
        *,
        in_place: bool,
    ) -> pa.RecordBatch:
        ids = rows["attribute"].to_numpy()
        counts += np.bincount(ids, minlength=len(counts))
        self._note_facts(rows, ids, attributes)
        rows = self._with_files(rows, ids, attributes, in_place=in_place)
        digest.update(rows)
        self.statistics.update(rows)
        return rows

    def _with_files(
        self, rows: pa.RecordBatch, ids: npt.NDArray[np.int32], attributes: Attributes, *, in_place: bool
    ) -> pa.RecordBatch:
        """Store the files that rows refer to and put their lake paths in."""
        column = rows.schema.get_field_index("file_value")
        if column < 0:
            return rows
        values = rows.column(column)
        paths: list[dict[str, str | None] | None] = [None] * rows.num_rows
        for place in np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False)).tolist():
            reference = values[place]["path"].as_py()
            path, kind = attributes.names[int(ids[place])]
            if reference is None or kind not in _FILE_TYPES:
                paths[place] = {"path": None}
                continue
            micro = rows["step"][place].as_py()
            step = None if micro == NONE else micro
            if not in_place and not self._noted:
                self._staging.note_files(self.generation, self._info.run_id)
                self._noted = True
            stored = self._files.store(
                self._info.run_id, path, kind, step, reference, None if in_place else self._file_place
            )
            self._records.extend(stored.records)
            self._errors.extend(stored.errors)
            self._by_row[path, step] = stored.records
            paths[place] = {"path": stored.path}
        return rows.set_column(column, "file_value", pa.array(paths, values.type))

    def _note_facts(self, rows: pa.RecordBatch, ids: npt.NDArray[np.int32], attributes: Attributes) -> None:
        for fact in _FACTS:
            known = attributes.id(*fact)
            if known is None or fact in self._facts:
                continue
            places = np.flatnonzero(ids == known)
            column = rows.schema.get_field_index(f"{fact[1]}_value")
            if len(places) and column >= 0:
                # A time that Python cannot hold stays in the rows; the manifest then has none.
                with suppress(OverflowError, ValueError):
                    self._facts[fact] = rows.column(column)[int(places[-1])].as_py()

    def _parts_in_place(self, in_place: InPlaceRun) -> list[PartRecord]:
        parts = []
        for path in in_place.parts:
            place = external_storage(path, self._settings)
            with open_parquet(place, place.root) as file:
                rows = file.metadata.num_rows
            with place.open(place.root) as stream:
                size, digest = hash_stream(stream)
            parts.append(PartRecord(name=place.url(place.root), rows=rows, bytes=size, sha256=digest))
        return parts

    def _record(
        self,
        attributes: Attributes,
        counts: npt.NDArray[np.int64],
        duplicates: int,
        conflicts: Mapping[int, int],
        digest: str,
        parts: Sequence[PartRecord],
        end: RunEnd | None,
        in_place: InPlaceRun | None,
    ) -> RunRecord:
        rows: dict[str, int] = {}
        arrived: dict[str, int] = {}
        for (_, kind), count in zip(attributes.names, counts.tolist(), strict=True):
            if count:
                rows[kind] = rows.get(kind, 0) + count
                arrived[kind] = arrived.get(kind, 0) + 1
        errors = [*self._errors]
        repairs: dict[str, int] = {}
        promised = None
        if end is None:
            errors.append(IssueRecord("The source stopped before it reached the end of this run; read it again."))
        else:
            errors[:0] = _issues(end.errors)
            repairs.update(end.repairs)
            if end.promised is not None:
                promised = {kind: count for kind, count in sorted(end.promised.items()) if count}
                errors.extend(_missing(promised, arrived))
        conflicting = sum(conflicts.values())
        for name, count in ((DUPLICATE_ROWS, duplicates - conflicting), (CONFLICTING_ROWS, conflicting)):
            if count:
                repairs[name] = repairs.get(name, 0) + count
        created = self._facts.get(("sys/creation_time", "datetime")) or self._info.created_at
        fork = self._facts.get(("sys/forking/step", "int"))
        if fork is None:
            fork = self._facts.get(("sys/forking/step", "float"))
        return RunRecord(
            run_id=self._info.run_id,
            state="partial" if errors else "complete",
            digest=digest,
            fingerprint=self._info.fingerprint,
            generation=self.generation,
            committed_at=now(),
            rows=dict(sorted(rows.items())),
            attributes=dict(sorted(arrived.items())),
            promised=promised,
            parts=tuple(parts),
            files=tuple(self._records),
            errors=tuple(errors),
            notes=(*_issues(end.notes if end else ()), *_conflict_notes(conflicts, attributes)),
            repairs=repairs,
            source=self._source_kind,
            created_at=None if created is None else created.astimezone(UTC).isoformat(),
            name=self._facts.get(("sys/name", "string")),
            parent=self._facts.get(("sys/forking/parent", "string")),
            fork_step=None if fork is None else round(fork * MICROSTEPS),
            in_place=None if in_place is None else in_place.files_root,
        )


def _issues(issues: Sequence[Issue]) -> list[IssueRecord]:
    return [IssueRecord(issue.message, issue.attribute_path, issue.attribute_type) for issue in issues]


def _conflict_notes(conflicts: Mapping[int, int], attributes: Attributes) -> Iterator[IssueRecord]:
    """Name the attributes that had several values for one step, or several values, and how many were replaced."""
    named = sorted((attributes.names[number], count) for number, count in conflicts.items())
    for (path, kind), count in named[:_NAMED_CONFLICTS]:
        where = "at a step that has " if kind in _SERIES_TYPES else "where there is "
        yield IssueRecord(
            f"{count:,} values were replaced by another one {where}several: the latest by time is kept, of equal times "
            "the one that was read last.",
            path,
            kind,
        )
    if len(named) > _NAMED_CONFLICTS:
        rest = named[_NAMED_CONFLICTS:]
        replaced = sum(count for _, count in rest)
        yield IssueRecord(f"{len(rest):,} more attributes had {replaced:,} values replaced by others in the same way.")


def _missing(promised: Mapping[str, int], arrived: Mapping[str, int]) -> list[IssueRecord]:
    return [
        IssueRecord(
            f"The source promised {promised.get(kind, 0):,} attributes of type {kind}, "
            f"{arrived.get(kind, 0):,} arrived.",
            attribute_type=kind,
        )
        for kind in sorted({*promised, *arrived})
        if promised.get(kind, 0) != arrived.get(kind, 0)
    ]
