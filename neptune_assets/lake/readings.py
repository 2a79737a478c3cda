"""What comes out of a source while the lake's writer reads it: chunks, and the rows of the run being read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pyarrow as pa

from neptune_assets.errors import LakeError, NeptuneAssetsError
from neptune_assets.lake.sorting import RunSorter
from neptune_assets.settings import LakeSettings
from neptune_assets.sources.protocol import RunEnd, RunRows

SMALL_ROWS: Final = 2_048
SMALL_BYTES: Final = 1 << 20
"""What a run that is handled together with others may hold."""


class Reading:
    """The rows of the run being read: as they came while they are few, then with a sorter."""

    def __init__(self, run_id: str, settings: LakeSettings) -> None:
        self.run_id = run_id
        self.rows = 0
        self.nbytes = 0
        self.error: Exception | None = None
        self.batches: list[pa.RecordBatch] = []
        """The rows of a run that is small so far."""
        self._sorter: RunSorter | None = None
        self._settings = settings

    @property
    def small(self) -> bool:
        """True if it has few rows and none with files, which have to be stored before rows can be hashed."""
        return self._sorter is None and not any(_has_files(batch) for batch in self.batches)

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows; the first batch that cannot be understood makes the run fail."""
        if self.error is not None:
            return
        self.rows += batch.num_rows
        if self._sorter is None and self.rows <= SMALL_ROWS:
            self.nbytes += batch.nbytes
            if self.nbytes <= SMALL_BYTES:
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
