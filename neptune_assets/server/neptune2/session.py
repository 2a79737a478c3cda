"""Handlers: swagger documents, workspaces, deleting projects, and the websocket on which clients wait for signals."""

from __future__ import annotations

from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from neptune_assets.server.endpoints import Call, Handler
from neptune_assets.server.neptune2.responses import ForbiddenError, Json
from neptune_assets.server.neptune2.state import state_of, text_of
from neptune_assets.server.neptune2.swagger import document
from neptune_assets.server.service import Service


def swagger(service: str) -> Handler:
    """Return the handler of a service's swagger document."""

    written = bytes(Json(document(service)).body)

    def handler(_: Call) -> Response:
        return Response(written, media_type=Json.media_type)

    return handler


def list_organizations(call: Call) -> Response:
    """Return all workspaces: those of projects, and the user's own, in which a first project can be made."""
    names = {project.partition("/")[0] for project in call.service.projects()} | {call.service.settings.user}
    return Json([{"id": name, "name": name} for name in sorted(names)])


def delete_project(call: Call) -> Response:
    """Delete a project with all that is in it. What the lake has is not the server's to delete."""
    project_id = state_of(call).containers.project_id(text_of(call, "projectIdentifier"))
    if call.service.lake_project(project_id) is not None:
        raise ForbiddenError(f"{project_id} is in the lake, which the server only reads.")
    call.service.store.delete(project_id)
    call.service.catalog.forget(project_id)
    return Json({})


async def listen(socket: WebSocket) -> None:
    """Keep a socket open until the client goes away; refuse it without a token."""
    service: Service = socket.app.state.service
    if not service.tokens.authorized(socket.headers.get("authorization")):
        await socket.close()
        return
    await socket.accept()
    try:
        while True:
            await socket.receive_text()
    except WebSocketDisconnect:
        return
