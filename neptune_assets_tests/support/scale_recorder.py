"""Records runs with the real neptune-scale client in offline mode, each call in a process of its own.

The client starts threads, captures output and registers exit handlers, so tests never import it: they call
:func:`record` and read the folder. What each scenario logs stands in this module, for tests to compare with.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

PROJECT = "team/vision"
BASE = datetime(2025, 3, 1, 12, 0, 0, 123_000, tzinfo=UTC)
LONG_NAME = "deep/" + "n" * 1_000
HOSTILE_RUN = "Rün ☃ ..:*?\"<>|\\'\n\x01-" + "x" * 400

STEPS = ["0", "0.000001", "0.5", "1", "1.999999", "7.654321", "1234567.25", "9000000000.5"]
VALUES = [0.1, float("nan"), float("inf"), float("-inf"), -0.0, 5e-324, 1.7976931348623157e308, 42.0]

CONFIGS: dict[str, Any] = {
    "params/lr": 0.001,
    "params/nan": float("nan"),
    "params/inf": float("-inf"),
    "params/minus_zero": -0.0,
    "params/big": 2**63 - 1,
    "params/small": -(2**63),
    "params/flag": True,
    "params/off": False,
    "params/name": "sgd",
    "params/empty": "",
    "params/odd": "nul \x00 newline \n quote ' \" ☃ 🙂",
    "params/when": datetime(1999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC),
    "params/set": ["b", "a", "b", ""],
    "Case": 1,
    "case": 2,
    "a.b": 3,
    "a_b": 4,
    "spaces and / slashes //": "kept",
    LONG_NAME: "long",
}
TEXTS = ["first", "", "two\nlines\x00", "🙂" * 100]
COUNTS = ([0.0, 1.0, 40.0, float("inf")], [5, 0, 2**60])
DENSITIES = ([-1.0, 0.0, 1.0], [0.25, 0.75])
BYTES = b"\x00\x01 raw bytes \xff"
TEXT_FILE = "a text file\n"


def record(scenario: str, folder: Path, *arguments: str, wait: bool = True) -> subprocess.Popen[str]:
    """Run a scenario in its own process; waits for its end, or for the word ``ready`` if ``wait`` is false."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NEPTUNE")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, scenario, str(folder), *arguments],
        env=environment,
        cwd=folder,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    if wait:
        process.communicate(timeout=120)
        assert process.returncode in {0, -signal.SIGKILL}, process.returncode
    else:
        assert process.stdout is not None
        while (line := process.stdout.readline()).strip() != "ready":
            assert line, "the recorder ended before it was ready"
    return process


def _start(folder: Path, run_id: str, **options: Any) -> Any:
    from neptune_scale import Run

    options.setdefault("enable_console_log_capture", False)
    options.setdefault("source_tracking_config", None)
    return Run(project=PROJECT, run_id=run_id, mode="offline", log_directory=folder, **options)


def _everything(folder: Path) -> None:
    """All kinds of operation in one run, then a run with a hostile id, and two with the client's defaults."""
    from neptune_scale.types import File, Histogram

    run = _start(folder, "everything", experiment_name="exp ☃", creation_time=BASE)
    run.log_configs({"params/lr": 1.0, "params/set": ["gone"]})
    run.log_configs(CONFIGS)
    for number, (step, value) in enumerate(zip(STEPS, VALUES, strict=True)):
        run.log_metrics(
            {"m/loss": value, LONG_NAME + "/m": float(number), "Case/m": 1, "case/m": 2},
            step=float(step),
            timestamp=BASE + timedelta(milliseconds=1001 * number),
        )
    for number, text in enumerate(TEXTS):
        run.log_string_series({"logs/text": text}, step=number, timestamp=BASE + timedelta(seconds=number))
    run.log_histograms({"h/c": Histogram(bin_edges=COUNTS[0], counts=COUNTS[1])}, step=1, timestamp=BASE)
    run.log_histograms({"h/d": Histogram(bin_edges=DENSITIES[0], densities=DENSITIES[1])}, step=1.5, timestamp=BASE)
    run.add_tags(["one", "two", "three", ""])
    run.add_tags(["group"], group_tags=True)
    run.remove_tags(["two", "never there"])
    run.log(tags_add={"my/set": ["x", "y"]}, tags_remove={"params/set": ["b"]})
    run.log(tags_remove={"my/set": ["x"]})
    run.log_metrics({"m/preview": 1.0, "m/superseded": 1.0}, step=1, preview=True, preview_completion=0.5)
    run.log_metrics({"m/preview": 2.0}, step=2, preview=True)
    run.log_metrics({"m/superseded": 9.0}, step=1, timestamp=BASE)
    note = folder / "note.txt"
    note.write_text(TEXT_FILE)
    run.assign_files({"f/bytes": BYTES, "f/path": note, "f/empty": b""})
    run.assign_files({"f/custom": File(source=b"custom", destination="shared/my file.bin", mime_type="a/b")})
    for index in (3, 2, 1):
        run.log_files({"f/series": f"file {index}".encode()}, step=index, timestamp=BASE)
    run.close()

    run = _start(folder, HOSTILE_RUN)
    run.log_metrics({"m": 1.0}, step=1, timestamp=BASE)
    run.close()

    run = _start(folder, "defaults", enable_console_log_capture=True)
    print("a captured line", flush=True)
    run.close()


def _family(folder: Path) -> None:
    """A parent, its forks, a grandchild, an orphan, a resumed run, and a child that came before its parent."""
    import time

    parent = _start(folder / "elsewhere", "parent", experiment_name="root", creation_time=BASE)
    parent.log_configs({"p/kept": 1, "p/overwritten": "parent", "p/changed": "before", "sys/description": "told"})
    parent.add_tags(["from parent", "dropped"])
    parent.add_tags(["family"], group_tags=True)
    parent.assign_files({"p/file": b"parent's file"})
    parent.log_metrics({"m": 1.0}, step=1, timestamp=BASE)
    time.sleep(0.05)
    child = _start(folder, "child", fork_run_id="parent", fork_step=1.5)
    child.log_configs({"p/overwritten": "child"})
    child.log(tags_remove={"sys/tags": ["dropped"]})
    child.log_metrics({"m": 2.0}, step=2, timestamp=BASE)
    time.sleep(0.05)
    parent.log_configs({"p/changed": "after", "p/late": True})
    plain = _start(folder, "plain", fork_run_id="parent", fork_step=1, inherit_configs=False)
    plain.log_configs({"own": 1})
    time.sleep(0.05)
    grandchild = _start(folder, "grandchild", fork_run_id="child", fork_step=2)
    orphan = _start(folder, "orphan", fork_run_id="nowhere", fork_step=7)
    orphan.log_configs({"own": 1})
    for run in (parent, child, plain, grandchild, orphan):
        run.close()
    first = _start(folder, "resumed", creation_time=BASE)
    first.log_configs({"c": "first", "only/first": 1})
    first.add_tags(["a", "b"])
    first.log_metrics({"m": 1.0}, step=1, timestamp=BASE)
    first.close()
    time.sleep(0.05)
    second = _start(folder, "resumed", creation_time=BASE + timedelta(days=1))
    second.log_configs({"c": "second"})
    second.remove_tags(["a"])
    second.log_metrics({"m": 2.0}, step=2, timestamp=BASE)
    second.close()
    early = _start(folder, "early", fork_run_id="late", fork_step=1)
    early.close()
    time.sleep(0.05)
    late = _start(folder, "late")
    late.log_configs({"p": 1})
    late.close()


def _killed(folder: Path, points: str = "50") -> None:
    """A run whose process dies without closing it."""
    run = _start(folder, "killed", creation_time=BASE)
    run.log_configs({"c": 1})
    for step in range(int(points)):
        run.log_metrics({"m": step / 2}, step=step, timestamp=BASE + timedelta(seconds=step))
    os.kill(os.getpid(), signal.SIGKILL)


def _overlap(folder: Path) -> None:
    """A run of which later sessions log steps again: equal values, other ones, and other ones with an earlier time."""
    for session in range(3):
        run = _start(folder, "overlap", creation_time=BASE)
        for step in range(5 if session == 0 else 0):
            run.log_metrics({"same": step, "other": step, "early": step}, step=step, timestamp=BASE)
            run.log_string_series({"text": f"line {step}"}, step=step, timestamp=BASE)
        for step in range(2, 5 if session == 1 else 0):
            later = BASE + timedelta(hours=1)
            run.log_metrics({"same": step, "other": 10 + step}, step=step, timestamp=later)
            run.log_metrics({"early": 10 + step}, step=step, timestamp=BASE - timedelta(hours=1))
        if session == 2:
            run.log_string_series({"text": "again"}, step=1, timestamp=BASE + timedelta(hours=2))
            run.log_string_series({"text": "line 2"}, step=2, timestamp=BASE + timedelta(hours=2))
        run.close()


def _live(folder: Path) -> None:
    """A run that logs ten points for every line on standard input, and stays open."""
    run = _start(folder, "live", creation_time=BASE)
    run.log_configs({"c": 1})
    step = 0
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "flood":
            while True:
                run.log_metrics({"m": float(step)}, step=step, timestamp=BASE)
                step += 1
        for _ in range(10):
            run.log_metrics({"m": float(step)}, step=step, timestamp=BASE)
            step += 1
        print("ready", flush=True)


def _many(folder: Path, points: str, metrics: str) -> None:
    """Many points, for measuring: operations of ``metrics`` floats each, written in one go by the client's own code."""
    run = _start(folder, "many", creation_time=BASE)
    snapshots: list[Any] = []
    from neptune_scale.sync.metadata_splitter import MetadataSplitter, Metrics

    for step in range(int(points) // int(metrics)):
        data = {f"m/{number}": step / (number + 1) for number in range(int(metrics))}
        snapshots.extend(
            MetadataSplitter(
                project=PROJECT,
                run_id="many",
                timestamp=BASE,
                step=step,
                configs=None,
                metrics=Metrics(data),
                files=None,
                file_series=None,
                add_tags=None,
                remove_tags=None,
            )
        )
        if len(snapshots) >= 10_000:
            run._operations_repo.save_update_run_snapshots(snapshots)
            snapshots = []
    run._operations_repo.save_update_run_snapshots(snapshots)
    run.close()


SCENARIOS: dict[str, Callable[..., None]] = {
    "everything": _everything,
    "family": _family,
    "killed": _killed,
    "live": _live,
    "overlap": _overlap,
    "many": _many,
}


def main(arguments: Sequence[str]) -> None:
    """Play one scenario into one folder."""
    scenario, folder, *rest = arguments
    SCENARIOS[scenario](Path(folder), *rest)
    print(json.dumps({"scenario": scenario}))


if __name__ == "__main__":
    main(sys.argv[1:])
