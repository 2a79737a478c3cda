"""Signed URLs: where the bytes of files go, and where they come from."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from neptune_assets.errors import SettingsError, UnknownProjectError
from neptune_assets.server.endpoints import AccessDeniedError, ApiError, Call, Endpoint
from neptune_assets.server.neptune3.transfers import STORAGE
from neptune_assets.server.signing import Grant, Permission

_MAX_FILES: Final = 10_000
_MAX_KEY: Final = 4096
_MAX_PARTS: Final = 10_000
_BRIDGE: Final = "/api/storagebridge/v1"


def routes() -> list[BaseRoute]:
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
