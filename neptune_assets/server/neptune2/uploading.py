"""Handlers: files and file sets arrive, whole, in parts, or as an archive. Bytes first, then the attribute's value."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from starlette.responses import Response

from neptune_assets.schema import AttributeType
from neptune_assets.server.endpoints import Call
from neptune_assets.server.neptune2.answers import Json
from neptune_assets.server.neptune2.errors import BadRequestError
from neptune_assets.server.neptune2.file_values import mime_of_content, mime_of_extension
from neptune_assets.server.neptune2.filesets import Member, member_path, unpack
from neptune_assets.server.neptune2.state import number_of, state_of, text_of
from neptune_assets.server.neptune2.stored_filesets import put_members, update_value
from neptune_assets.server.neptune2.uploads import Uploads, parse_range
from neptune_assets.server.neptune2.writing import Application, answer_of
from neptune_assets.server.store.runs import file_value

if TYPE_CHECKING:
    from neptune_assets.server.store.files import Stored
    from neptune_assets.server.store.projects import ProjectStore

_CHUNK = 1 << 20
_MAX_EXTENSION = 64


def upload_file(call: Call) -> Response:
    """Take a whole file."""
    project = _project(call)
    stored = _keep(project, [call.body])
    return _name_file(call, stored, _extension(call), call.body[:262])


def upload_member(call: Call) -> Response:
    """Take a whole file of a file set."""
    path = member_path(text_of(call, "subPath"))
    stored = _keep(_project(call), [call.body])
    return _add_members(call, [Member(path, stored.sha256, stored.size, _now())], reset=False)


def start_upload(call: Call) -> Response:
    """Begin a file, or a file of a file set, in parts."""
    total = number_of(call, "totalLength", -1)
    if not 0 <= total <= call.service.settings.file_gb << 30:
        raise BadRequestError(f"A file may have {call.service.settings.file_gb} GiB.")
    about = {
        "experiment": text_of(call, "experimentIdentifier"),
        "attribute": text_of(call, "attribute"),
        "ext": _extension(call),
        "subPath": text_of(call, "subPath") and member_path(text_of(call, "subPath")),
    }
    return Json({"uploadId": _uploads(call).start(total, about), "errors": []})


def upload_part(call: Call) -> Response:
    """Take a part."""
    at = parse_range(call.request.headers.get("x-range"))
    _uploads(call).put(text_of(call, "uploadId"), at, call.body)
    return Json({"errors": []})


def finish_upload(call: Call) -> Response:
    """Join the parts of a file and let its attribute name it."""
    uploads, identifier = _uploads(call), text_of(call, "uploadId")
    about = uploads.about(identifier)
    named = {"experiment": text_of(call, "experimentIdentifier"), "attribute": text_of(call, "attribute")}
    if any(about[key] != value for key, value in named.items()):
        raise BadRequestError("The upload was begun for another attribute.")
    head = b""

    def blocks() -> Iterable[bytes]:
        nonlocal head
        for block in uploads.blocks(identifier):
            head = head or block[:262]
            yield block

    stored = _keep(_project(call), blocks())
    if about["subPath"]:
        members = [Member(about["subPath"], stored.sha256, stored.size, _now())]
        answer = _add_members(call, members, reset=False)
    else:
        answer = _name_file(call, stored, about["ext"], head)
    uploads.remove(identifier)
    return answer


def upload_archive(call: Call) -> Response:
    """Take several files of a file set as a tar.gz; ``reset`` forgets what was in it before."""
    project = _project(call)

    def keep(source: BinaryIO) -> tuple[str, int]:
        stored = _keep(project, iter(lambda: source.read(_CHUNK), b""))
        return stored.sha256, stored.size

    limit = call.service.settings.file_gb << 30
    members = list(unpack(io.BytesIO(call.body), keep, limit))
    return _add_members(call, members, reset=text_of(call, "reset").lower() == "true")


def _name_file(call: Call, stored: Stored, extension: str, head: bytes) -> Response:
    path = text_of(call, "attribute")

    def change(application: Application, writing: Any, run: Any) -> None:
        # A file set may have members of any name: no key of a file can be one of another.
        name = path.rpartition("/")[2]
        key = f"{run.uuid}/{path}/{name}" + (f".{extension}" if extension else "")
        mime = mime_of_extension(extension) if extension else mime_of_content(head) or mime_of_extension("")
        before = _size_at(writing, run, path)
        value = {**file_value(key, stored.size, mime), "ext": extension}
        if application.assign(path, AttributeType.FILE, value):
            writing.put_file(key, stored.sha256, stored.size, mime)
            application.grow(stored.size - before)

    return _changed(call, change)


def _add_members(call: Call, members: Sequence[Member], *, reset: bool) -> Response:
    path = text_of(call, "attribute")

    def change(application: Application, writing: Any, run: Any) -> None:
        operations = writing.operations(run)
        if reset and operations.kind(path) is AttributeType.FILE_SET:
            application.grow(-_size_at(writing, run, path))
            operations.delete(path)
        if not application.assign_if_new(path, AttributeType.FILE_SET, {"size": 0, "files": 0}):
            return
        attribute = operations.attribute(path, AttributeType.FILE_SET)
        application.grow(put_members(writing.connection, attribute.id, members))
        update_value(operations, path, writing.connection, attribute.id)

    return _changed(call, change)


def _changed(call: Call, change: Callable[[Application, Any, Any], None]) -> Response:
    identifier = text_of(call, "experimentIdentifier") or text_of(call, "experimentId")
    if not text_of(call, "attribute"):
        raise BadRequestError("The attribute is not named.")
    with state_of(call).containers.writing(identifier) as (project, writing, run):
        application = Application(writing, run, project.objects)
        change(application, writing, run)
    return Json({"errors": answer_of(application.errors)})


def _size_at(writing: Any, run: Any, path: str) -> int:
    """Bytes of the file or file set that an attribute holds so far."""
    row = writing.connection.execute(
        "SELECT json_extract(value, '$.size') FROM attributes WHERE run = ? AND path = ?"
        " AND type IN ('file', 'file_set')",
        (run.id, path),
    ).fetchone()
    return 0 if row is None or row[0] is None else int(row[0])


def _keep(project: ProjectStore, blocks: Iterable[bytes]) -> Stored:
    incoming = project.objects.receive()
    try:
        for block in blocks:
            incoming.write(block)
        return incoming.keep()
    finally:
        incoming.drop()


def _project(call: Call) -> ProjectStore:
    identifier = text_of(call, "experimentIdentifier") or text_of(call, "experimentId")
    return state_of(call).containers.project_to_write(identifier)


def _uploads(call: Call) -> Uploads:
    return Uploads(_project(call).directory / "parts")


def _extension(call: Call) -> str:
    extension = text_of(call, "ext")
    if len(extension) > _MAX_EXTENSION or "/" in extension or "\0" in extension:
        raise BadRequestError(f"{extension!r} cannot be the extension of a file.")
    return extension


def _now() -> int:
    return time.time_ns() // 1_000_000
