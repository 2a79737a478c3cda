"""Made the recordings of neptune-scale here, each with the Python of a virtual environment that holds one release.

    <venv>/bin/python scale_recordings.py SCENARIO DIRECTORY

An environment is Python 3.10 to 3.12 and `pip install neptune-scale==0.11.0 'setuptools<80'`, and so on. `README.md`
says which recording came from which release and scenario.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import unicodedata
from datetime import datetime, timedelta, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

RELEASE = version("neptune-scale")
START = datetime(2025, 3, 1, 12, 0, 0, 123_000, tzinfo=timezone.utc)  # noqa: UP017 - Python 3.10 has no UTC


def start(project: str, run_id: str, **options: Any) -> Any:
    from neptune_scale import Run

    return Run(project=project, run_id=run_id, **{"mode": "offline", **options})


def whole(directory: Path, killed: bool = False) -> None:
    """Every kind of value, in a folder of the release's name; with `killed` the run is never closed."""
    target = directory / (f"{RELEASE}-killed" if killed else RELEASE)
    target.mkdir(parents=True)
    os.chdir(target)
    run = start("team/old", target.name, experiment_name=f"exp {RELEASE}", creation_time=START)
    run.log_configs({"lr": 0.1, "layers": 3, "name": "net ☃", "flag": True, "when": START, "big": 2**63 - 1})
    for step in range(5):
        run.log_metrics({"loss": 1 / (step + 1), "acc/top 1": -0.0}, step=step / 2, timestamp=START)
    run.add_tags(["a", "b"])
    run.remove_tags(["b"])
    if hasattr(run, "assign_files"):
        run.assign_files({"note": b"from " + RELEASE.encode()})
    if hasattr(run, "log_string_series"):
        run.log_string_series({"text": "line"}, step=1, timestamp=START)
    if killed:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    run.close()


def killed(directory: Path) -> None:
    """As :func:`whole`, and the process is killed before the run is closed."""
    whole(directory, killed=True)


def resumed(directory: Path) -> None:
    """One more session of the run `job-8`, in the same directory: it begins two steps before the last one ended.

    Session n (0, 1, 2 ...) logs the steps 3n .. 3n+4: `loss` is 1000n + step, `same` is the step, `line` says both.
    Each session was recorded by another release, one hour after the one before.
    """
    directory.mkdir(parents=True, exist_ok=True)
    os.chdir(directory)
    session = len(list(directory.glob(".neptune/*")))
    run = start("team/scale", "job-8", **({} if session else {"creation_time": START}))
    for step in range(3 * session, 3 * session + 5):
        when = START + timedelta(hours=session, seconds=step)
        run.log_metrics({"loss": 1000.0 * session + step, "same": float(step)}, step=step, timestamp=when)
        if hasattr(run, "log_string_series"):
            run.log_string_series({"line": f"{session}: {step}"}, step=step, timestamp=when)
    run.close()


def full(directory: Path) -> None:
    """A run on a disk that is full when it begins: no file can grow beyond no bytes, as a quota refuses it."""
    directory.mkdir(parents=True)
    os.chdir(directory)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    run = start("team/scale", "job-full")
    run.log_metrics({"loss": 1.0}, step=1)
    run.close()


def names(directory: Path, **options: Any) -> None:
    """Files and attributes whose names are in Unicode form D, as a Mac's shell completes them."""
    directory.mkdir(parents=True)
    os.chdir(directory)
    odd = unicodedata.normalize("NFD", "größe")
    Path("öut").mkdir()
    Path("öut", f"{odd}.txt").write_text("from disk", encoding="utf-8")
    run = start("team/names", "nfd", **options)
    run.log_configs({f"p/{odd}": odd})
    run.log_metrics({odd: 0.5}, step=1, timestamp=START)
    run.assign_files({f"f/{odd}": str(Path("öut", f"{odd}.txt")), "f/bytes": b"bytes"})
    run.close()


def live(directory: Path) -> None:
    """As :func:`names`, and a plain run, logged to a server."""
    names(directory, mode="async")
    run = start("team/names", "plain", mode="async")
    run.log_metrics({"loss": 0.25}, step=1, timestamp=START)
    run.assign_files({"model/weights": b"weights"})
    run.close()


if __name__ == "__main__":
    scenarios = {item.__name__: item for item in (whole, killed, resumed, full, names, live)}
    scenarios[sys.argv[1]](Path(sys.argv[2]).absolute())
