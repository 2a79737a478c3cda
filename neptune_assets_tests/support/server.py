"""Real servers for tests: in a thread of this process, or in a process of their own that can be killed."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from neptune_assets.server.app import build_app
from neptune_assets.server.connections import uvicorn_config
from neptune_assets.server.service import Service
from neptune_assets.server.settings import ServerSettings
from neptune_assets.server.tokens import api_token, load_secrets

_PATIENCE = 120.0


def free_port() -> int:
    """A port that nobody listens on now, of those that the system gives to nobody by itself.

    A server that was killed wants its port again: the system must not have lent it to a client meanwhile.
    """
    while True:
        port = random.randint(20_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@dataclass
class Served:
    """A server that runs: where, and what clients put into NEPTUNE_API_TOKEN."""

    url: str
    token: str
    store: Path
    service: Service | None = None

    def client(self) -> httpx.Client:
        """An HTTP client with a fresh access token."""
        answer = httpx.get(
            f"{self.url}/api/backend/v1/authorization/oauth-token", headers={"X-Neptune-Api-Token": self.token}
        )
        bearer = answer.raise_for_status().json()["accessToken"]
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {bearer}"}, timeout=60)


@contextmanager
def server_in_thread(store: Path, **settings: Any) -> Iterator[Served]:
    """Run a server in a thread; ``settings`` are those of ServerSettings. The access log goes beside the store."""
    settings.setdefault("access_log", store.parent / f"{store.name}.log")
    settings.setdefault("port", free_port())
    made = ServerSettings(store=store, **settings)
    service = Service(made)
    port = made.port
    server = uvicorn.Server(uvicorn_config(build_app(service), made, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url)
        yield Served(url, api_token(load_secrets(store, None).api_key, url), store, service)
    finally:
        server.should_exit = True
        thread.join(_PATIENCE)


@dataclass
class ServerProcess:
    """A server in a process of its own. :meth:`kill` and :meth:`start` keep port and store."""

    store: Path
    lake: Path | None = None
    options: list[str] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    scheme: str = "http"
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        """What NEPTUNE_API_TOKEN must be set to."""
        return api_token(load_secrets(self.store, None).api_key, self.url)

    def start(self) -> Served:
        """Start the process and wait until it answers."""
        command = [sys.executable, "-m", "neptune_assets.server", "serve", "--store", str(self.store)]
        command += ["--port", str(self.port), *self.options]
        if self.lake is not None:
            command += ["--lake", str(self.lake)]
        with (self.store.parent / f"{self.store.name}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        _wait_for(self.url, self.process)
        return Served(self.url, self.token, self.store)

    def kill(self) -> None:
        """Kill the process at once, as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask the process to end, and wait until it did."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            os.kill(self.process.pid, number)
            self.process.wait(_PATIENCE)
            self.process = None


@contextmanager
def server_process(store: Path, **fields: Any) -> Iterator[ServerProcess]:
    """Run a server in a process of its own; ``fields`` are those of ServerProcess."""
    store.parent.mkdir(parents=True, exist_ok=True)
    server = ServerProcess(store, **fields)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _wait_for(url: str, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        try:
            if httpx.get(f"{url}/health", verify=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise RuntimeError("the server did not answer in time")
