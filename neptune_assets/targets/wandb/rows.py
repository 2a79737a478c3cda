"""Reading a run from the lake once, its rows apart by attribute type."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from neptune_assets.schema import VALUE_COLUMN, AttributeType
from neptune_assets.targets.wandb.columns import codes

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun

_ROWS: Final = 65_536
_FEW_ROWS: Final = 2_048
"""Rows read at once where they may be long: histograms and texts."""
_NAMES: Final = ("attribute_path", "attribute_type", "step", "timestamp")
_LONG: Final = (AttributeType.HISTOGRAM_SERIES, AttributeType.STRING_SERIES)


def typed_rows(run: LakeRun, types: Collection[AttributeType]) -> Iterator[tuple[AttributeType, pa.RecordBatch]]:
    """Yield (type, rows of that type) for these attribute types, each type in the order of the lake.

    Batches have path, type, step, timestamp and the type's value. One pass reads everything, unless the run has many
    rows that may be long, which are then read a few at a time.
    """
    wanted = {kind for kind in types if run.record.rows.get(str(kind))}
    if sum(run.record.rows.get(str(kind), 0) for kind in _LONG) <= _FEW_ROWS:
        yield from _pass(run, wanted, _ROWS)
        return
    yield from _pass(run, wanted & {AttributeType.FLOAT_SERIES}, _ROWS)
    yield from _pass(run, wanted - {AttributeType.FLOAT_SERIES}, _FEW_ROWS)


def _pass(
    run: LakeRun, wanted: Collection[AttributeType], batch_rows: int
) -> Iterator[tuple[AttributeType, pa.RecordBatch]]:
    if not wanted:
        return
    columns = [*_NAMES, *sorted({VALUE_COLUMN[kind] for kind in wanted})]
    # A type that is hardly there is no reason to look at every row for it, and neither is leaving one out.
    every = sum(run.record.rows.get(str(kind), 0) for kind in wanted) * 2 > run.record.total_rows
    for batch in run.batches(types=None if every else wanted, columns=columns, batch_rows=batch_rows):
        numbers, names = codes(batch.column("attribute_type"))
        for number, name in enumerate(names):
            kind = AttributeType(name)
            if kind not in wanted:
                continue
            own = batch.select([*_NAMES, VALUE_COLUMN[kind]])
            if len(names) > 1:
                own = own.take(pa.array(np.flatnonzero(numbers == number)))
            yield kind, own
