"""Records one run with whatever neptune-scale release runs this script: `python scale_recordings.py DIRECTORY [killed]`.

Each folder of `scale-releases/` was made by it, in an environment of that release alone (Python 3.10, Linux):
`pip install neptune-scale==0.11.0 'setuptools<80'`, and so on. With `killed` the run is never closed.
"""

import os
import signal
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

if __name__ == "__main__":
    from neptune_scale import Run

    release = version("neptune-scale")
    killed = sys.argv[2:] == ["killed"]
    target = Path(sys.argv[1]).absolute() / (f"{release}-killed" if killed else release)
    target.mkdir(parents=True)
    os.chdir(target)
    start = datetime(2025, 3, 1, 12, 0, 0, 123_000, tzinfo=timezone.utc)  # noqa: UP017 - Python 3.10 has no UTC
    run = Run(
        project="team/old",
        run_id=target.name,
        experiment_name=f"exp {release}",
        creation_time=start,
        mode="offline",
    )
    run.log_configs({"lr": 0.1, "layers": 3, "name": "net ☃", "flag": True, "when": start, "big": 2**63 - 1})
    for step in range(5):
        run.log_metrics({"loss": 1 / (step + 1), "acc/top 1": -0.0}, step=step / 2, timestamp=start)
    run.add_tags(["a", "b"])
    run.remove_tags(["b"])
    if hasattr(run, "assign_files"):
        run.assign_files({"note": b"from " + release.encode()})
    if hasattr(run, "log_string_series"):
        run.log_string_series({"text": "line"}, step=1, timestamp=start)
    if killed:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    run.close()
