"""The socket on which a client waits for signals, to stop or abort a run from the application. There is none here.

A client that finds no socket tries again every few seconds as long as its run is open: it is given one that is silent.
"""

from __future__ import annotations

from starlette.websockets import WebSocket, WebSocketDisconnect

from neptune_assets.server.service import Service


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
