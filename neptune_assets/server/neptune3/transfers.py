"""Signed URLs, and bytes of files in and out at them: one PUT, a PUT for each part, or resumable chunks; GET.

Bodies are streamed to the disk as they arrive and are never held in memory.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, BinaryIO, Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from neptune_assets.errors import LakeError, SettingsError, UnknownProjectError, UnsafePathError
from neptune_assets.lake.layout import run_prefixes
from neptune_assets.server.endpoints import (
    AccessDeniedError,
    ApiError,
    Call,
    Endpoint,
    answer_to,
    base_url,
    blocks_of,
    error_response,
)
from neptune_assets.server.service import Service
from neptune_assets.server.store.files import Incoming, Resumable, Stored, find_file
from neptune_assets.server.store.projects import ProjectStore
from neptune_assets.server.tokens import Grant, Permission

STORAGE: Final = "/storage/v1"
_DEFAULT_TYPE: Final = "application/octet-stream"
_ATTACHED: Final = {"Content-Disposition": "attachment"}
"""What somebody stored is never shown as a page of this server."""
_BLOCK: Final = 1 << 20
_RANGE: Final = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18})")


Writer = Callable[[bytes], None]


def routes() -> list[BaseRoute]:
    """The route that all signed URLs lead to."""
    return [Route(f"{STORAGE}/{{token}}", transfer, methods=["GET", "PUT", "POST"], name="transfer")]


async def transfer(request: Request) -> Response:
    """Do what the URL's grant allows."""
    service: Service = request.app.state.service
    # A signature is for the whole URL: with parameters added it is no longer ours.
    grant = None if request.url.query else service.signer.grant(request.path_params["token"])
    if grant is None and request.method in {"GET", "HEAD"}:
        # What S3 answers, too: readers ask for a new signature then, and only then.
        return error_response(ApiError(400, "EXPIRED", "The signature is wrong or has expired."))
    if grant is None or (grant.permission == "read") != (request.method in {"GET", "HEAD"}):
        return error_response(ApiError(403, "ACCESS_DENIED", "The signature is wrong or has expired."))
    action: Callable[[Service, Request, Grant], Awaitable[Response]]
    if grant.permission == "read":
        action = _download
    elif request.method == "POST":
        action = _begin
    elif grant.upload is not None and grant.part is None:
        action = _chunk
    else:
        action = _put
    try:
        return await action(service, request, grant)
    except UnknownProjectError as error:
        return error_response(ApiError(404, "NOT_FOUND", str(error)))
    except Exception as error:  # noqa: BLE001  (answered, and logged where it is our fault)
        return answer_to(error, request, writes=grant.permission == "write")


async def _put(service: Service, request: Request, grant: Grant) -> Response:
    """Take a whole file, or one part of it."""
    project = service.store.project(grant.project)
    incoming = await run_in_threadpool(project.objects.receive)
    try:
        await _stream(service, request, incoming.write, service.settings.file_gb << 30)
        stored = await run_in_threadpool(_keep, project, grant, incoming, request.headers.get("content-type"))
    finally:
        await run_in_threadpool(incoming.drop)
    return Response(status_code=200, headers={"ETag": f'"{stored.sha256}"'})


def _keep(project: ProjectStore, grant: Grant, incoming: Incoming, mime_type: str | None) -> Stored:
    if grant.upload is not None and grant.part is not None:
        try:
            project.objects.note_type(grant.upload, mime_type or _DEFAULT_TYPE)
            return project.objects.keep_part(grant.upload, grant.part, incoming)
        except FileNotFoundError as error:
            raise ApiError(404, "NO_SUCH_UPLOAD", str(error)) from None
    stored = incoming.keep()
    with project.write() as writing:
        writing.put_file(grant.key, stored.sha256, stored.size, mime_type or _DEFAULT_TYPE)
    return stored


async def _begin(service: Service, request: Request, grant: Grant) -> Response:
    """Begin an upload in chunks and tell where they go."""
    project = service.store.project(grant.project)
    upload = await run_in_threadpool(project.objects.begin_upload, grant.key)
    mime_type = request.headers.get("content-type") or _DEFAULT_TYPE
    token = service.signer.sign(Grant(grant.project, grant.key, "write", upload, None, mime_type))
    return Response(status_code=201, headers={"Location": f"{base_url(service, request)}{STORAGE}/{token}"})


async def _chunk(service: Service, request: Request, grant: Grant) -> Response:
    """Take one chunk; 308 tells how much is there, 200 that the file is whole and kept."""
    match = _RANGE.fullmatch(request.headers.get("content-range", ""))
    if match is None:
        raise ApiError(400, "BAD_REQUEST", "Content-Range must say 'bytes first-last/total' or 'bytes */total'.")
    total = int(match[3])
    limit = service.settings.file_gb << 30
    if total > limit:
        raise ApiError(413, "REQUEST_TOO_LARGE", f"Files may have {limit >> 30} GiB.")
    project = service.store.project(grant.project)
    try:
        with project.objects.resume(grant.upload or "") as upload:
            if upload.done:
                return Response(status_code=200)
            if match[1] is not None:
                first, last = int(match[1]), int(match[2])
                if not first <= last < total:
                    raise ApiError(400, "BAD_REQUEST", "Invalid Content-Range header.")
                if first > upload.size:
                    return await _so_far(upload)
                upload.start_at(first)
                await _stream(service, request, upload.write, last - first + 1)
            if upload.size < total:
                return await _so_far(upload)
            stored = await run_in_threadpool(_keep_whole, project, grant, upload)
    except FileNotFoundError as error:
        raise ApiError(404, "NO_SUCH_UPLOAD", str(error)) from None
    except BlockingIOError:
        raise ApiError(503, "BUSY", "Another chunk of this file is coming in.") from None
    return Response(status_code=200, headers={"ETag": f'"{stored.sha256}"'})


def _keep_whole(project: ProjectStore, grant: Grant, upload: Resumable) -> Stored:
    stored = upload.keep()
    with project.write() as writing:
        writing.put_file(grant.key, stored.sha256, stored.size, grant.mime_type)
    upload.finish()
    return stored


async def _so_far(upload: Resumable) -> Response:
    await run_in_threadpool(upload.sync)
    return Response(status_code=308, headers={"Range": f"bytes=0-{upload.size - 1}"} if upload.size else {})


async def _stream(service: Service, request: Request, write: Writer, limit: int) -> None:
    """Write the body in large blocks, off the event loop. Raises ApiError once it is larger than ``limit``."""
    pending: list[bytes] = []
    waiting = size = 0
    async for block in blocks_of(service, request):
        pending.append(block)
        waiting += len(block)
        size += len(block)
        if size > limit:
            raise ApiError(413, "REQUEST_TOO_LARGE", "The file is larger than was said, or than files may be.")
        if waiting >= _BLOCK:
            await run_in_threadpool(write, b"".join(pending))
            pending, waiting = [], 0
    if waiting:
        await run_in_threadpool(write, b"".join(pending))


async def _download(service: Service, request: Request, grant: Grant) -> Response:
    """Give the bytes of a key: from the store, or else from the lake. 404 if neither has them."""
    return await run_in_threadpool(_found, service, grant)


def _found(service: Service, grant: Grant) -> Response:
    if grant.project in service.store.projects():
        project = service.store.project(grant.project)
        with project.read() as connection:
            found = find_file(connection, grant.key)
        if found is not None:
            return FileResponse(
                project.objects.intact(found[0]),
                media_type=found[1] or _DEFAULT_TYPE,
                headers={"ETag": f'"{found[0]}"', **_ATTACHED},
            )
    stream = _lake_file(service, grant)
    if stream is None:
        raise ApiError(404, "NOT_FOUND", "There is no such file.")
    return StreamingResponse(iter(lambda: stream.read(_BLOCK), b""), media_type=_DEFAULT_TYPE, headers=_ATTACHED)


def _lake_file(service: Service, grant: Grant) -> BinaryIO | None:
    """Open a file of the lake by the path that ``file_value.path`` holds; its first part names the run."""
    project = service.lake_project(grant.project)
    if project is None:
        return None
    run_id = run_prefixes(project.records()).get(grant.key.partition("/")[0])
    if run_id is None:
        return None
    try:
        return project.run(run_id).open_file(grant.key)
    except (LakeError, UnsafePathError):
        return None


_MAX_FILES: Final = 10_000
_MAX_KEY: Final = 4096
_MAX_PARTS: Final = 10_000
_BRIDGE: Final = "/api/storagebridge/v1"


def signed_url_routes() -> list[BaseRoute]:
    """Routes of signed URLs."""
    return [
        Endpoint(f"{_BRIDGE}/signedUrl", signed_urls, writes=True).route(),
        Endpoint(f"{_BRIDGE}/s3/completeMultipartUpload", complete_upload, writes=True).route(),
    ]


def signed_urls(call: Call) -> Response:
    """A URL for each file, in the order asked for."""
    wanted = call.json_object().get("files")
    if not isinstance(wanted, list) or len(wanted) > _MAX_FILES:
        raise ApiError(400, "BAD_REQUEST", f"'files' must be a list of at most {_MAX_FILES}.")
    return JSONResponse({"files": [_signed(call, file) for file in wanted]})


def complete_upload(call: Call) -> Response:
    """Join the parts of an upload; asking again for one that was joined is fine."""
    fields = call.json_object()
    project_id, key, upload = (str(fields.get(name, "")) for name in ("project_identifier", "path", "upload_id"))
    project = call.service.store.project(project_id)
    try:
        parts = sorted((int(part["part_number"]), str(part["etag"]).strip('"')) for part in fields["parts"])
        mime_type, declared = project.objects.upload_of(upload)
    except FileNotFoundError:
        with project.read() as connection:
            known = connection.execute("SELECT 1 FROM files WHERE key = ?", (key,)).fetchone()
        if known is None:
            raise ApiError(400, "NO_SUCH_UPLOAD", "There is no such upload.") from None
        return Response(status_code=204)
    except (KeyError, TypeError, ValueError):
        raise ApiError(400, "BAD_REQUEST", "'parts' must be a list of part_number and etag.") from None
    if declared != key:
        raise ApiError(400, "NO_SUCH_UPLOAD", "The upload is of another file.")
    try:
        stored = project.objects.join_parts(upload, parts)
    except ValueError as error:
        raise ApiError(400, "INVALID_PART", f"The upload cannot be finished: {error}.") from None
    with project.write() as writing:
        writing.put_file(key, stored.sha256, stored.size, mime_type)
    project.objects.forget_upload(upload)
    return Response(status_code=204)


def _signed(call: Call, file: Any) -> dict[str, Any]:
    try:
        project_id, key = str(file["project_identifier"]), str(file["path"])
        permission, size = _permission(file["permission"]), file.get("size")
    except (KeyError, TypeError, AttributeError):
        raise ApiError(400, "BAD_REQUEST", "A file needs project_identifier, path and permission.") from None
    if not key or len(key) > _MAX_KEY:
        raise ApiError(400, "BAD_REQUEST", f"A file's path has 1 to {_MAX_KEY} characters.")
    answer = {"path": key, "project_identifier": project_id, "provider": "aws"}
    if permission == "read":
        if project_id not in call.service.projects():
            raise AccessDeniedError(project_id)
        return answer | {"url": _url(call, Grant(project_id, key, "read"))}
    try:
        # A client uploads in a thread of its own, which may be ahead of the request that makes run and project; a
        # refusal would end it for good.
        project = call.service.project_to_write(project_id)
    except (UnknownProjectError, SettingsError):
        raise AccessDeniedError(project_id) from None
    settings = call.service.settings
    part_size = settings.part_mb << 20
    if not isinstance(size, int) or size <= part_size:
        return answer | {"url": _url(call, Grant(project_id, key, "write"))}
    if size > settings.file_gb << 30:
        raise ApiError(413, "REQUEST_TOO_LARGE", f"Files may have {settings.file_gb} GiB.")
    if settings.large_files == "resumable":
        return answer | {"provider": "gcp", "url": _url(call, Grant(project_id, key, "write"))}
    part_size = max(part_size, -(-size // _MAX_PARTS))
    upload = project.objects.begin_upload(key)
    parts = range(1, -(-size // part_size) + 1)
    urls = [_url(call, Grant(project_id, key, "write", upload, part)) for part in parts]
    return answer | {
        "url": urls[0],
        "multipart": {"upload_id": upload, "part_size": part_size, "part_urls": urls},
    }


def _permission(text: Any) -> Permission:
    if text not in {"read", "write"}:
        raise ApiError(400, "BAD_REQUEST", "The permission must be read or write.")
    return "read" if text == "read" else "write"


def _url(call: Call, grant: Grant) -> str:
    return f"{call.base_url}{STORAGE}/{call.service.signer.sign(grant)}"
