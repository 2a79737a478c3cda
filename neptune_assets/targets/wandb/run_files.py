"""Files of a run on their way to W&B: out of the lake, checked, and into their places as media or run files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from neptune_assets.errors import FileGoneError, TargetError
from neptune_assets.lake.layout import format_step
from neptune_assets.schema import AttributeType
from neptune_assets.targets.ruled import wanted_name
from neptune_assets.targets.wandb import records
from neptune_assets.targets.wandb.account import Account
from neptune_assets.targets.wandb.columns import microsteps, milliseconds, plain, present
from neptune_assets.targets.wandb.events import EventSpool
from neptune_assets.targets.wandb.mapping import Layout
from neptune_assets.targets.wandb.media import FileStage, StagedFile

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun


class RunFiles:
    """Takes in the files of one run."""

    def __init__(self, run: LakeRun, placed: Layout, stage: FileStage, events: EventSpool, account: Account) -> None:
        self._run, self._placed, self._stage, self._events, self._account = run, placed, stage, events, account
        self._wanted = wanted_name(run)

    def add(self, kind: str, rows: pa.RecordBatch) -> None:
        """Take the files that rows of one attribute type name."""
        for path, step, stepped, time, value in zip(
            plain(rows.column("attribute_path")).to_pylist(),
            microsteps(rows.column("step")).tolist(),
            present(rows.column("step")).tolist(),
            milliseconds(rows.column("timestamp")).tolist(),
            rows.column("file_value").to_pylist(),
            strict=True,
        ):
            where = None if value is None else value["path"]
            if where is None:
                self._account.dropped[kind, "it names no file"] += 1
            elif kind == AttributeType.FILE_SET:
                self._file_set(path, kind)
            else:
                self._file(path, kind, where, step if stepped else None, time)

    def _file(self, path: str, kind: str, where: str, step: int | None, time: int) -> None:
        expected = {record.path: record.sha256 for record in self._run.file_records(path)}
        try:
            with self._run.open_file(where) as source:
                copy = self._stage.copy(source, where)
        except FileGoneError:
            self._account.dropped[kind, "its file is not in the lake"] += 1
            return
        self._same(path, copy.sha256, expected.get(where))
        staged = StagedFile(path, kind, "", 0, "", step)
        facts = None
        if kind in {AttributeType.FILE, AttributeType.FILE_SERIES}:
            facts = self._stage.media(copy, self._placed.keys[path, kind], staged)
        if facts is None:
            name = self._wanted(path)
            self._stage.keep(copy, name if step is None else f"{name}/step_{format_step(step)}", staged)
            (self._account.mapped if kind == AttributeType.FILE_SERIES else self._account.written)[kind] += 1
            return
        self._account.written[kind] += 1
        at = self._placed.survey.highest if step is None else step
        self._events.add(path, kind, at, time, records.json_text(facts), counted=kind == AttributeType.FILE_SERIES)

    def _file_set(self, path: str, kind: str) -> None:
        members = [record for record in self._run.file_records(path) if record.attribute_type == kind]
        if not members:
            self._account.dropped[kind, "its files are not in the lake"] += 1
            return
        for record in members:
            with self._run.open_file(record.path) as source:
                copy = self._stage.copy(source, record.member or record.path)
            self._same(path, copy.sha256, record.sha256)
            copy.extension = ""  # a member keeps its own name
            name = record.member or record.path.rpartition("/")[2]
            self._stage.keep(copy, f"{self._wanted(path)}/{name}", StagedFile(path, kind, "", 0, "", None, name))
        self._account.written[kind] += 1

    def _same(self, path: str, sha256: str, expected: str | None) -> None:
        if expected is not None and sha256 != expected:
            raise TargetError(
                f"The file of {path!r} in run {self._run.run_id} is not the one the lake's manifest knows.",
                hint="Materialize the lake again; a file of it was changed.",
            )
