"""What every route shares: who may call, how large a request may be, threads, and errors as clients expect them.

A handler is a plain function from a :class:`Call` to a response and runs in a thread. It raises :class:`ApiError` for
what a client did wrong. Official clients repeat whatever is answered with 5xx, neptune-query for up to an hour: a bug
while reading is therefore answered as 4xx; a bug while writing as 500, so that the client keeps its only copy.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from neptune_assets.errors import NeptuneAssetsError, UnknownProjectError
from neptune_assets.server.service import Service

PROTOBUF = "application/x-protobuf"
_log = logging.getLogger(__name__)


class ApiError(Exception):
    """An answer that is an error: status, and what the JSON body says."""

    def __init__(self, status: int, error_type: str, message: str, title: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": status, "errorType": error_type, "message": message, "title": title or message}


class AccessDeniedError(ApiError):
    """The project is not there (or not theirs): clients are told the same in both cases."""

    def __init__(self, project_id: str) -> None:
        super().__init__(403, "ACCESS_DENIED", f"There is no project {project_id!r} that this token may see.")


@dataclass(frozen=True, slots=True)
class Call:
    """One request with its body read."""

    service: Service
    request: Request
    body: bytes

    @property
    def base_url(self) -> str:
        """How this client reaches the server: scheme, host and port, no slash at the end."""
        return base_url(self.service, self.request)

    @property
    def query(self) -> Mapping[str, str]:
        """Parameters of the URL; the last one of a name."""
        return self.request.query_params

    def json(self) -> Any:
        """The body as JSON. Raises ApiError if it is none."""
        try:
            return json.loads(self.body) if self.body else {}
        except ValueError as error:
            raise ApiError(400, "BAD_REQUEST", f"The body is no JSON: {error}") from None

    def json_object(self) -> dict[str, Any]:
        """The body as a JSON object. Raises ApiError if it is none."""
        found = self.json()
        if not isinstance(found, dict):
            raise ApiError(400, "BAD_REQUEST", "The body must be a JSON object.")
        return found


Handler = Callable[[Call], Response]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route: where, which handler, and how it is guarded.

    ``public`` needs no access token. ``writes`` answers a bug with 500 instead of 4xx. ``limit_mb`` replaces the
    server's limit for bodies.
    """

    path: str
    handler: Handler
    methods: Sequence[str] = ("POST",)
    public: bool = False
    writes: bool = False
    limit_mb: int | None = None
    name: str | None = field(default=None)

    def route(self) -> Route:
        """The route as Starlette takes it."""

        async def endpoint(request: Request) -> Response:
            return await _answer(self, request)

        return Route(self.path, endpoint, methods=list(self.methods), name=self.name or self.handler.__name__)


def base_url(service: Service, request: Request) -> str:
    """How this client reaches the server: scheme, host and port, no slash at the end."""
    return service.settings.public_url or str(request.base_url).rstrip("/")


def error_response(error: ApiError) -> JSONResponse:
    """The response of an error."""
    return JSONResponse(error.body, status_code=error.status)


async def read_body(request: Request, limit: int) -> bytes:
    """Read the body. Raises ApiError as soon as it is larger than ``limit`` bytes."""
    declared = request.headers.get("content-length", "0")
    blocks: list[bytes] = []
    size = int(declared) if declared.isdigit() else 0
    if size <= limit:
        size = 0
        async for block in request.stream():
            size += len(block)
            if size > limit:
                break
            blocks.append(block)
    if size > limit:
        raise ApiError(413, "REQUEST_TOO_LARGE", f"Requests may have {limit >> 20} MiB.")
    return b"".join(blocks)


async def _answer(endpoint: Endpoint, request: Request) -> Response:
    service: Service = request.app.state.service
    if not endpoint.public and not service.tokens.authorized(request.headers.get("authorization")):
        return error_response(
            ApiError(401, "UNAUTHORIZED", "The access token is missing, expired, or not of this server.")
        )
    try:
        body = await read_body(request, (endpoint.limit_mb or service.settings.body_mb) << 20)
        return await run_in_threadpool(endpoint.handler, Call(service, request, body))
    except ClientDisconnect:
        return Response(status_code=400)
    except ApiError as error:
        return error_response(error)
    except UnknownProjectError as error:
        return error_response(ApiError(403, "ACCESS_DENIED", str(error)))
    except Exception as error:  # noqa: BLE001  (logged whole, and answered)
        return _failed(endpoint, error)


def _failed(endpoint: Endpoint, error: Exception) -> Response:
    """Answer what no handler expected; the log has the whole story."""
    busy = isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
    transient = busy or (isinstance(error, NeptuneAssetsError) and error.transient)
    _log.error("%s failed", endpoint.path, exc_info=error)
    if transient:
        failure = ApiError(503, "UNAVAILABLE", "The server is busy; try again.")
    elif endpoint.writes:
        failure = ApiError(500, "INTERNAL_ERROR", "The server could not keep this; its log says why.")
    else:
        failure = ApiError(422, "INTERNAL_ERROR", f"The server could not answer this: {type(error).__name__}.")
    return error_response(failure)
