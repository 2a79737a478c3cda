"""Connections that cost the server little until a request is whole: how many there are, how large a head may be.

uvicorn's parser (httptools) takes in heads and trailers of any size, and waits for them for ever. Here a head has a
bound in bytes and in seconds, and when there are too many connections the ones that ask for nothing make room.
"""

from __future__ import annotations

import asyncio
import resource
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from neptune_assets.server.settings import ServerSettings

_PIPELINED: Final = 4
"""Requests that may wait on a connection behind the one that is worked on. No client of Neptune sends any."""
_DEFAULT_HEADERS: Final = [("X-Content-Type-Options", "nosniff")]


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Connections at the same time, bytes that a head (or what follows a body) may have, and seconds it may take."""

    connections: int
    head_bytes: int
    silence_seconds: float


def uvicorn_config(app: ASGIApp, settings: ServerSettings, **more: Any) -> uvicorn.Config:
    """Return how the application is served; ``more`` are arguments of uvicorn's."""
    # Half of the descriptors are for the store, the lake and DuckDB.
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    limits = ConnectionLimits(
        min(settings.connections, max(8, descriptors // 2)), settings.head_kb << 10, settings.silence_seconds
    )
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(BoundedConnection, limits),  # type: ignore[arg-type]
        ws_max_size=1 << 16,
        ssl_certfile=settings.certfile,
        ssl_keyfile=settings.keyfile,
        access_log=False,
        log_config=None,
        server_header=False,
        headers=_DEFAULT_HEADERS,
        # What a proxy says of a client, any client can say: `public_url` is for proxies.
        proxy_headers=False,
        # Clients pause between requests; a connection closed under them costs a retry.
        timeout_keep_alive=75,
        **more,
    )


class BoundedConnection(HttpToolsProtocol):
    """One connection. It waits while no request of it is worked on, and only for so long."""

    def __init__(self, limits: ConnectionLimits, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._limits = limits
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._in_head = True
        self._begun = False
        self._too_large = False
        self._unused = 0
        self._used = False
        self._since = self.loop.time()

    @property
    def waits(self) -> bool:
        """True if the server has nothing to do for it until more comes in."""
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; if there are too many, the one that has waited longest ends."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            idle = [item for item in self.connections if isinstance(item, BoundedConnection) and item.waits]
            # Those that never asked for anything go first, and of others the one that was silent the longest.
            oldest = min(idle, key=lambda item: (item.cycle is not None, item._since))
            oldest.give_up()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._unwatch()
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came in. Bytes that are neither of a body nor end a head are counted, and bounded."""
        self._used = False
        self._since = self.loop.time()
        super().data_received(data)
        if self not in self.connections or self.transport.is_closing():
            self._unwatch()
            return
        self._unused = 0 if self._used else self._unused + len(data)
        if self._unused > self._limits.head_bytes:
            self._too_large = True
            self.send_400_response("The head of the request is too large.")
            return
        self._watch()

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._in_head = self._begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those after a body are not looked at."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin a request. Raises ValueError, which is answered and ends the connection, if it is too much."""
        self._in_head, self._used = False, True
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        self._too_large = size > self._limits.head_bytes
        if self._too_large or len(self.pipeline) >= _PIPELINED:
            raise ValueError("too much")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take some of a body."""
        self._used = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        super().on_message_complete()
        self._begun = False

    def on_response_complete(self) -> None:
        """Wait for the next request; for the rest of one that has begun only for a while."""
        super().on_response_complete()
        self._since = self.loop.time()
        if self._begun:
            self._unset_keepalive_if_required()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be a request, and end the connection."""
        if not self._too_large:
            super().send_400_response(msg)
            return
        text = b"The head of the request is too large."
        head = b"content-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(text)
        self.transport.write(STATUS_LINE[431] + head + text)
        self.transport.close()

    def give_up(self) -> None:
        """End the connection, whatever it waits for."""
        self.connections.discard(self)
        self.transport.abort()

    def pause_writing(self) -> None:
        """Stop sending: the client does not take in what it asked for, and must go on soon."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self._limits.silence_seconds, self.give_up)

    def resume_writing(self) -> None:
        """Go on sending."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _watch(self) -> None:
        """Keep a deadline while it waits for something that has begun; idle ones have uvicorn's own."""
        if not self.waits or self.timeout_keep_alive_task is not None or self.transport.is_closing():
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self._limits.silence_seconds, self.give_up)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
