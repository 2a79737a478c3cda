"""Scripts of 3.x log, the server is killed again and again, exports run: at the end every point is there once.

Real clients, a real server process, the real command. The short form runs with the tests, the long one with
`make proofs`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from neptune_assets_tests.support.soak import PROJECT, Scripts, Soak, soak

WRITER = """
import json, sys, time
from pathlib import Path
from neptune_scale import Run

def main():
    number, seconds, pause = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    logged = 0
    # One client after the other resumes the run, as a training that is started again does.
    for _ in range(2):
        with Run(project="soak/project", run_id=f"writer-{number}", log_directory=sys.argv[4],
                 enable_console_log_capture=False, source_tracking_config=None) as run:
            run.log_configs({"number": number})
            Path(sys.argv[4], f"ready-{number}").touch()
            end = time.monotonic() + seconds / 2
            while time.monotonic() < end:
                run.log_metrics({f"metric/{name}": logged * 10 + name + 0.1 for name in range(5)}, step=logged * 0.25)
                run.log_string_series({"line": f"line {logged}"}, step=logged * 0.25)
                logged += 1
                time.sleep(pause)
            run.add_tags([f"steps {logged}"])
    print(json.dumps(logged))

if __name__ == "__main__":
    main()
"""

NEPTUNE_COMMAND = "from neptune_scale.cli.commands import main; main()"
"""The command `neptune` of neptune-scale; neptune-client has one of the same name."""


def synchronize(root: Path, environment: Mapping[str, str]) -> None:
    """Send what a client kept that found no server when it began: it gives up then and says `neptune sync`."""
    # The youngest first: what earlier clients kept comes late then.
    for database in sorted(
        root.glob("*/run_operations.sqlite3"), key=lambda path: path.parent.name[-19:], reverse=True
    ):
        subprocess.run(
            [sys.executable, "-c", NEPTUNE_COMMAND, "sync", str(database)], env=dict(environment), cwd=root, check=True
        )
    assert not list(root.glob("*/run_operations.sqlite3"))


SCRIPTS = Scripts(WRITER, {"neptune3": {"projects": [PROJECT]}}, synchronize, {"NEPTUNE_LOGGER_LEVEL": "error"})


def test_two_scripts_and_a_kill(tmp_path: Path) -> None:
    soak(tmp_path, Soak(seconds=16, writers=2, kills=1, export_every=60, pause=0.05), SCRIPTS)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_ten_scripts_for_ten_minutes_and_ten_kills(tmp_path: Path) -> None:
    soak(tmp_path, Soak(seconds=600, writers=10, kills=10, export_every=60, pause=0.2), SCRIPTS)
