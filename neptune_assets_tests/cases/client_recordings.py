"""Made the recordings in `neptune-client/`, each with the Python of a virtual environment that holds one release.

    <venv>/bin/python client_recordings.py SCENARIO    in an empty directory; leaves `.neptune` there

Only what every release from 0.9 to 1.14 has is used. `neptune-client/<release>.tar.gz` has a directory per scenario;
`README.md` says where the others are. Scenarios that need a server are run by `served_recordings.py`.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import unicodedata
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any


def start(mode: str = "offline", **options: Any) -> Any:
    try:
        import neptune

        init = neptune.init_run
    except (ImportError, AttributeError):
        import neptune.new

        init = getattr(neptune.new, "init_run", neptune.new.init)
    quiet = {f"capture_{name}": False for name in ("stdout", "stderr", "hardware_metrics")}
    return init(mode=mode, source_files=[], **quiet, **options)


def append(series: Any, value: Any, **options: Any) -> None:
    getattr(series, "append", series.log)(value, **options)


def _only_reads(epoch: int) -> None:
    assert epoch >= 0


def readers() -> None:
    """Workers that never log: what the parent had not written out when it forked is written by each of them."""
    context = multiprocessing.get_context("fork")
    run = start(name="readers")
    run["params/lr"] = 0.1
    for epoch in range(3):
        for step in range(4):
            append(run["loss"], 1 / (1 + epoch * 4 + step))
            append(run["log"], f"line {epoch * 4 + step}")
        workers = [context.Process(target=_only_reads, args=(epoch,)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    run["result"] = "ok"
    run.stop()


def _logs(run: Any, number: int) -> None:
    for step in range(5):
        append(run[f"worker/{number}/loss"], float(10 * number + step))
    run[f"worker/{number}/done"] = True
    run.wait(disk_only=True)
    # As a worker of multiprocessing leaves: without the handlers that run at exit.


def writers() -> None:
    """Workers that log into the run of their parent."""
    context = multiprocessing.get_context("fork")
    run = start(name="writers")
    run["params/lr"] = 0.1
    for epoch in range(2):
        append(run["loss"], 1.0 / (1 + epoch))
        workers = [context.Process(target=_logs, args=(run, 2 * epoch + number)) for number in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    run["result"] = "ok"
    run.stop()


def files() -> None:
    """File sets by pattern, by folder and by list, single files, and tracked files."""
    for name, text in {"conf/a.yaml": "aaa", "conf/b.yaml": "bbb", "data/x.csv": "1,2", "data/deep/y.csv": "3"}.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    run = start(name="files")
    run["cfg"].upload_files("conf/*.yaml")
    run["dataset"].upload_files("data")
    run["all"].upload_files("**/*.csv")
    run["one"].upload("conf/a.yaml")
    if hasattr(run["art"], "track_files"):
        run["art"].track_files("data")
        run["far"].track_files("s3://bucket/prefix", destination="val")
    run.stop()


def names() -> None:
    """Names and values with bytes that are not UTF-8, as os.fsdecode gives them."""
    odd = os.fsdecode(b"caf\xe9")
    Path("w").mkdir()
    Path("w", f"{odd}.txt").write_text("latin")
    Path("w", "ok.txt").write_text("ok")
    run = start(name="names")
    run["set"].upload_files("w")
    run["one"].upload(f"w/{odd}.txt")
    run["value"] = f"w/{odd}.txt"
    run[f"path/{odd}"] = 1
    run["tags"].add([odd])
    append(run["texts"], odd)
    if hasattr(run["art"], "track_files"):
        run["art"].track_files("w")
    run.stop()


def milliseconds() -> None:
    """Points whose times are in milliseconds, as a common mistake makes them."""
    run = start(name="milliseconds")
    for step in range(3):
        append(run["loss"], 0.5 + step, step=step, timestamp=1_700_000_000_000.0 + 1_000 * step)
        append(run["far"], 0.5 + step, step=step, timestamp=1e18)
    run.stop()


def leftovers() -> None:
    """A run that a server took whole (`python -m neptune_assets.server`), whose workers only read: folders remain."""
    context = multiprocessing.get_context("fork")
    run = start("async", project="team/left")
    run["x"] = 1
    workers = [context.Process(target=_only_reads, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    run["y"] = 2
    run.stop()


def sessions() -> None:
    """Seven executions of one run: each is recorded by a process of its own and placed as its asynchronous folder.

    Names are those that clients give where a server answers: a count and the local date, or, with the argument
    `epoch`, epoch seconds, as since 0.16.
    """
    identifier = "5d1c2a34-7777-4bcd-9e01-0123456789ab"
    began = datetime(2023, 11, 14, 22, 13, 20)
    for number in range(7):
        folder = Path(f"session-{number}")
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-W", "ignore", Path(__file__).resolve(), "_session", str(number)], cwd=folder, check=True
        )
        (recorded,) = (folder / ".neptune" / "offline").iterdir()
        when = began + timedelta(seconds=7 * number)
        name = (
            f"exec-{number + 5}-{when}"
            if sys.argv[2:] != ["epoch"]
            else f"exec-{when.timestamp()}-{when:%Y-%m-%d_%H.%M.%S.%f}"
        )
        place = Path(".neptune", "async", identifier if sys.argv[2:] != ["epoch"] else f"run__{identifier}", name)
        place.parent.mkdir(parents=True, exist_ok=True)
        recorded.rename(place)
        (place / "metadata.json").unlink(missing_ok=True)
        shutil.rmtree(folder)


def _session() -> None:
    number = int(sys.argv[2])
    run = start(name="sessions")
    run["params/from"] = number
    run["tags"].add(f"p{number}")
    append(run["loss"], float(number))
    run.stop()


def forms(mode: str = "offline", **options: Any) -> None:
    """Files and attributes whose names are in Unicode form D, as a Mac's shell completes them."""
    odd = unicodedata.normalize("NFD", "größe")
    Path("öut").mkdir()
    Path("öut", f"{odd}.txt").write_text("from disk", encoding="utf-8")
    run = start(mode, name="forms", **options)
    run[f"p/{odd}"] = odd
    append(run[odd], 0.5, step=1)
    run[f"f/{odd}"].upload(f"öut/{odd}.txt")
    run["set"].upload_files("öut")
    run["stars"].upload_files("öut/*.txt")
    run.stop()


def live() -> None:
    """As :func:`forms`, and a plain run, logged to a server; argument: project."""
    forms("async", project=sys.argv[2])
    run = start("async", name="plain", project=sys.argv[2])
    append(run["loss"], 0.25, step=1)
    run["model/weights"].upload(str(next(Path("öut").iterdir())))
    run.stop()


def full() -> None:
    """A run whose disk is full after 2,000 bytes of its log: no file can grow beyond, as a quota refuses it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    run = start(name="full")
    run.wait(disk_only=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
    for step in range(100):
        append(run["loss"], 1 / (1 + step), step=step)
    run.stop()


def overlap() -> None:
    """A session of a run of a server that is gone once it began; the second one logs three steps again.

    Arguments: project, and the run's id if it is the second. Says `ready` and waits for a line before it logs; is
    killed as soon as all is on the disk.
    """
    project, *known = sys.argv[2:]
    try:
        run = start("async", project=project, **({"with_id": known[0]} if known else {}))
    except TypeError:
        run = start("async", project=project, run=known[0])
    run.sync()
    print("ready", run["sys/id"].fetch(), flush=True)
    sys.stdin.readline()
    for step in range(6, 9) if known else range(10):
        append(run["loss"], (2000.0 if known else 1000.0) + step, step=step, timestamp=1.7e9 + 3600 * len(known) + step)
        append(run["same"], float(step), step=step, timestamp=1.7e9 + 3600 * len(known) + step)
    run["params/from"] = 1 + len(known)
    run.wait(disk_only=True)
    os.kill(os.getpid(), signal.SIGKILL)


def new_project() -> None:
    """Logs into a project that the server does not have, and synchronizes an offline run into another one."""
    Path("note.txt").write_text("a note")
    for mode, options in (("async", {"project": "team/new"}), ("offline", {})):
        run = start(mode, name=mode, **options)
        run["x"] = 1
        run["sys/tags"].add(["a", "b"])
        for step in range(3):
            append(run["m"], step / 2, step=step)
        append(run["log"], "a line")
        run["note"].upload("note.txt")
        run.stop()
    subprocess.run([Path(sys.executable).with_name("neptune"), "sync", "-p", "team/synced"], check=True)


if __name__ == "__main__":
    scenarios = (readers, writers, files, names, milliseconds, leftovers, sessions, _session)
    scenarios += (forms, live, full, overlap, new_project)
    {item.__name__: item for item in scenarios}[sys.argv[1]]()
