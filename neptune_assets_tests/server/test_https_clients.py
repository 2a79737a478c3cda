"""The real clients of both generations over https, with the certificate that the server's own command makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from neptune_assets.server.__main__ import main
from neptune_assets_tests.support.server import ServerProcess

NEPTUNE2 = """
import json, sys, warnings
warnings.simplefilter("ignore")
import neptune
from neptune.types import File
with neptune.init_run(project="team/vision", custom_run_id="two", capture_stdout=False, capture_stderr=False,
                      capture_hardware_metrics=False, source_files=[], git_ref=False) as run:
    run["lr"] = 0.5
    run["loss"].extend([3.0, 2.0], steps=[0, 1])
    run["file"].upload(File.from_content("over TLS", extension="txt"))
    run.sync()
    run["file"].download("file.out", progress_bar=False)
    series = list(run["loss"].fetch_values(progress_bar=False)["value"])
    print(json.dumps([run["lr"].fetch(), series, open("file.out").read()]))
"""
NEPTUNE3 = """
import json, sys
from neptune_scale import Run
if __name__ == "__main__":
    with Run(project="team/vision", run_id="three", log_directory="three", enable_console_log_capture=False,
             source_tracking_config=None) as run:
        run.log_configs({"lr": 0.25})
        run.assign_files({"file": b"over TLS, too"})
    import neptune_query.runs as nq
    from pathlib import Path
    table = nq.fetch_runs_table(project="team/vision", runs="three", attributes=["lr", "file"])
    places = nq.download_files(files=table["file"], destination="files")
    print(json.dumps([table["lr"].iloc[0], Path(places["file"].iloc[0]).read_text()]))
"""


@pytest.fixture(scope="module")
def certfile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certificate") / "server.crt"
    assert main(["certificate", "--certfile", str(path), "--keyfile", str(path.with_suffix(".key"))]) == 0
    return path


@pytest.fixture(scope="module")
def server(certfile: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    options = ["--certfile", str(certfile), "--keyfile", str(certfile.with_suffix(".key"))]
    running = ServerProcess(tmp_path_factory.mktemp("https") / "store", options=options, scheme="https")
    try:
        served = running.start()
        assert served.service is None
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def project(server: ServerProcess, certfile: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Made by the client of 3.x: that of 2.x wants a project that is there."""
    # Files are downloaded with another library than the rest.
    trusted = {"SSL_CERT_FILE": str(certfile), "REQUESTS_CA_BUNDLE": str(certfile)}
    return run(server, tmp_path_factory.mktemp("three"), NEPTUNE3, **trusted)


def run(server: ServerProcess, folder: Path, script: str, **environment: str) -> str:
    """Run a client as a user would; nothing of this process's own settings gets through."""
    (folder / "script.py").write_text(script)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NEPTUNE", "OAUTHLIB"))}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env={**kept, "HOME": str(folder), "NEPTUNE_API_TOKEN": server.token, **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return next(line for line in done.stdout.splitlines() if line.startswith("[0"))


def test_the_token_names_the_address(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--store", str(server.store), "--url", server.url]) == 0
    assert capsys.readouterr().out.strip() == server.token


def test_clients_of_3x_trust_the_file(project: str) -> None:
    assert json.loads(project) == [0.25, "over TLS, too"]


def test_the_client_of_2x_is_told_to_allow_it(server: ServerProcess, project: str, tmp_path: Path) -> None:
    assert json.loads(project), "the project is there"
    found = run(server, tmp_path, NEPTUNE2, NEPTUNE_ALLOW_SELF_SIGNED_CERTIFICATE="TRUE")
    assert json.loads(found) == [0.5, [3.0, 2.0], "over TLS"]
