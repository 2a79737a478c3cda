"""Write one run's rows to Parquet parts: small, quick to read, prunable, and readable by neptune-exporter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from neptune_assets.lake.integrity import HashingSink
from neptune_assets.lake.manifest import PartRecord
from neptune_assets.lake.rows import Attributes, concat, no_rows, raw, unpack
from neptune_assets.lake.storage import Storage
from neptune_assets.schema import SCHEMA

GENERATION: Final = "neptune_assets.generation"
RUN_ID: Final = "neptune_assets.run_id"

_MIB: Final = 1 << 20

_LEVELS: Final = dict.fromkeys(SCHEMA.names, 3)
_THOROUGH: Final = _LEVELS | {"float_value": 14}
"""From level 14 on zstd chooses its blocks by cost: a twentieth off values of series, in four times as long."""
CHECKED_WHOLE: Final = 4_096
"""Rows of a part up to which its pages have no CRC: a small part is compared with its sha256 whoever reads it, and CRCs
would take a thirtieth of its bytes. In a larger part also who reads one column alone meets no damaged value."""
_SAMPLE: Final = 8_192
_COMPRESSIBLE: Final = 0.8
"""Values whose sample does not become smaller than this are noise, which no level makes any smaller."""

_OPTIONS: Final[dict[str, Any]] = {
    "compression": "zstd",
    "use_dictionary": ["project_id", "run_id", "attribute_path", "attribute_type", "string_value"],
    "store_decimal_as_integer": True,
    # What readers prune by. Bounds of list elements and of file names only take room.
    "write_statistics": [field.name for field in SCHEMA if not pa.types.is_nested(field.type)],
    "column_encoding": {
        "step": "DELTA_BINARY_PACKED",
        "timestamp": "DELTA_BINARY_PACKED",
        "float_value": "BYTE_STREAM_SPLIT",
    },
}


@dataclass(frozen=True, slots=True)
class WriteLimits:
    """Sizes and numbers up to which a lake's writer keeps things together. No result depends on them."""

    part_bytes: int | None = None
    """A part is closed at this many bytes; None for the setting ``part_mb``."""
    row_group_rows: int = 131_072
    """Enough to compress well, few enough to write, read and prune with little memory."""
    row_group_bytes: int = 32 << 20
    """A row group is closed at this many bytes in memory, for runs with large values."""
    small_run_rows: int = 2_048
    small_run_bytes: int = 1 << 20
    """Rows and bytes of a run that is sorted together with others."""
    sorted_runs: int = 64
    sorted_bytes: int = 4 << 20
    """Small runs that are sorted together."""
    commit_runs: int = 128
    commit_bytes: int = 32 << 20
    """Runs that share a commit: what it costs does not depend on how many they are."""
    wait_seconds: float = 1.0
    """No run waits longer than this for others."""
    deltas: int = 1_000
    """Commits after which a long materialization writes a checkpoint of the manifest in between."""


class PartWriter:
    """Write compact rows of one run, already sorted, to parts in a local directory.

    ``name`` gives the file name of a part by its number, see :func:`neptune_assets.lake.layout.part_name`; ``on_close``
    is called with the path of each finished part, which is not durable yet.
    """

    def __init__(
        self,
        directory: str,
        project_id: str,
        run_id: str,
        generation: str,
        attributes: Attributes,
        name: Callable[[int], str],
        on_close: Callable[[str], None],
        *,
        part_bytes: int,
        limits: WriteLimits,
    ) -> None:
        self._directory = Path(directory)
        self._project_id = project_id
        self._run_id = run_id
        self._generation = generation
        self._attributes = attributes
        self._part_bytes = part_bytes
        self._limits = limits
        self._name = name
        self._on_close = on_close
        self._held: list[pa.RecordBatch] = []
        self._held_rows = 0
        self._held_bytes = 0
        self._sink: HashingSink | None = None
        self._writer: Any = None
        self._rows = 0
        self.parts: list[PartRecord] = []

    def write(self, rows: pa.RecordBatch) -> None:
        """Take the next compact rows; full row groups go to disk, full parts are closed."""
        start = 0
        while start < rows.num_rows:
            piece = rows.slice(start, self._limits.row_group_rows - self._held_rows)
            start += piece.num_rows
            self._held.append(piece)
            self._held_rows += piece.num_rows
            self._held_bytes += piece.nbytes
            if self._held_rows >= self._limits.row_group_rows or self._held_bytes >= self._limits.row_group_bytes:
                self._flush()

    def close(self) -> list[PartRecord]:
        """Finish the last part and return all; a run without rows has one empty part."""
        if self._held or not self.parts:
            self._flush()
        self._close_part()
        return self.parts

    def abort(self) -> None:
        """Let go of the open file; what was written is left for the caller to remove."""
        writer, sink = self._writer, self._sink
        self._writer = self._sink = None
        if writer is not None:
            # The part is thrown away: what can no longer be written (a full disk) does not matter.
            with suppress(OSError, pa.ArrowException):
                writer.close()
        if sink is not None:
            with suppress(OSError):
                sink.close()

    def _flush(self) -> None:
        held, self._held, self._held_rows, self._held_bytes = self._held, [], 0, 0
        rows = concat(held) if held else no_rows()
        batch = unpack(rows, self._attributes, self._project_id, self._run_id, encoded=True)
        if self._writer is None:
            self._open(batch)
        self._writer.write_batch(batch, row_group_size=self._limits.row_group_rows)
        self._rows += batch.num_rows
        if self._sink is not None and self._sink.tell() >= self._part_bytes:
            self._close_part()

    def _open(self, batch: pa.RecordBatch) -> None:
        path = self._directory / self._name(len(self.parts))
        self._sink = HashingSink(path)
        # Names are written from their dictionaries, which is twice as fast; a stored Arrow schema would make readers
        # return them so. Parquet's own types give every reader the plain schema.
        levels = _levels(batch["float_value"])
        self._writer = pq.ParquetWriter(
            self._sink,
            batch.schema,
            store_schema=False,
            compression_level=levels,
            # What is flushed first with few rows and bytes is all there is.
            write_page_checksum=batch.num_rows > CHECKED_WHOLE or batch.nbytes > _MIB,
            **_OPTIONS,
        )
        self._writer.add_key_value_metadata(
            {
                GENERATION: self._generation,
                RUN_ID: self._run_id,
            }
        )

    def _close_part(self) -> None:
        if self._writer is None or self._sink is None:
            return
        self._writer.close()
        size, digest = self._sink.tell(), self._sink.hexdigest()
        self._sink.close()
        name = self._name(len(self.parts))
        self._on_close(str(self._directory / name))
        self.parts.append(PartRecord(name=name, rows=self._rows, bytes=size, sha256=digest))
        self._writer = self._sink = None
        self._rows = 0


def _levels(values: pa.Array) -> dict[str, int]:
    """Return the compression levels that pay for a part which begins with these values of series."""
    if len(values) - values.null_count < _SAMPLE:
        return _LEVELS
    values = values.drop_null()
    start = (len(values) - _SAMPLE) // 2
    sample = raw(values, np.float64)[start : start + _SAMPLE]
    # As Parquet lays them out: all first bytes, then all second ones, and so on.
    split = np.ascontiguousarray(sample).view(np.uint8).reshape(-1, 8).T.tobytes()
    pressed = len(pa.Codec("zstd", compression_level=3).compress(split))
    return _THOROUGH if pressed < _COMPRESSIBLE * len(split) else _LEVELS


def row_group_bounds(file: pq.ParquetFile, column: str) -> list[tuple[Any, Any] | None]:
    """Return the minimum and maximum of a plain column in every row group; None where the file does not say."""
    # The leaf's place equals the field's, because nested columns come later.
    place = file.schema.names.index(column)
    found: list[tuple[Any, Any] | None] = []
    for number in range(file.metadata.num_row_groups):
        statistics = file.metadata.row_group(number).column(place).statistics
        known = statistics is not None and statistics.has_min_max
        found.append((statistics.min, statistics.max) if known else None)
    return found


def part_generation(metadata: pq.FileMetaData) -> str | None:
    """Return which commit a part belongs to; None for a part that is not of this lake."""
    value = (metadata.metadata or {}).get(GENERATION.encode())
    return None if value is None else value.decode()


def open_parquet(
    storage: Storage, path: str, encoded: Sequence[str] = (), content: bytes | None = None
) -> pq.ParquetFile:
    """Open a Parquet file so that columns are streamed, not read at once. Raises FileNotFoundError.

    Columns named in ``encoded`` stay dictionary-encoded; ``content`` is the file's, where it was fetched already. Pages
    that have a checksum are compared with it.
    """
    if content is not None:
        source: Any = pa.BufferReader(content)
    else:
        source = pa.OSFile(path, "rb") if storage.local else storage.open(path)
    return pq.ParquetFile(
        source,
        buffer_size=1 << 16,
        pre_buffer=False,
        read_dictionary=list(encoded),
        page_checksum_verification=True,
    )
