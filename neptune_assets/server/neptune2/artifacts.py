"""Handlers: artifacts, which are lists of files that lie elsewhere, known by a hash over the list."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from starlette.responses import Response

from neptune_assets.server.endpoints import Call
from neptune_assets.server.neptune2.answers import Json
from neptune_assets.server.neptune2.artifact_hash import artifact_hash, artifact_size, merged
from neptune_assets.server.neptune2.errors import BadRequestError, NotFoundError
from neptune_assets.server.neptune2.state import state_of, text_of
from neptune_assets.server.store.database import ARTIFACT, RESTORE, DamagedError, intact, row_of
from neptune_assets.server.store.projects import ProjectStore
from neptune_assets.server.store.runs import put_artifact

_NEEDED = frozenset({"filePath", "fileHash", "type"})
_MAX_HASH = 128


def create_artifact(call: Call) -> Response:
    """Make an artifact by the hash that the client computed; tell whether the list of its files is here already."""
    digest, size = _hash(call), call.query.get("size")
    with _project(call).write() as writing:
        writing.connection.execute(
            "INSERT INTO artifacts (hash, size, files, checksum) VALUES (?, ?, ?, ?) ON CONFLICT (hash) DO NOTHING",
            row_of(digest, int(size) if size and size.isdecimal() and len(size) < 19 else None, None),
        )
        writing.changed = True
        row = _row(writing.connection, digest)
    return Json(_body(row))


def upload_files(call: Call) -> Response:
    """Take the list of an artifact's files."""
    digest, files = _hash(call), _files(call)
    with _project(call).write() as writing:
        if _row(writing.connection, digest) is None:
            raise NotFoundError(f"There is no artifact {digest!r}.")
        put_artifact(writing.connection, digest, artifact_size(files), files)
        writing.changed = True
        row = _row(writing.connection, digest)
    return Json(_body(row))


def create_version(call: Call) -> Response:
    """Make the artifact that results from tracking more files into one; its hash is computed here."""
    digest, added = _hash(call), _files(call)
    current = _known_files(call, digest)
    if current is None:
        raise NotFoundError(f"There is no artifact {digest!r}.")
    files = merged(current, added)
    # The first version of these calls, which names no version, hashes metadata, too.
    second = call.request.headers.get("x-neptune-artifact-api-version") == "2"
    made = artifact_hash(files, with_metadata=not second)
    with _project(call).write() as writing:
        put_artifact(writing.connection, made, artifact_size(files), files)
        writing.changed = True
        row = _row(writing.connection, made)
    return Json(_body(row))


def list_files(call: Call) -> Response:
    """Return the files of an artifact."""
    digest = _hash(call)
    files = _known_files(call, digest)
    if files is None:
        raise NotFoundError(f"There is no artifact {digest!r}.")
    return Json({"files": [{"size": None, "metadata": [], **file} for file in files]})


def _known_files(call: Call, digest: str) -> list[dict[str, Any]] | None:
    """The files of an artifact of the store, or of the lake; None if neither has it."""
    project_id = state_of(call).containers.project_id(text_of(call, "projectIdentifier"))
    if project_id in call.service.store.projects():
        with call.service.store.project(project_id).read() as connection:
            row = _row(connection, digest)
        if row is not None and row["files"] is not None:
            found: list[dict[str, Any]] = json.loads(row["files"])
            return found
    return state_of(call).artifacts.files(project_id, digest)


def _row(connection: sqlite3.Connection, digest: str) -> sqlite3.Row | None:
    row: sqlite3.Row | None = connection.execute(
        f"SELECT hash, size, files, {intact('artifacts', *ARTIFACT)} AS intact FROM artifacts WHERE hash = ?",  # noqa: S608
        (digest,),
    ).fetchone()
    if row is not None and not row["intact"]:
        raise DamagedError(f"The list of the files of artifact {digest!r} is damaged in the store.", hint=RESTORE)
    return row


def _body(row: sqlite3.Row | None) -> dict[str, Any]:
    assert row is not None  # noqa: S101 - written just before, in the same transaction
    return {"artifactHash": row["hash"], "receivedMetadata": row["files"] is not None, "size": row["size"]}


def _project(call: Call) -> ProjectStore:
    project_id = state_of(call).containers.project_id(text_of(call, "projectIdentifier"))
    return call.service.project_to_write(project_id)


def _hash(call: Call) -> str:
    digest = text_of(call, "hash")
    if not digest or len(digest) > _MAX_HASH:
        raise BadRequestError("The artifact's hash is missing.")
    return digest


def _files(call: Call) -> list[dict[str, Any]]:
    files = call.json_object().get("files")
    if not isinstance(files, list) or not all(isinstance(file, dict) and file.keys() >= _NEEDED for file in files):
        raise BadRequestError("A list of files with filePath, fileHash and type is expected.")
    return files
