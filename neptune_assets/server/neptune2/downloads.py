"""Handlers: bytes of files, of images in a series, and of file sets as one archive; what is in a file set."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from starlette.background import BackgroundTask
from starlette.responses import FileResponse, Response, StreamingResponse

from neptune_assets.errors import LakeError, UnsafePathError
from neptune_assets.schema import AttributeType
from neptune_assets.server.catalog.search import NameFilter, values
from neptune_assets.server.catalog.tables import Run
from neptune_assets.server.endpoints import Call
from neptune_assets.server.neptune2.answers import Json, disposition
from neptune_assets.server.neptune2.attributes import detail_of, iso
from neptune_assets.server.neptune2.errors import NotFoundError
from neptune_assets.server.neptune2.file_values import download_name, extension_of, mime_of_extension
from neptune_assets.server.neptune2.filesets import Member, listing, pack
from neptune_assets.server.neptune2.readings import run_of
from neptune_assets.server.neptune2.series_pages import Asked
from neptune_assets.server.neptune2.state import number_of, state_of, text_of
from neptune_assets.server.neptune2.stored_filesets import members
from neptune_assets.server.signing import Grant
from neptune_assets.server.store.files import find_file

ZIP_PATH = "/api/leaderboard/v1/attributes/downloadFileSetZip"
_CHUNK = 1 << 20
_ZIP = "application/zip"


def download_attribute(call: Call) -> Response:
    """Return the bytes of a file."""
    run, path = run_of(call), text_of(call, "attribute")
    found, _ = values(call.service.catalog, call.service.series, [run], NameFilter([path], types=[AttributeType.FILE]))
    if not found:
        raise NotFoundError(f"There is no file at {path!r}.")
    detail = detail_of(found[0])
    extension = extension_of(detail)
    return _bytes(call, run, str(detail.get("path") or ""), download_name(path, extension))


def get_image(call: Call) -> Response:
    """Return the bytes of an image by its place in the series."""
    run, path = run_of(call), text_of(call, "attribute")
    asked = Asked(offset=number_of(call, "index", 0), limit=1)
    _, points = state_of(call).series.objects(run, path, AttributeType.FILE_SERIES, asked)
    if not points:
        raise NotFoundError(f"The series {path!r} has no value {asked.offset}.")
    key = str(points[0].value.get("path") or "")
    return _bytes(call, run, key, key.rpartition("/")[2])


def prepare_zip(call: Call) -> Response:
    """Return an id by which the archive of a file set can be asked for; it is packed when it is fetched."""
    run, path = run_of(call), text_of(call, "attribute")
    _members(call, run, path)
    grant = Grant(run.project, f"{text_of(call, 'experimentId')}\n{path}", "read")
    return Json({"id": call.service.signer.sign(grant), "downloadUrl": None})


def get_prepared_zip(call: Call) -> Response:
    """Return where an archive can be fetched."""
    identifier = text_of(call, "id")
    if call.service.signer.grant(identifier) is None:
        raise NotFoundError("There is no such download, or it was asked for too long ago.")
    url = f"{call.base_url}{ZIP_PATH}?id={quote(identifier, safe='')}"
    return Json({"id": identifier, "downloadUrl": url})


def download_zip(call: Call) -> Response:
    """Return a file set as a zip."""
    grant = call.service.signer.grant(text_of(call, "id"))
    identifier, _, path = ("", "", "") if grant is None else grant.key.partition("\n")
    container = state_of(call).containers.find(identifier)
    if container.run is None or not path:
        raise NotFoundError("There is no such download.")
    found = _members(call, container.run, path)
    descriptor, name = tempfile.mkstemp(suffix=".zip", dir=call.service.catalog.directory)
    try:
        with os.fdopen(descriptor, "w+b") as target:
            pack(target, found, lambda key: _open(call, container.run, key))
    except BaseException:
        Path(name).unlink()
        raise
    done = BackgroundTask(Path(name).unlink, missing_ok=True)
    headers = disposition(download_name(path, "zip"))
    return FileResponse(name, media_type=_ZIP, headers=headers, background=done)


def list_file_set(call: Call) -> Response:
    """Return what lies in one directory of a file set."""
    run, path = run_of(call), text_of(call, "attribute")
    found = listing(_members(call, run, path), text_of(call, "path"))
    if found is None:
        raise NotFoundError(f"The file set {path!r} has no directory {text_of(call, 'path')!r}.")
    entries = [
        {
            "name": entry.name,
            "fileType": "directory" if entry.is_directory else "file",
            "size": entry.size,
            "mtime": iso(entry.modified),
        }
        for entry in found
    ]
    return Json(entries)


def _members(call: Call, run: Run, path: str) -> list[Member]:
    """The members of a file set; of one in the lake, their paths there stand in for their hashes."""
    if run.origin == "store":
        with call.service.catalog.store_of(run).read() as connection:
            row = connection.execute(
                "SELECT id FROM attributes WHERE run = ? AND path = ? AND type = ?",
                (run.store_id, path, AttributeType.FILE_SET.value),
            ).fetchone()
            if row is not None:
                return list(members(connection, int(row[0])))
    else:
        lake = call.service.series.lake_run(run)
        if any(True for _ in _rows(call, run, path)):
            records = [item for item in lake.file_records(path) if item.attribute_type == AttributeType.FILE_SET]
            return [Member(item.member or item.path.rpartition("/")[2], item.path, item.size, 0) for item in records]
    raise NotFoundError(f"There is no file set at {path!r}.")


def _rows(call: Call, run: Run, path: str) -> Iterator[object]:
    wanted = NameFilter([path], types=[AttributeType.FILE_SET])
    yield from values(call.service.catalog, call.service.series, [run], wanted)[0]


def _open(call: Call, run: Run | None, key: str) -> BinaryIO:
    """Open the bytes of a member: by hash in the store, by path in the lake."""
    assert run is not None  # noqa: S101 - checked before anything is packed
    if run.origin == "store":
        return call.service.catalog.store_of(run).objects.intact(key).open("rb")
    return call.service.series.lake_run(run).open_file(key)


def _bytes(call: Call, run: Run, key: str, name: str) -> Response:
    """Answer with the bytes that a file's value names. Raises NotFoundError if they never arrived."""
    if run.origin == "store":
        project = call.service.catalog.store_of(run)
        with project.read() as connection:
            found = find_file(connection, key)
        if found is None:
            raise NotFoundError(f"The bytes of {name!r} are not on the server.")
        media = found[1] or mime_of_extension(name.rpartition(".")[2])
        return FileResponse(project.objects.intact(found[0]), media_type=media, headers=disposition(name))
    try:
        stream = call.service.series.lake_run(run).open_file(key)
    except (LakeError, UnsafePathError) as error:
        raise NotFoundError(f"The bytes of {name!r} are not in the lake.") from error
    media = mime_of_extension(name.rpartition(".")[2])
    return StreamingResponse(_chunks(stream), media_type=media, headers=disposition(name))


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while chunk := stream.read(_CHUNK):
            yield chunk
