"""What comes out of a source while the lake's writer reads it: chunks, and the rows of the run being read."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from neptune_assets.errors import LakeError, NeptuneAssetsError
from neptune_assets.lake.sorting import RunSorter
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import RunEnd, RunRows


class Reading:
    """The rows of the run being read."""

    def __init__(self, run_id: str, settings: LakeSettings) -> None:
        self.run_id = run_id
        self.rows = 0
        self.error: Exception | None = None
        self.sorter = RunSorter(settings.rows_in_memory, settings.sort_memory_mb, settings.scratch)

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows; the first batch that cannot be understood makes the run fail."""
        if self.error is not None:
            return
        try:
            self.sorter.add(batch)
            self.rows += batch.num_rows
        except (ValueError, KeyError, pa.ArrowException) as error:
            if isinstance(error, OSError):
                raise
            self.error = error
            self.sorter.close()

    def close(self) -> None:
        """Remove what sorting spilled."""
        self.sorter.close()


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
