"""Runs that stay in an export: read where they lie, with the repairs that their record names.

Nothing of the source is at hand when the lake is read, so the record must say everything. Whether it does is checked
when the run is recorded, by :func:`digest_in_place`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.errors import LakeDamagedError
from neptune_assets.lake.digest import RunDigest
from neptune_assets.lake.integrity import hash_stream
from neptune_assets.lake.parts import open_parquet
from neptune_assets.lake.records import FileRecord, PartRecord, RunRecord
from neptune_assets.lake.repair import conform, own_rows, repair_batch
from neptune_assets.lake.rows import NONE, Attributes
from neptune_assets.lake.sorting import RunSorter
from neptune_assets.lake.storage import Storage
from neptune_assets.settings import LakeSettings, StorageSettings

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
    storage = storage_in_place(part.name, settings)
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


def storage_in_place(place: str, settings: LakeSettings) -> Storage:
    """Reach an export: with its own storage settings, else with the lake's if it lies on the same kind of storage."""
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
