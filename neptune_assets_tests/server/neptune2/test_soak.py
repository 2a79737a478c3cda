"""Scripts of 2.x log, the server is killed again and again, exports run: at the end every point is there once.

Real clients, a real server process, the real command. Every second script loses its first client, killed in the midst
of its work: `neptune sync` brings what that one kept, after all that the second one logged. The short form runs with
the tests, the long one with `make proofs`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow.compute as pc
import pytest

from neptune_assets_tests.support.soak import PROJECT, Scripts, Soak, soak

WRITER = """
import json, os, subprocess, sys, time, warnings
from pathlib import Path

def session(number, seconds, pause, root, logged, killed):
    warnings.simplefilter("ignore")
    import neptune
    run = neptune.init_run(
        project="soak/project", custom_run_id=f"writer-{number}", capture_stdout=False, capture_stderr=False,
        capture_hardware_metrics=False, source_files=[], git_ref=False,
    )
    run["number"] = number
    Path(root, f"ready-{number}").touch()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name in range(5):
            run[f"metric/{name}"].append(logged * 10 + name + 0.1, step=logged * 0.25)
        run["line"].append(f"line {logged}", step=logged * 0.25)
        run["numbered"].append(logged + 0.5)  # the server gives the step
        logged += 1
        time.sleep(pause)
    if killed:
        print(logged, flush=True, file=results)
        run.wait(disk_only=True)
        os.kill(os.getpid(), 9)
    run["sys/tags"].add([f"steps {logged}"])
    run.stop()
    return logged

def main(number, seconds, pause, root):
    logged = 0
    # One client after the other resumes the run, as a training that is started again does.
    if number % 2 == 1:
        arguments = json.dumps([number, seconds / 2, pause, root, logged, True])
        done = subprocess.run([sys.executable, __file__, arguments], stdout=subprocess.PIPE, check=False)
        assert done.returncode == -9, done.returncode
        logged = int(done.stdout)
    else:
        logged = session(number, seconds / 2, pause, root, logged, False)
    print(json.dumps(session(number, seconds / 2, pause, root, logged, False)), file=results)

if __name__ == "__main__":
    # Where the script's result goes, away from what the client prints.
    results, sys.stdout = sys.stdout, sys.stderr
    if len(sys.argv) == 2:
        session(*json.loads(sys.argv[1]))
    else:
        main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
"""

NEPTUNE_COMMAND = "from neptune.cli.commands import sync; sync()"
"""The command itself: the `neptune` script that holds it does not start with setuptools of today."""


def synchronize(root: Path, environment: Mapping[str, str]) -> None:
    """Send what killed clients kept."""
    assert list(root.glob(".neptune/async/*/data-*.log"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NEPTUNE_COMMAND, "--path", ".", "--project", PROJECT],
        env=dict(environment),
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(root.glob(".neptune/async/*/data-*.log")), done.stdout + done.stderr


ENVIRONMENT = {
    "OAUTHLIB_INSECURE_TRANSPORT": "1",
    # How long a client that begins waits for a server that is down; it gives up after a minute unless told otherwise.
    "NEPTUNE_RETRIES_TIMEOUT": "600",
}
SCRIPTS = Scripts(WRITER, {"neptune2": {"projects": [PROJECT]}}, synchronize, ENVIRONMENT)


def soak_and_look_at_numbers(root: Path, plan: Soak) -> None:
    for runs in soak(root, plan, SCRIPTS).values():
        for number, rows in enumerate(runs):
            numbered = rows.filter(pc.field("attribute_path") == "numbered")
            count = len(rows.filter(pc.field("attribute_path") == "line"))
            values = numbered["float_value"].to_pylist()
            # What a killed client kept comes after all that the next one logged.
            assert (values if number % 2 == 0 else sorted(values)) == [index + 0.5 for index in range(count)]
            assert numbered["step"].to_pylist() == list(range(count))


def test_two_scripts_and_a_kill(tmp_path: Path) -> None:
    soak_and_look_at_numbers(tmp_path, Soak(seconds=12, writers=2, kills=1, export_every=60, pause=0.05))


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_ten_scripts_for_ten_minutes_and_ten_kills(tmp_path: Path) -> None:
    soak_and_look_at_numbers(tmp_path, Soak(seconds=600, writers=10, kills=10, export_every=60, pause=0.2))
