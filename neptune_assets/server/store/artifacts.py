"""Artifacts of 2.x clients: lists of files that lie elsewhere, kept under the hash over the list."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from neptune_assets.server.store.checksums import row_of


def put_artifact(
    connection: sqlite3.Connection, digest: str, size: int | None, files: Sequence[Mapping[str, Any]]
) -> None:
    """Keep the list of an artifact's files; ``size`` is that of all of them, if known."""
    connection.execute(
        "INSERT INTO artifacts (hash, size, files, checksum) VALUES (?, ?, ?, ?) ON CONFLICT (hash)"
        " DO UPDATE SET size = excluded.size, files = excluded.files, checksum = excluded.checksum",
        row_of(digest, size, json.dumps(list(files), ensure_ascii=False)),
    )
