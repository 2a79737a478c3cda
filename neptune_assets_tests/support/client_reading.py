"""Reads recordings of neptune-client as a source does, and writes the logs that the client cannot be made to write."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from neptune_assets.schema import SCHEMA, Scope
from neptune_assets.settings import Filters
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.offline.source import Offline
from neptune_assets.sources.protocol import RunEnd, RunRows

PROJECT = "team/old"
UUID = "01234567-89ab-cdef-0123-456789abcdef"
RUN_ID = "OFFLINE-0123456789ab"
NAME = f"run__{UUID}__77__abcdefgh"


@dataclass
class Read:
    source: Offline
    run_id: str
    scope: Scope
    rows: list[dict[str, Any]]
    end: RunEnd

    def values(self, path: str) -> list[Any]:
        return [_value(row) for row in self.rows if row["attribute_path"] == path]

    def value(self, path: str) -> Any:
        (value,) = self.values(path)
        return value

    def kinds(self, path: str) -> set[str]:
        return {row["attribute_type"] for row in self.rows if row["attribute_path"] == path}

    def points(self, path: str) -> list[tuple[Decimal, Any]]:
        return [(row["step"], _value(row)) for row in self.rows if row["attribute_path"] == path]

    def members(self, path: str, index: int = 0) -> dict[str, bytes]:
        files = self.source.files(PROJECT, self.run_id, self.values(path)[index], self.scope)
        content = {}
        for file in files:
            with file.open() as stream:
                content[file.relative_path] = stream.read()
        return content

    @property
    def errors(self) -> list[str]:
        return [issue.message for issue in self.end.errors]

    @property
    def notes(self) -> list[str]:
        return [issue.message for issue in self.end.notes]


def _value(row: dict[str, Any]) -> Any:
    kind = row["attribute_type"]
    if kind.startswith(("file", "artifact")):
        return row["file_value"]["path"]
    return row[f"{kind.removesuffix('_series')}_value"]


def read_all(*paths: Path, scope: Scope = Scope.RUNS, **options: Any) -> dict[str, Read]:
    settings = OfflineSource(paths=[str(path) for path in paths], **{"project": PROJECT, **options})
    source = Offline(settings, Filters())
    found = {}
    for info in source.runs(PROJECT, scope):
        rows: list[dict[str, Any]] = []
        for chunk in source.read(PROJECT, [info.run_id], scope):
            if isinstance(chunk, RunRows):
                assert chunk.batch.schema == SCHEMA
                chunk.batch.validate(full=True)
                rows.extend(chunk.batch.to_pylist())
            else:
                found[info.run_id] = Read(source, info.run_id, scope, rows, chunk)
    return found


def read_one(*paths: Path, **options: Any) -> Read:
    (found,) = read_all(*paths, **options).values()
    return found


def write_log(folder: Path, *operations: dict[str, Any], first: int = 1, at: float = 1_700_000_000.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"obj": operation, "version": first + number, "at": at + number}) + "\n"
        for number, operation in enumerate(operations)
    ]
    (folder / f"data-{first}.log").write_text("".join(lines))
    return folder


def op(kind: str, path: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "path": path.split("/"), **fields}


def floats(path: str, *values: float) -> dict[str, Any]:
    return op("LogFloats", path, values=[{"value": value, "step": None, "ts": 1.5} for value in values])


def tree(root: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path.relative_to(root)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(root.rglob("*"))
    }
