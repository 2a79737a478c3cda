"""Where the statistics of a project lie: ``<root>/statistics/<S(project)>/{series,params}.parquet``, runs by digest."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neptune_assets.lake.hashed_files import UNKNOWN, difference, replacing_hashed
from neptune_assets.lake.layout import Layout
from neptune_assets.lake.parts import open_parquet
from neptune_assets.lake.records import RunRecord
from neptune_assets.lake.statistics_tables import PARAMS, SERIES, RunFacts, parameter_table, series_table
from neptune_assets.lake.storage import Storage
from neptune_assets.scratch import ScratchDirectory

log = logging.getLogger(__name__)

_SCHEMAS: Final = {"series": SERIES, "params": PARAMS}
_BATCH_ROWS: Final = 65_536
_BATCH_BYTES: Final = 16 << 20
_OPTIONS: Final[dict[str, Any]] = {
    "compression": "zstd",
    "compression_level": 13,
    "write_page_checksum": True,
    "store_decimal_as_integer": True,
    "use_dictionary": [field.name for schema in (SERIES, PARAMS) for field in schema if field.type == pa.string()],
}


class StatisticsFiles:
    """The statistics of one project, rewritten once at the end of a materialization that read runs."""

    def __init__(self, storage: Storage, layout: Layout, project_id: str, scratch: str | None) -> None:
        self._storage = storage
        self._directory = layout.statistics(project_id)
        self._scratch = scratch
        self._spool: ScratchDirectory | None = None
        self._writers: list[Any] = []
        self._added: dict[str, str] = {}
        self._held: list[RunFacts] = []
        self._held_rows = 0
        self._held_bytes = 0

    def add(self, facts: RunFacts) -> None:
        """Take what was found out about a run that was committed."""
        self._held.append(facts)
        self._held_rows += facts.rows
        self._held_bytes += facts.nbytes
        self._added[facts.run_id] = facts.digest
        if self._held_rows >= _BATCH_ROWS or self._held_bytes >= _BATCH_BYTES:
            self._spill()

    def _spill(self) -> None:
        if self._spool is None:
            self._spool = ScratchDirectory("statistics", self._scratch)
            for name, schema in _SCHEMAS.items():
                sink = pa.OSFile(f"{self._spool.path}/{name}.arrow", "wb")
                self._writers.append((sink, pa.ipc.new_stream(sink, schema)))
        for (_, writer), table in zip(self._writers, (series_table, parameter_table), strict=True):
            writer.write_batch(table(self._held))
        self._held, self._held_rows, self._held_bytes = [], 0, 0

    def save(self, records: Mapping[str, RunRecord]) -> None:
        """Write the files anew: what was added, and what was there of runs that are as they were."""
        if self._held:
            self._spill()
        if self._spool is None:
            return
        self._close_writers()
        digests = {run_id: record.digest for run_id, record in records.items()}
        kept = {run_id: digest for run_id, digest in digests.items() if self._added.get(run_id) != digest}
        self._storage.make_directory(self._directory)
        for name, schema in _SCHEMAS.items():
            target = f"{self._directory}/{name}.parquet"
            # Under the project's lock nobody else writes here; a local move needs the same file system.
            local = f"{target}.tmp" if self._storage.local else f"{self._spool.path}/{name}.parquet"
            with pq.ParquetWriter(local, schema, **_OPTIONS) as writer:
                old, new = self._stored(target, schema), _spooled(f"{self._spool.path}/{name}.arrow")
                for batches, wanted in ((old, kept), (new, self._added)):
                    for table in _gathered((_of(batch, wanted) for batch in batches), schema):
                        writer.write_table(table)
            with replacing_hashed(Path(local), target, None if self._storage.local else self._storage.filesystem):
                self._storage.put_file(local, target)

    def added(self) -> dict[str, str]:
        """Write what was added to Parquet files that live until :meth:`close`, by table; empty if nothing was."""
        if self._held:
            self._spill()
        if self._spool is None:
            return {}
        self._close_writers()
        found = {}
        for name, schema in _SCHEMAS.items():
            found[name] = f"{self._spool.path}/{name}-added.parquet"
            with pq.ParquetWriter(found[name], schema, store_decimal_as_integer=True) as writer:
                for table in _gathered(_spooled(f"{self._spool.path}/{name}.arrow"), schema):
                    writer.write_table(table)
        return found

    def _stored(self, path: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        try:
            if not usable_statistics(self._storage, path):
                return
            with open_parquet(self._storage, path) as file:
                for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                    yield _completed(batch, schema)
        except FileNotFoundError:
            return
        except (pa.ArrowException, OSError) as error:
            log.warning("Statistics %s cannot be read (%s): the summary makes them again.", path, error)

    def close(self) -> None:
        """Remove what was spooled."""
        self._close_writers()
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def _close_writers(self) -> None:
        for sink, writer in self._writers:
            writer.close()
            sink.close()
        self._writers = []


def usable_statistics(storage: Storage, path: str) -> bool:
    """True if statistics are as they were written; a warning names those that are damaged. They can be made again."""
    damage = difference(path, None if storage.local else storage.filesystem)
    if damage not in {None, UNKNOWN}:
        log.warning("Statistics %s are damaged: %s. They are made again.", storage.url(path), damage)
    return damage is None


def _spooled(path: str) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(path, "rb") as source:
        yield from pa.ipc.open_stream(source)


def _completed(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return rows of an older file with the columns that it did not have yet, empty."""
    columns = [
        batch[field.name] if field.name in batch.schema.names else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _of(batch: pa.RecordBatch, wanted: Mapping[str, str]) -> pa.RecordBatch:
    """Return the rows of these runs, where they are of this digest."""
    runs = batch["run_id"].dictionary_encode()
    # A batch holds few runs in long stretches; a run that was read twice is there with its last digest only.
    digests = pa.array([wanted.get(run_id) for run_id in runs.dictionary.to_pylist()], pa.string())
    return batch.filter(pc.equal(batch["digest"], digests.take(runs.indices)))


def _gathered(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Join small batches into tables worth a row group."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        if rows >= _BATCH_ROWS:
            yield pa.Table.from_batches(held, schema=schema)
            held, rows = [], 0
    if rows:
        yield pa.Table.from_batches(held, schema=schema)
