"""The real neptune-scale, in processes of its own, logs to a real server that is killed meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

from neptune_assets_tests.support.ingest import stored, stored_points
from neptune_assets_tests.support.server import ServerProcess, server_process

STEPS = 120
METRICS = 8
BIG = 40 << 20

WRITER = f"""
import random, sys
from neptune_scale import Run
from neptune_scale.types import Histogram

def main():
    folder, errors = sys.argv[1], []
    with Run(project="team/vision", run_id="r", experiment_name="exp", log_directory=folder,
             enable_console_log_capture=False, source_tracking_config=None,
             on_error_callback=lambda error, at: errors.append(repr(error))) as run:
        run.log_configs({{"lr": 0.1, "big": 2**62}})
        run.assign_files({{"small": b"hello", "large": random.Random(1).randbytes({BIG})}})
        for step in range({STEPS}):
            run.log_metrics({{f"m{{i}}": step + i / 10 for i in range({METRICS})}}, step=step / 4)
            run.log_string_series({{"text": f"line {{step}}"}}, step=step)
            if step == 10:
                assert run.wait_for_processing(timeout=300)
                print("ready", flush=True)
                sys.stdin.readline()
        run.log_histograms({{"h": Histogram(bin_edges=[0.0, 1.0], counts=[3])}}, step=1)
        run.add_tags(["a", "b"])
    print("done", errors, flush=True)

if __name__ == "__main__":
    main()
"""


def start_writer(server: ServerProcess, folder: Path) -> subprocess.Popen[str]:
    script = folder / "writer.py"
    script.write_text(WRITER)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NEPTUNE")}
    return subprocess.Popen(
        [sys.executable, str(script), str(folder / "neptune")],
        env=environment | {"NEPTUNE_API_TOKEN": server.token},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "writer.log").open("w"),
        text=True,
    )


def test_a_killed_server_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with server_process(tmp_path / "store") as server, start_writer(server, tmp_path) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        # What the client was told to be processed is there after a kill; the rest is logged while nobody answers.
        assert "ready" in writer.stdout.readline(), (tmp_path / "writer.log").read_text()
        server.kill()
        before = stored_points(server.store, "r")
        assert {path: len(found) for path, found in before.items()} == {f"m{i}": 11 for i in range(METRICS)}
        writer.stdin.write("go on\n")
        writer.stdin.flush()
        server.start()
        assert writer.stdout.readline() == "done []\n"
    assert stored_points(server.store, "r") == {
        f"m{i}": [(step * 250_000, step + i / 10) for step in range(STEPS)] for i in range(METRICS)
    }
    with stored(server.store) as connection:
        lines = connection.execute(
            "SELECT step, objects.value FROM objects JOIN attributes ON attribute = attributes.id WHERE path = 'text'"
        ).fetchall()
        values = dict(connection.execute("SELECT path, value FROM attributes WHERE value IS NOT NULL").fetchall())
        files = dict(connection.execute("SELECT key, sha256 FROM files").fetchall())
    connection.close()
    assert lines == [(step * 1_000_000, f"line {step}") for step in range(STEPS)]
    assert values["big"] == 2**62
    assert values["sys/tags"] == '["a","b"]'
    assert files[json.loads(values["large"])["path"]] == hashlib.sha256(random.Random(1).randbytes(BIG)).hexdigest()
    assert files[json.loads(values["small"])["path"]] == hashlib.sha256(b"hello").hexdigest()
