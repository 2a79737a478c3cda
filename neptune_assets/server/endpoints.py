"""What every route shares: who may call, how large a request may be, threads, and errors as clients expect them.

A handler is a plain function from a :class:`Call` to a response and runs in a thread. It raises :class:`ApiError` for
what a client did wrong. Official clients repeat whatever is answered with 5xx, neptune-query for up to an hour: a bug
while reading is therefore answered as 4xx; a bug while writing as 500, so that the client keeps its only copy.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from neptune_assets.errors import NeptuneAssetsError, UnknownProjectError
from neptune_assets.server.service import Service
from neptune_assets.server.store.database import DamagedError, is_busy, is_damaged, is_full

PROTOBUF = "application/x-protobuf"
PUBLIC_BYTES = 16 << 10
"""What a body may have without a token."""
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_RETRY_SECONDS = 30
_ROOM_SECONDS = 60.0
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

    def json(self, *, any_text: bool = False) -> Any:
        """The body as JSON. Raises ApiError if it is not valid JSON, or holds text that is not, unless ``any_text``."""
        try:
            found = json.loads(self.body) if self.body else {}
        except ValueError as error:
            raise ApiError(400, "BAD_REQUEST", f"The request body is not valid JSON: {error}") from None
        except RecursionError:
            raise ApiError(400, "BAD_REQUEST", "The request body is nested too deeply.") from None
        if not any_text and not self.is_text(found):
            raise ApiError(400, "BAD_REQUEST", "The request body holds half of a character (a lone surrogate).")
        return found

    def is_text(self, value: Any) -> bool:
        """True if all text in a part of the JSON body is UTF-8: escapes can spell half a character."""
        if _HALF.search(self.body) is None:
            return True
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return False
        return True

    def json_object(self) -> dict[str, Any]:
        """The body as a JSON object. Raises ApiError for anything else."""
        found = self.json()
        if not isinstance(found, dict):
            raise ApiError(400, "BAD_REQUEST", "The body must be a JSON object.")
        return found


Handler = Callable[[Call], Response]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route: where, which handler, and how it is guarded.

    ``public`` needs no access token, and takes small bodies only. ``writes`` answers a bug with 500 instead of 4xx.
    ``limit_mb`` replaces the server's limit for bodies.
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
    """How this client reaches the server: scheme, host and port, no slash at the end.

    Without ``public_url`` it is the address that the connection ended at, never what the client says of it: what is
    answered goes into signed URLs and into the configuration of clients.
    """
    if service.settings.public_url is not None:
        return service.settings.public_url
    host, port = request.scope.get("server") or ("127.0.0.1", service.settings.port)
    return f"{request.url.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def error_response(error: ApiError) -> JSONResponse:
    """The response of an error; one that says to try again says when."""
    headers = {"Retry-After": str(_RETRY_SECONDS)} if error.status in {429, 503} else None
    return JSONResponse(error.body, status_code=error.status, headers=headers)


async def blocks_of(service: Service, request: Request) -> AsyncIterator[bytes]:
    """Yield the body as it comes in. Raises ApiError (408) if the client pauses for too long."""
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(service.settings.silence_seconds):
                block = await anext(stream)
        except TimeoutError:
            raise ApiError(408, "TIMEOUT", "The body did not come in time.") from None
        except StopAsyncIteration:
            return
        yield block


class BodyRoom:
    """Bytes of bodies that may be in memory at the same time. Bodies wait for room in the order they came."""

    def __init__(self, size: int, seconds: float = _ROOM_SECONDS) -> None:
        self._free = size
        self._seconds = seconds
        self._waiting: deque[tuple[int, asyncio.Event]] = deque()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold room for a body. Raises ApiError (503) if there is none for a while."""
        if self._waiting or size > self._free:
            turn = (size, asyncio.Event())
            self._waiting.append(turn)
            try:
                async with asyncio.timeout(self._seconds):
                    await turn[1].wait()
            except BaseException as error:
                if turn[1].is_set():
                    self._free += size
                else:
                    self._waiting.remove(turn)
                self._wake()
                if not isinstance(error, TimeoutError):
                    raise
                raise ApiError(503, "UNAVAILABLE", "The server is busy; try again.") from None
        else:
            self._free -= size
        try:
            yield
        finally:
            self._free += size
            self._wake()

    def _wake(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            size, event = self._waiting.popleft()
            self._free -= size
            event.set()


def _announced(request: Request, limit: int) -> int:
    """Bytes that a body will have, the limit where the client does not say. Raises ApiError for more than that."""
    declared = request.headers.get("content-length")
    size = limit if declared is None or not declared.isdecimal() else int(declared)
    if declared is None and "transfer-encoding" not in request.headers:
        size = 0
    if size > limit:
        raise _too_large(limit)
    return size


async def _read_body(service: Service, request: Request, limit: int) -> bytes:
    """Read the body. Raises ApiError as soon as it is larger than ``limit`` bytes."""
    blocks: list[bytes] = []
    size = 0
    async for block in blocks_of(service, request):
        size += len(block)
        if size > limit:
            raise _too_large(limit)
        blocks.append(block)
    return b"".join(blocks)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "REQUEST_TOO_LARGE", f"Requests may have {limit >> 10:,} KiB.")


async def _answer(endpoint: Endpoint, request: Request) -> Response:
    service: Service = request.app.state.service
    if not endpoint.public and not service.tokens.authorized(request.headers.get("authorization")):
        return error_response(
            ApiError(401, "UNAUTHORIZED", "The access token is missing, expired, or not of this server.")
        )
    try:
        if endpoint.public:
            async with asyncio.timeout(service.settings.silence_seconds):
                body = await _read_body(service, request, PUBLIC_BYTES)
            return await run_in_threadpool(endpoint.handler, Call(service, request, body))
        limit = (endpoint.limit_mb or service.settings.body_mb) << 20
        async with request.app.state.room.hold(_announced(request, limit)):
            body = await _read_body(service, request, limit)
            return await run_in_threadpool(endpoint.handler, Call(service, request, body))
    except Exception as error:  # noqa: BLE001  (answered, and logged where it is our fault)
        return answer_to(error, request, writes=endpoint.writes)


def answer_to(error: Exception, request: Request, *, writes: bool) -> Response:
    """Answer an exception of a handler; what nobody expected is logged whole, a full disk in one line a minute."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=400)
    if isinstance(error, TimeoutError):
        return error_response(ApiError(408, "TIMEOUT", "The body did not come in time."))
    if isinstance(error, ApiError):
        return error_response(error)
    if isinstance(error, UnknownProjectError):
        return error_response(ApiError(403, "ACCESS_DENIED", str(error)))
    route = getattr(request.scope.get("route"), "path", request.scope["path"])
    if is_full(error):
        _full.log("%s failed: the disk is full or cannot be written (%s). Make room; clients try again.", route, error)
        return error_response(ApiError(503, "UNAVAILABLE", "The disk of the server is full; try again later."))
    if is_busy(error) or (isinstance(error, NeptuneAssetsError) and error.transient):
        _log.warning("%s failed for now: %s", route, error)
        return error_response(ApiError(503, "UNAVAILABLE", "The server is busy; try again."))
    if not writes and (isinstance(error, DamagedError) or is_damaged(error)):
        _log.error("%s failed: %s", route, error)
        return error_response(ApiError(422, "DAMAGED", f"The server's data is damaged: {error}"))
    if isinstance(error, NeptuneAssetsError) or is_damaged(error):
        _log.error("%s failed: %s", route, error)
    else:
        _log.error("%s failed", route, exc_info=error)
    if writes:
        return error_response(ApiError(500, "INTERNAL_ERROR", "The server could not keep this; its log says why."))
    return error_response(ApiError(422, "INTERNAL_ERROR", f"The server could not answer this: {type(error).__name__}."))


class _OncePerMinute:
    """Logs an error that comes again and again once a minute, with how often it came."""

    def __init__(self) -> None:
        self._last = -60.0
        self._silent = 0
        self._guard = threading.Lock()

    def log(self, message: str, *values: object) -> None:
        with self._guard:
            if time.monotonic() - self._last < 60:
                self._silent += 1
                return
            _log.error(message + " (%s more since the last such line)", *values, self._silent)
            self._last, self._silent = time.monotonic(), 0


_full = _OncePerMinute()
