"""What somebody without a token can take of the server: next to nothing, however much they send and however slowly."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from neptune_assets_tests.support.server import Served, server_in_thread, server_process

TOKEN = "/auth/realms/neptune/protocol/openid-connect/token"
INGEST = "/api/client/v1/ingest"
PATIENCE = 60.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    store = tmp_path_factory.mktemp("bounds") / "store"
    with server_in_thread(store, connections=64, silence_seconds=2, body_mb=1) as running:
        yield running


def connect(served: Served) -> socket.socket:
    address = httpx.URL(served.url)
    return socket.create_connection((address.host, address.port or 80), timeout=PATIENCE)


def head(path: str, length: int, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def until_closed(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while block := connection.recv(65_536):
            found += block
    return found


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_memory_is_not_given_to_bodies_without_a_token(tmp_path: Path) -> None:
    body = b"a=1&" * (31 << 18)

    def send(path: str) -> int:
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
            try:
                return http.post(path, content=body).status_code
            except httpx.WriteError:
                return 0

    with server_process(tmp_path / "store") as server, ThreadPoolExecutor(12) as pool:
        assert server.process is not None
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        answers = [*pool.map(send, [TOKEN] * 12), *pool.map(send, [INGEST] * 12)]
        grown = process.memory_info().rss - before
    assert set(answers) <= {0, 401, 413}
    assert grown < 64 << 20


def test_a_public_body_has_16_kib_and_few_fields(served: Served) -> None:
    with httpx.Client(base_url=served.url) as http:
        assert http.post(TOKEN, content=b"a" * 16_384).status_code == 400
        assert http.post(TOKEN, content=b"a" * 16_385).status_code == 413
        assert http.post(TOKEN, content=b"a=1&" * 4_000).status_code == 400


@pytest.mark.parametrize("kind", ["one header", "many headers", "address", "trailer", "pipeline"])
def test_a_head_of_any_size_is_refused_before_it_is_kept(served: Served, kind: str) -> None:
    sent = 0
    with connect(served) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        begin, more = {
            "one header": (b"GET /health HTTP/1.1\r\nA: ", b"a" * 65_536),
            "many headers": (b"GET /health HTTP/1.1\r\n", b"a: b\r\n" * 10_000),
            "address": (b"GET /health?", b"a" * 65_536),
            "trailer": (head(INGEST, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
                        + b"1\r\na\r\n0\r\nA: ", b"a" * 65_536),
            "pipeline": (b"", head(TOKEN, 10) + b"grant_type" + head(TOKEN, 10) * 5_000),
        }[kind]  # fmt: skip
        connection.sendall(begin)
        while sent < 64 << 20:
            connection.sendall(more)
            sent += len(more)
    assert sent < 8 << 20
    assert httpx.get(f"{served.url}/health").status_code == 200


def test_a_head_that_is_just_too_large_is_told_so(served: Served) -> None:
    with httpx.Client(base_url=served.url) as http:
        assert http.get("/health", headers={"A": "a" * 60_000}).status_code == 200
        assert http.get("/health", headers={"A": "a" * 66_000}).status_code == 431


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /api HTTP/1.1\r\nHost: x\r\n",
        head(TOKEN, 100) + b"grant",
        head(INGEST, 1_000_000) + b"x",
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea",
    ],
    ids=["nothing", "half a head", "half a body", "half a body that is refused", "half a second head"],
)
def test_who_says_half_is_not_waited_for(served: Served, sent: bytes) -> None:
    started = time.monotonic()
    with connect(served) as connection:
        connection.sendall(sent)
        until_closed(connection)
    assert time.monotonic() - started < 30


def test_drops_of_a_body_that_was_refused_do_not_keep_a_connection(served: Served) -> None:
    started = time.monotonic()
    with connect(served) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(head(INGEST, 1_000_000))
        while time.monotonic() - started < PATIENCE:
            connection.sendall(b"x")
            time.sleep(0.1)
    assert time.monotonic() - started < 30


def test_a_client_that_does_not_take_its_answer_is_not_waited_for(served: Served) -> None:
    with connect(served) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        ask = b"GET /api/leaderboard/swagger.json HTTP/1.1\r\nHost: x\r\n\r\n"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(2_000):
                connection.sendall(ask)
                time.sleep(0.01)
            raise AssertionError("the server waits for ever")


def test_200_connections_that_say_nothing_lock_nobody_out(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(served)) for _ in range(200)]
        for connection in silent[::2]:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(b"GET /health HTTP/1.1\r\nX: ")
        started = time.monotonic()
        with served.client() as http:
            assert http.get("/api/backend/v1/projects").status_code == 200
        assert time.monotonic() - started < 10
        for connection in silent:
            until_closed(connection)


def test_bodies_of_many_clients_wait_for_room_and_all_are_served(tmp_path: Path) -> None:
    with server_in_thread(tmp_path / "store", body_mb=1) as served, served.client() as http:
        content = json.dumps({"projectToCreate": ["x" * 1_000_000]}).encode()

        def send(_: int) -> int:
            return http.post("/api/backend/v1/projects", content=content).status_code

        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(send, range(32))) == {400}


def test_guessing_api_tokens_is_slow(tmp_path: Path) -> None:
    with server_in_thread(tmp_path / "store") as served:
        address = f"{served.url}/api/backend/v1/authorization/oauth-token"
        answers = [httpx.get(address, headers={"X-Neptune-Api-Token": "wrong"}) for _ in range(25)]
        assert [answer.status_code for answer in answers] == [401] * 20 + [429] * 5
        assert int(answers[-1].headers["Retry-After"]) > 0
        assert httpx.get(address, headers={"X-Neptune-Api-Token": served.token}).status_code == 429
