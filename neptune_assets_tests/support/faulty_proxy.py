"""A small HTTP proxy on loopback that passes requests on to a real server, and misbehaves when it is told to."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Literal
from urllib.parse import urlsplit

from neptune_assets_tests.support.http_listening import listening


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests whose path contains ``path``; with all if that is negative.

    ``status`` is answered without passing the request on; ``drop`` closes the connection before, ``lose`` after the
    server has carried the request out; ``late`` closes it and passes the request on ``seconds`` later; ``hang`` waits
    ``seconds`` before passing it on; ``garble`` answers no JSON; ``cut`` breaks off in the middle of the answer's body,
    ``short`` leaves out its end and says nothing of it, ``long`` gives it twice.
    """

    path: str
    kind: Literal["status", "drop", "lose", "late", "hang", "garble", "cut", "short", "long"] = "status"
    times: int = 1
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b'{"error_code": "FAULT", "message": "injected"}'
    seconds: float = 0.0
    after: int = 0
    """So many requests of that path go well first."""
    holding: bytes = b""
    """Only requests whose body holds this."""
    also: bytes = b""
    """Only requests whose body holds this as well."""
    method: str = ""
    """Only requests of this method; of any if it is empty."""


@dataclass
class Seen:
    """What passed through."""

    requests: list[tuple[str, str, Mapping[str, str], bytes]] = field(default_factory=list)
    """(method, path, headers, body) of every request, as it came."""
    connections: int = 0
    at_once: int = 0
    """Most requests in progress at one moment."""

    def count(self, path: str) -> int:
        """Return the number of requests whose path contains this."""
        return sum(path in item[1] for item in self.requests)


class FaultyProxy:
    """The proxy: its address, the faults still to come, and what it saw."""

    def __init__(self, upstream: str, *, without: Sequence[str] = ()) -> None:
        self.upstream = urlsplit(upstream)
        self.without = {name.lower() for name in without}
        """Headers of requests that are left out, as if the server did not know them."""
        self.faults: list[Fault] = []
        self.rewrite: Callable[[str, bytes], bytes] | None = None
        """Changes the body of an answer, given the path that was asked for."""
        self.seen = Seen()
        self.lock = threading.Lock()
        self.busy = 0
        self.url = ""

    def fault(self, path: str, body: bytes = b"", method: str = "") -> Fault | None:
        """Return the fault that this request meets, and count it as used."""
        with self.lock:
            for fault in self.faults:
                wanted = (
                    fault.path in path and fault.holding in body and fault.also in body and fault.method in {"", method}
                )
                if wanted and fault.times:
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    @contextmanager
    def running(self) -> Iterator[FaultyProxy]:
        """Listen until the block ends."""
        with listening(_handler(self)) as self.url:
            yield self


def _handler(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            with proxy.lock:
                proxy.seen.connections += 1

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with proxy.lock:
                proxy.seen.requests.append((self.command, self.path, dict(self.headers), body))
                proxy.busy += 1
                proxy.seen.at_once = max(proxy.seen.at_once, proxy.busy)
                self.in_progress = True
            try:
                self.pass_on(body)
            finally:
                self.done()

        def pass_on(self, body: bytes) -> None:
            fault = proxy.fault(self.path, body, self.command)
            if fault is not None:
                if fault.kind == "status":
                    self.answer(fault.status, fault.headers, fault.body)
                    return
                if fault.kind == "garble":
                    self.answer(200, {"Content-Type": "text/html"}, b"<html>Please log in</html>")
                    return
                if fault.kind in {"drop", "late"}:
                    if fault.kind == "late":
                        threading.Timer(fault.seconds, self.ask, [body]).start()
                    self.hang_up()
                    return
                if fault.kind == "hang":
                    time.sleep(fault.seconds)
            status, headers, data = self.ask(body)
            if fault is not None and fault.kind == "lose":
                self.hang_up()
                return
            if proxy.rewrite is not None and status == 200:
                data = proxy.rewrite(self.path, data)
            if fault is not None and fault.kind == "short":
                data = data[: len(data) // 2]
            if fault is not None and fault.kind == "long":
                data += data
            self.answer(status, headers, data, whole=fault is None or fault.kind != "cut")

        def ask(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
            upstream = http.client.HTTPConnection(proxy.upstream.hostname or "", proxy.upstream.port, timeout=60)
            try:
                passed = {name: value for name, value in self.headers.items() if name.lower() not in proxy.without}
                upstream.request(self.command, self.path, body, passed)
                response = upstream.getresponse()
                hop = _HOP - ({"content-length"} if self.command == "HEAD" else set())
                headers = {k: self.ours(v) for k, v in response.getheaders() if k.lower() not in hop}
                data = response.read()
                if "json" in headers.get("content-type", ""):
                    data = self.ours(data.decode()).encode()
                return response.status, headers, data
            finally:
                upstream.close()

        def ours(self, text: str) -> str:
            """Addresses of the server become the proxy's: a client goes on where it began."""
            return text.replace(proxy.upstream.geturl(), proxy.url)

        def hang_up(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def done(self) -> None:
            """No longer in progress: called before the answer leaves, as the next request may follow at once."""
            with proxy.lock:
                proxy.busy -= self.in_progress
                self.in_progress = False

        def answer(self, status: int, headers: Mapping[str, str], body: bytes, whole: bool = True) -> None:
            self.done()
            try:
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body if whole else body[: len(body) // 2])
                if not whole:
                    self.wfile.flush()
                    self.hang_up()
            except OSError:
                # The client did not wait for it.
                self.close_connection = True

        def do_HEAD(self) -> None:
            # Its answer has the length of a body that is not sent.
            status, headers, _ = self.ask(b"")
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    return Handler


_HOP = {"content-length", "transfer-encoding", "connection", "keep-alive"}
