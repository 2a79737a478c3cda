"""Handlers: bytes of files and file sets in and out, uploads in parts, archives, and lists of files of artifacts."""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from urllib.parse import quote

from starlette.background import BackgroundTask
from starlette.responses import FileResponse, Response, StreamingResponse

from neptune_assets import durable
from neptune_assets.errors import LakeError, UnsafePathError
from neptune_assets.schema import AttributeType
from neptune_assets.server.catalog.search import NameFilter, values
from neptune_assets.server.catalog.tables import Run
from neptune_assets.server.endpoints import Call
from neptune_assets.server.neptune2.artifacts import artifact_hash, artifact_size, merged
from neptune_assets.server.neptune2.filesets import (
    Member,
    download_name,
    extension_of,
    listing,
    member_path,
    members,
    mime_of_content,
    mime_of_extension,
    pack,
    put_members,
    unpack,
    update_value,
)
from neptune_assets.server.neptune2.readings import run_of
from neptune_assets.server.neptune2.responses import RANGE_MISMATCH, BadRequestError, Json, NotFoundError, disposition
from neptune_assets.server.neptune2.series import Asked
from neptune_assets.server.neptune2.state import number_of, state_of, text_of
from neptune_assets.server.neptune2.tables import detail_of, iso
from neptune_assets.server.neptune2.writing import Application, answer_of
from neptune_assets.server.store.database import ARTIFACT, RESTORE, DamagedError, intact, row_of
from neptune_assets.server.store.files import find_file
from neptune_assets.server.store.projects import ProjectStore
from neptune_assets.server.store.runs import file_value, put_artifact
from neptune_assets.server.tokens import Grant

if TYPE_CHECKING:
    from neptune_assets.server.store.files import Stored

_RANGE: Final = re.compile(r"bytes=(\d+)-(\d+)/(\d+)")
_IDENTIFIER: Final = re.compile(r"[0-9a-f]{32}")
_ABANDONED_SECONDS: Final = 7 * 24 * 3600
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Range:
    """The bytes of a file that a part holds: from `start` on, `length` of them, of `total`."""

    start: int
    length: int
    total: int


def parse_range(text: str | None) -> Range:
    """Return what ``X-Range: bytes=<first>-<last>/<total>`` says. Raises BadRequestError for anything else."""
    match = _RANGE.fullmatch(text or "")
    if match is None:
        raise BadRequestError(f"X-Range {text!r} is not of the form bytes=<first>-<last>/<total>.")
    first, last, total = (int(group) for group in match.groups())
    if not first <= last < total:
        raise BadRequestError(f"X-Range {text!r} is not a range inside of a file.")
    return Range(first, last - first + 1, total)


class Uploads:
    """Unfinished uploads below one directory; each is a directory of its own with its parts by where they start."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def start(self, total: int, about: Mapping[str, Any]) -> str:
        """Begin an upload of `total` bytes and return its identifier; `about` is given back when it is finished."""
        self._remove_abandoned()
        identifier = secrets.token_hex(16)
        directory = self._root / identifier
        durable.make_directory(directory, mode=0o700)
        durable.write(directory / "about.json", json.dumps({"total": total, **about}).encode("utf-8"))
        return identifier

    def about(self, identifier: str) -> dict[str, Any]:
        """Return the total (``total``) and what was said at the start. Raises NotFoundError for an unknown upload."""
        try:
            text = (self._directory(identifier) / "about.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            raise NotFoundError(f"There is no upload {identifier!r}.") from None
        about: dict[str, Any] = json.loads(text)
        return about

    def put(self, identifier: str, at: Range, content: bytes) -> None:
        """Keep a part, durably; one that comes again replaces the first.

        Raises BadRequestError if the part is not one of this upload, or not as long as it says.
        """
        if at.total != self.about(identifier)["total"]:
            raise BadRequestError(f"{RANGE_MISMATCH}: {at.total} bytes in all are not what the upload began with.")
        if len(content) != at.length:
            raise BadRequestError(f"{RANGE_MISMATCH}: {len(content)} bytes arrived of {at.length}.")
        target = self._directory(identifier) / f"{at.start:020d}-{at.length:020d}"
        durable.write(target, content)

    def blocks(self, identifier: str) -> Iterator[bytes]:
        """Yield the whole file in blocks.

        Raises BadRequestError, at the end, if parts are missing: the client begins anew.
        """
        total, position = int(self.about(identifier)["total"]), 0
        for path in sorted(self._directory(identifier).glob("*-*")):
            start, length = (int(number) for number in path.name.split("-"))
            if start != position or path.stat().st_size != length:
                break
            with path.open("rb") as source:
                while block := source.read(_CHUNK):
                    yield block
            position += length
        if position != total:
            raise BadRequestError(f"{RANGE_MISMATCH}: {position} of {total} bytes arrived.")

    def remove(self, identifier: str) -> None:
        """Forget an upload that is finished."""
        shutil.rmtree(self._directory(identifier), ignore_errors=True)

    def _directory(self, identifier: str) -> Path:
        if not _IDENTIFIER.fullmatch(identifier):
            raise NotFoundError(f"There is no upload {identifier!r}.")
        return self._root / identifier

    def _remove_abandoned(self) -> None:
        """Remove what no client has come back to for a week."""
        if not self._root.is_dir():
            return
        for directory in self._root.iterdir():
            newest = max((path.stat().st_mtime for path in (directory, *directory.glob("*"))), default=0.0)
            if newest < time.time() - _ABANDONED_SECONDS:
                shutil.rmtree(directory, ignore_errors=True)


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


ZIP_PATH = "/api/leaderboard/v1/attributes/downloadFileSetZip"
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


_NEEDED = frozenset({"filePath", "fileHash", "type"})
_MAX_HASH = 128


def create_artifact(call: Call) -> Response:
    """Make an artifact by the hash that the client computed; tell whether the list of its files is here already."""
    digest, size = _hash(call), call.query.get("size")
    with _artifact_project(call).write() as writing:
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
    with _artifact_project(call).write() as writing:
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
    with _artifact_project(call).write() as writing:
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


def _artifact_project(call: Call) -> ProjectStore:
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
