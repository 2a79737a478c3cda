"""A run's series as they were, in a Parquet file beside what a target holds of them and cannot hold exactly."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq

from neptune_assets.schema import SCHEMA, VALUE_COLUMN, AttributeType

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun

COPIED_TYPES: Final = frozenset({AttributeType.FLOAT_SERIES, AttributeType.HISTOGRAM_SERIES, AttributeType.FILE_SERIES})
_NAMES: Final = ("attribute_path", "attribute_type", "step", "timestamp")
_VALUES: Final = ("float_value", "string_value", "histogram_value", "file_value")


def write_lossless_copy(run: LakeRun, path: Path, types: Collection[AttributeType] = COPIED_TYPES) -> None:
    """Keep series of these types once more, with every step, time and value as they were."""
    wanted = {VALUE_COLUMN[kind] for kind in types}
    schema = pa.schema([SCHEMA.field(name) for name in (*_NAMES, *_VALUES) if name in _NAMES or name in wanted])
    encoding = {
        "step": "DELTA_BINARY_PACKED",
        "timestamp": "DELTA_BINARY_PACKED",
        "float_value": "BYTE_STREAM_SPLIT",
    }
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=["attribute_path", "attribute_type"],
        column_encoding=encoding,
        store_decimal_as_integer=True,
    ) as writer:
        for batch in run.batches(types=types, columns=schema.names):
            writer.write_batch(batch.cast(schema))
