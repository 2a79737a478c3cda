"""Opens recordings of neptune-scale as a source, tells what was read from them, and edits their databases."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from neptune_assets.settings import Filters
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.offline.source import Offline

Row = dict[str, Any]


def database_of(folder: Path, run_id: str) -> Path:
    (found,) = folder.rglob(f"team_vision_{run_id}_*/run_operations.sqlite3")
    return found


def offline(*paths: Path, filters: Filters | None = None, **settings: Any) -> Offline:
    """The scripts that recorded ran in these folders, so files below them may be read."""
    settings.setdefault("files_from", [str(path) for path in paths])
    return Offline(OfflineSource(paths=[str(path) for path in paths], **settings), filters or Filters())


def values_of(rows: list[Row]) -> dict[str, Any]:
    """Single values by path."""
    columns = ("int_value", "float_value", "string_value", "bool_value", "datetime_value", "string_set_value")
    found: dict[str, Any] = {}
    for row in rows:
        if row["step"] is None and row["file_value"] is None:
            assert row["attribute_path"] not in found
            (found[row["attribute_path"]],) = [row[name] for name in columns if row[name] is not None]
    return found


def points_of(rows: list[Row], path: str, column: str) -> list[tuple[Decimal, datetime, Any]]:
    chosen = [row for row in rows if row["attribute_path"] == path]
    return sorted(((row["step"], row["timestamp"], row[column]) for row in chosen), key=lambda point: point[0])


def edit(database: Path, *statements: str, values: tuple[Any, ...] = ()) -> None:
    connection = sqlite3.connect(database)
    with connection:
        for statement in statements:
            connection.execute(statement, values)
    connection.close()
