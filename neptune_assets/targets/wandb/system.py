"""System metrics: Neptune's ``monitoring/`` series as what W&B's page shows in its own section.

W&B keeps no step for them: a record has a time, and a value for each of some keys. A point has its place there if it
has a time from 1970 on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from neptune_assets.targets.wandb.columns import NO_TIME, Bools, Ints
from neptune_assets.targets.wandb.encoding import PointEncoder
from neptune_assets.targets.wandb.records import stats_fields, varint
from neptune_assets.targets.wandb.texts import varints

MONITORING: Final = "monitoring/"
"""Where neptune-client puts what it measures of the machine; neptune-scale measures nothing."""
SYSTEM: Final = pa.schema([("time", pa.int64()), ("key", pa.int64()), ("value", pa.float64())])


def placeable(times: Ints) -> Bools:
    """Return which points, by their times in milliseconds, W&B's section can hold."""
    result: Bools = (times != NO_TIME) & (times >= 0)
    return result


class SystemEncoder:
    """Turns points sorted by time into serialised records: points of one time share one, unless a key comes twice."""

    def __init__(self, keys: Sequence[str], first_number: int) -> None:
        """``keys`` are told by their number."""
        self._fields = stats_fields()
        self._points = PointEncoder(keys, self._fields.items)
        self._number = first_number
        self.rows = 0
        """Records that were made."""

    def records(self, batches: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
        """Yield records; batches have the schema SYSTEM."""
        for batch in batches:
            if batch.num_rows:
                yield from self._records(batch)

    def _records(self, batch: pa.RecordBatch) -> list[bytes]:
        times: Ints = batch.column("time").to_numpy()
        keys: Ints = batch.column("key").to_numpy()
        begins = (times[1:] != times[:-1]) | (keys[1:] <= keys[:-1])
        starts = np.concatenate(([0], np.flatnonzero(begins) + 1))
        items = self._points.encode(keys, batch.column("value")).rows(starts, len(keys))
        seconds, rest = np.divmod(times[starts], 1000)
        moment = [_tag(1, 0), varints(seconds), _tag(2, 0), varints(rest * 1_000_000)]
        body = [_tag(self._fields.timestamp, 2), varints(_length(moment)), *moment, items]
        numbers = np.arange(self._number, self._number + len(starts))
        head = [_tag(self._fields.num, 0), varints(numbers), _tag(self._fields.stats, 2), varints(_length(body))]
        self._number += len(starts)
        self.rows += len(starts)
        whole = pc.binary_join_element_wise(*head, *body, pa.scalar(b"", pa.large_binary()))
        made: list[bytes] = whole.to_pylist()
        return made


def record_points(record: Any) -> tuple[int, list[str], list[float]]:
    """Return time in milliseconds, keys and values of a parsed record of system metrics."""
    stats = record.stats
    time = stats.timestamp.seconds * 1000 + stats.timestamp.nanos // 1_000_000
    return time, [item.key for item in stats.item], [float(item.value_json) for item in stats.item]


def _tag(field: int, wire: int) -> Any:
    return pa.scalar(varint(field << 3 | wire), pa.large_binary())


def _length(parts: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Return how many bytes these parts, constants among them, take in each row."""
    sizes = [len(part.as_py()) if isinstance(part, pa.Scalar) else pc.binary_length(part).to_numpy() for part in parts]
    total: npt.NDArray[np.int64] = np.sum(np.broadcast_arrays(*sizes), axis=0).astype(np.int64)
    return total
