"""Takes out of recordings what tells of the machine that made them, without touching what was logged.

Neptune's clients write absolute paths, the host's name and process numbers by themselves. Published recordings must
not hold them, so they are replaced by values of the same form: the folder of the recording by ``/recorded``, the host
by ``recorder``. What a file is found by stays: neptune-scale's copies lie beside its database under the same file
name, and files that neptune-client names by path keep their path below ``/recorded``, which is that of ``client/``.
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = "/recorded"
HOST = "recorder"


def neutralise_scale(folder: Path) -> None:
    """Rewrite every database of neptune-scale below a ``.neptune`` folder; leaves no ``-wal`` or ``-shm`` file."""
    for database in sorted(folder.glob("*/run_operations.sqlite3")):
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            paths = connection.execute("SELECT id, source_path FROM file_upload_requests").fetchall()
            for row, path in paths:
                neutral = f"{ROOT}/{PurePosixPath(path).name}"
                connection.execute("UPDATE file_upload_requests SET source_path = ? WHERE id = ?", (neutral, row))
            # Outside WAL mode, reading the database in a work tree leaves no files behind; VACUUM drops the free
            # pages, which still hold the old paths.
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("VACUUM")


def neutralise_client(folder: Path) -> None:
    """Rewrite logs, metadata and directory names of neptune-client below a ``.neptune`` folder.

    The folder's parent is what paths are taken to be relative to. Records keep their number and order.
    """
    home = os.fspath(folder.parent.resolve())
    for run in sorted((folder / "offline").iterdir()):
        for log in run.glob("data-*.log"):
            records = [json.loads(line) for line in log.read_text().splitlines()]
            log.write_text("".join(json.dumps(_neutral_record(record, home)) + "\n" for record in records))
        metadata = json.loads((run / "metadata.json").read_text())
        metadata["os"] = "Linux"
        metadata["pythonVersion"] = metadata["pythonVersion"].split()[0]
        (run / "metadata.json").write_text(json.dumps(metadata, indent=2))
        kind, container, _, rest = run.name.split("__")
        run.rename(run.with_name("__".join([kind, container, "1", rest])))


def _neutral_record(record: dict[str, Any], home: str) -> dict[str, Any]:
    operation = record["obj"]
    name = operation["path"][-1]
    if operation["type"] == "AssignString" and operation["path"][0] in {"sys", "monitoring"}:
        if name == "hostname":
            operation["value"] = HOST
        elif name in {"pid", "tid"}:
            operation["value"] = "1"
    if isinstance(operation.get("file_path"), str):
        operation["file_path"] = _neutral_path(operation["file_path"], home)
    if "file_globs" in operation:
        operation["file_globs"] = [_neutral_path(pattern, home) for pattern in operation["file_globs"]]
    return record


def _neutral_path(path: str, home: str) -> str:
    return ROOT + path[len(home) :] if path.startswith(home + "/") else path
