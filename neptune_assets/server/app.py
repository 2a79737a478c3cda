"""The ASGI application: routes of both generations, health, access log, and a service closed with it."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import anyio.to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neptune_assets.server.endpoints import BodyRoom, Call, Endpoint
from neptune_assets.server.garbage_collection import GarbageCollector
from neptune_assets.server.neptune2.routes import routes as neptune2_routes
from neptune_assets.server.neptune3.routes import routes as neptune3_routes
from neptune_assets.server.service import Service


class AccessLog:
    """ASGI middleware. Paths of routes with parameters are logged as the route is written, not as it was called."""

    def __init__(self, app: ASGIApp, file: Path | None = None) -> None:
        self._app = app
        self._stream: TextIO = sys.stdout if file is None else _appended(file)
        self._guard = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and log it, also if it fails."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        counted = {"status": 0, "in": 0, "out": 0}

        async def counting_receive() -> Message:
            message = await receive()
            counted["in"] += len(message.get("body", b""))
            return message

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                counted["status"] = message["status"]
            counted["out"] += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, counting_receive, counting_send)
        finally:
            self._write(scope, counted, time.perf_counter() - started)

    def _write(self, scope: Scope, counted: dict[str, int], seconds: float) -> None:
        route = scope.get("route")
        client = scope.get("client")
        agent = next((value for name, value in scope["headers"] if name == b"user-agent"), b"")
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "method": scope["method"],
            "route": getattr(route, "path", None) or "(none)",
            "status": counted["status"],
            "ms": round(seconds * 1000, 1),
            "bytes_in": counted["in"],
            "bytes_out": counted["out"],
            "client": client[0] if client else None,
            "agent": agent.decode("latin-1").partition(" ")[0][:80],
        }
        with self._guard:
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()


def _appended(file: Path) -> TextIO:
    """Open a log to add to; a new one is for its owner only."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "a", encoding="utf-8")


def build_app(service: Service) -> Starlette:
    """Return the application of an open service, which it closes when it stops."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = service.settings.threads
        collector = GarbageCollector(service.store, service.settings.gc_grace_days)
        collector.start()
        try:
            yield
        finally:
            collector.stop()
            service.close()

    routes = [
        Endpoint("/health", health, methods=("GET",), public=True).route(),
        *neptune3_routes(),
        *neptune2_routes(),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(AccessLog, file=service.settings.access_log)],
        exception_handlers={404: _not_found, 405: _not_found},
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.room = BodyRoom(4 * service.settings.body_mb << 20)
    return app


def health(_: Call) -> Response:
    """Tell that the server answers; needs no token, and tells nothing else."""
    return JSONResponse({"status": "ok"})


def _not_found(_: object, __: Exception) -> Response:
    return JSONResponse(
        {"code": 404, "errorType": "NOT_FOUND", "message": "This server has no such call.", "title": "Not found"},
        status_code=404,
    )
