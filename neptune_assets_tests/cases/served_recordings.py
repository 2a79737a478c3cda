"""Made what clients record, send and export with a server, ours, in this project's own environment.

    python neptune_assets_tests/cases/served_recordings.py (overlap | new_project | exports) PYTHON DIRECTORY

PYTHON is that of a virtual environment that holds one release of a client; for `exports` it needs PEER_PYTHON and
PEER_SRC too (see `make conformance-exporter`). `README.md` says which input came from which release.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from neptune_assets.server.tokens import api_token, load_secrets
from neptune_assets_tests.support.faulty_proxy import FaultyProxy
from neptune_assets_tests.support.server import server_in_thread, server_process

CLIENT = Path(__file__).parent / "client_recordings.py"
SCALE = Path(__file__).parent / "scale_recordings.py"
MAIN = "import sys; from neptune_exporter.main import main; sys.exit(main())"
_HANDSHAKE = ("swagger.json", "authorization", "/auth/", "clients/config")


def _environment(token: str, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NEPTUNE", "VIRTUAL", "PYTHON"))}
    return kept | {"NEPTUNE_API_TOKEN": token, "OAUTHLIB_INSECURE_TRANSPORT": "1", "HOME": str(home)}


def overlap(python: str, directory: Path) -> None:
    """Two sessions of one run whose server went away while they logged; what the client kept is in `.neptune/async`."""
    directory.mkdir(parents=True)
    known: list[str] = []
    for _ in range(2):
        with server_process(directory.parent / f"{directory.name}-store") as server:
            command = [python, "-W", "ignore", str(CLIENT), "overlap", "team/resumed", *known]
            client = subprocess.Popen(
                command,
                cwd=directory,
                env=_environment(server.token, directory),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert client.stdout is not None
            ready = next(line for line in client.stdout if line.startswith("ready "))
            known = [ready.split()[1]]
            server.kill()
        client.communicate("go\n", timeout=60)


def new_project(python: str, directory: Path) -> None:
    """Every request of one client that logs into a project that is not there, and into another one with `sync -p`.

    Kept are those that follow the handshake (descriptions of the interface, tokens), one line of JSON each.
    """
    directory.mkdir(parents=True)
    with (
        server_in_thread(directory.parent / f"{directory.name}-store") as served,
        FaultyProxy(served.url).running() as proxy,
    ):
        token = api_token(load_secrets(served.store, None).api_key, proxy.url)
        subprocess.run(
            [python, "-W", "ignore", str(CLIENT), "new_project"],
            cwd=directory,
            env=_environment(token, directory),
            check=True,
            timeout=120,
        )
        lines = [
            json.dumps({"method": method, "path": path, "type": headers.get("Content-Type"), "body": body.decode()})
            + "\n"
            for method, path, headers, body in proxy.seen.requests
            if not any(part in path for part in _HANDSHAKE)
        ]
        (directory / "requests.jsonl").write_text("".join(lines))


def exports(python: str, directory: Path) -> None:
    """What neptune-exporter makes of runs of a client whose names are in Unicode form D, and of a plain one."""
    with server_in_thread(directory.parent / f"{directory.name}-store") as served:
        environment = _environment(served.token, directory)
        project_directory = directory / "proj"
        if "scale" in directory.name:
            generation, project = "neptune3", "team/names"
            directory.mkdir()
            command = [str(SCALE), "live", str(project_directory)]
        else:
            generation, project = "neptune2", "team/forms"
            project_directory.mkdir(parents=True)
            command = [str(CLIENT), "live", project]
        ran_in = project_directory if project_directory.is_dir() else directory
        subprocess.run([python, "-W", "ignore", *command], cwd=ran_in, env=environment, check=True, timeout=120)
        peer = [os.environ["PEER_PYTHON"], "-c", MAIN, "export", "--exporter", generation, "-p", project]
        peer += ["-d", "exports/data", "-f", "exports/files", "--no-progress", "--log-file", "log"]
        peer += ["--error-report-file", "errors.jsonl"]
        environment["PYTHONPATH"] = os.environ["PEER_SRC"]
        subprocess.run(peer, cwd=directory, env=environment, check=True, timeout=120)


if __name__ == "__main__":
    {item.__name__: item for item in (overlap, new_project, exports)}[sys.argv[1]](
        sys.argv[2], Path(sys.argv[3]).absolute()
    )
