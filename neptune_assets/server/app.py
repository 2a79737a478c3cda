"""The ASGI application: routes of both generations, health, access log, and a service that is closed with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response

from neptune_assets.server.access_log import AccessLog
from neptune_assets.server.cleaning import Cleaning
from neptune_assets.server.endpoints import BodyRoom, Call, Endpoint
from neptune_assets.server.neptune2.routes import routes as neptune2_routes
from neptune_assets.server.neptune3.routes import routes as neptune3_routes
from neptune_assets.server.service import Service


def build_app(service: Service) -> Starlette:
    """Return the application of an open service, which it closes when it stops."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = service.settings.threads
        cleaning = Cleaning(service.store, service.settings.unused_days)
        cleaning.start()
        try:
            yield
        finally:
            cleaning.stop()
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
