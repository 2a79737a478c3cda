"""Makes the demo's recordings again: ``make record-demo``.

Trains the models of :mod:`demo.train_scale` and :mod:`demo.train_client`, which Neptune's own clients record offline,
takes the machine out of what they wrote (:mod:`demo.neutral`), and writes ``expected.json``: what was logged, as the
training scripts counted it. Needs the development dependencies; no network and no account. Seeds are fixed, so values
are the same every time; run directories, file names and times are not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from contextlib import chdir
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # found as a module and as a script alike

from demo import neutral, train_client, train_scale  # noqa: E402


def main() -> None:
    """Replace the recordings below a folder; everything of earlier recordings there is removed first."""
    parser = argparse.ArgumentParser(description="Train the demo's models and record them with Neptune's clients.")
    parser.add_argument("--out", type=Path, default=HERE / "recordings", help="folder for the recordings")
    out = parser.parse_args().out.resolve()
    # The clients read these, and would take their project or folder from them.
    for name in [name for name in os.environ if name.startswith("NEPTUNE_")]:
        del os.environ[name]
    for kind in ("scale", "client"):
        shutil.rmtree(out / kind, ignore_errors=True)
        (out / kind).mkdir(parents=True)
    vision = train_scale.record(out / "scale" / ".neptune")
    neutral.neutralise_scale(out / "scale" / ".neptune")
    with chdir(out / "client"):
        tabular = train_client.record(Path("files"))
    neutral.neutralise_client(out / "client" / ".neptune")
    expected = {
        project: {run_id: tally.to_json() for run_id, tally in sorted(tallies.items())}
        for project, tallies in ((train_scale.PROJECT, vision), (train_client.PROJECT, tabular))
    }
    (out / "expected.json").write_text(json.dumps(expected, indent=1, allow_nan=False) + "\n")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"Recorded {len(vision)} runs of {train_scale.PROJECT} and {len(tabular)} of {train_client.PROJECT}.")
    print(f"{out.name}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
