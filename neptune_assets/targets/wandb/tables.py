"""String series on their way to W&B: one table after the other, each an event of the history."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from neptune_assets.schema import AttributeType
from neptune_assets.targets.wandb import records
from neptune_assets.targets.wandb.account import Account
from neptune_assets.targets.wandb.columns import NO_TIME
from neptune_assets.targets.wandb.events import EventSpool
from neptune_assets.targets.wandb.mapping import Layout
from neptune_assets.targets.wandb.media import Copy, FileStage, StagedFile
from neptune_assets.targets.wandb.series import TableFile, Text, texts


class TextTables:
    """Writes the tables of one run."""

    def __init__(self, placed: Layout, directory: Path, files: FileStage, events: EventSpool, account: Account) -> None:
        self._placed, self._files, self._events, self._account = placed, files, events, account
        self._path = directory / "files" / ".table"
        self._table: TableFile | None = None

    def add(self, rows: pa.RecordBatch) -> None:
        """Write a batch of rows of string series; they come series by series."""
        kind = str(AttributeType.STRING_SERIES)
        for text in texts(rows):
            if self._table is not None and (text.path != self._table.name or self._table.full):
                self.end()
            if self._table is None:
                self._table = TableFile(self._path, text.path)
            self._table.add(text)
            self._account.mapped[kind] += 1

    def end(self) -> None:
        """Finish the table that is being written."""
        if self._table is not None:
            self._close(self._table, self._table.name)
            self._table = None

    def _close(self, table: TableFile, path: str) -> None:
        kind = str(AttributeType.STRING_SERIES)
        size, sha256 = table.close()
        last = table.last or Text(path, None, None, None)
        step = self._placed.survey.highest if last.step is None else last.step
        key = self._placed.keys[path, kind]
        copy = Copy(self._path, size, sha256, "json")
        where = self._files.place_media(
            copy, key, "table", "table.json", StagedFile(path, kind, "", size, sha256, step)
        )
        facts = {
            "_type": "table-file",
            "path": where,
            "sha256": sha256,
            "size": size,
            "ncols": 3,
            "nrows": table.rows,
            "log_mode": "IMMUTABLE",
        }
        self._events.add(
            path, kind, step, NO_TIME if last.time is None else last.time, records.json_text(facts), counted=False
        )
