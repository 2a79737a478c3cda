"""Runs as ``<workspace>/<project>/<run>.jsonl``, one row of the schema a line; files beside them below ``files``."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from neptune_assets.errors import FileGoneError, UnknownProjectError
from neptune_assets.schema import SCHEMA, Scope
from neptune_assets.settings import Filters
from neptune_assets.sources.files import AllowedRoots, open_regular
from neptune_assets.sources.filters import Selection
from neptune_assets.sources.protocol import Issue, RunEnd, RunInfo, RunRows, SourceFile

BATCH = 10_000


@dataclass(frozen=True)
class _File:
    relative_path: str
    place: str

    def open(self) -> BinaryIO:
        return open_regular(self.place)


class JsonLines:
    kind = "json_lines"

    def __init__(self, directory: str, filters: Filters) -> None:
        self._root = Path(directory)
        self._selection = Selection(filters)

    def projects(self) -> list[str]:
        found = (place.relative_to(self._root).as_posix() for place in self._root.glob("*/*") if place.is_dir())
        return sorted(project for project in found if self._selection.project(project))

    def runs(self, project_id: str, scope: Scope = Scope.RUNS) -> list[RunInfo]:
        place = self._place(project_id)
        infos = []
        for file in sorted(place.glob("*.jsonl")) if scope is Scope.RUNS else []:
            status = file.stat()
            mark = f"{status.st_size}-{status.st_mtime_ns}"
            infos.append(RunInfo(file.stem, mark, size_hint=status.st_size))
        return [info for info in infos if self._selection.run(info)]

    def read(self, project_id: str, run_ids: Sequence[str], scope: Scope = Scope.RUNS) -> Iterator[RunRows | RunEnd]:
        known = {info.run_id for info in self.runs(project_id, scope)}
        for run_id in run_ids:
            attributes: dict[str, set[str]] = defaultdict(set)
            errors = [] if run_id in known else [Issue(f"There is no run {run_id!r}.")]
            try:
                for batch in self._batches(project_id, run_id) if run_id in known else ():
                    for path, kind in zip(*(batch[name].to_pylist() for name in SCHEMA.names[2:4]), strict=True):
                        attributes[kind].add(path)
                    if batch.num_rows:
                        yield RunRows(run_id, batch)
            except (OSError, ValueError, KeyError, pa.ArrowException) as error:
                errors.append(Issue(f"{run_id}.jsonl cannot be read: {error}. Correct the line."))
            yield RunEnd(run_id, {kind: len(paths) for kind, paths in attributes.items()}, errors)

    def files(self, project_id: str, run_id: str, reference: str, scope: Scope = Scope.RUNS) -> Sequence[SourceFile]:
        folder = self._place(project_id) / "files"
        place = AllowedRoots([folder], "source.json_lines.directory").real(folder / reference)
        if not Path(place).is_file():
            raise FileGoneError(f"{reference!r} is not in {folder}.", hint="Put it there.")
        return [_File(Path(place).name, place)]

    def problems(self, project_id: str | None = None) -> Sequence[Issue]:
        if project_id is None:
            return []
        strange = [file for file in self._place(project_id).iterdir() if file.is_file() and file.suffix != ".jsonl"]
        return [Issue(f"{file} is not a .jsonl file and was not read. Move it away.") for file in sorted(strange)]

    def _place(self, project_id: str) -> Path:
        if project_id not in self.projects():
            known = ", ".join(self.projects())
            raise UnknownProjectError(f"There is no project {project_id!r}; there are {known}.", hint="Choose one.")
        return self._root / project_id

    def _batches(self, project_id: str, run_id: str) -> Iterator[pa.RecordBatch]:
        with (self._place(project_id) / f"{run_id}.jsonl").open(encoding="utf-8") as lines:
            while some := [*islice(lines, BATCH)]:
                rows = [{"project_id": project_id, "run_id": run_id, **_row(json.loads(line))} for line in some]
                yield self._selection.batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no decimals and no times: they are texts there."""
    if row.get("step") is not None:
        row["step"] = Decimal(row["step"])
    for name in ("timestamp", "datetime_value"):
        if row.get(name) is not None:
            row[name] = datetime.fromisoformat(row[name])
    return row
