"""Logs runs, a model and its versions to a running server with the real neptune-client, in a process of its own.

What is logged stands in this module, for tests to compare with. ``python -m ... <workspace/project>`` logs in the
working directory; the token comes from the environment.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from neptune_assets_tests.support.server import Served

PROJECT = "team/live"
KEY = "LIVE"
FIRST, SECOND, TRASHED = f"{KEY}-1", f"{KEY}-2", f"{KEY}-3"
MODEL = f"{KEY}-FOREST"
VERSIONS = (f"{MODEL}-1", f"{MODEL}-2")
SINGLES: dict[str, Any] = {
    "p/float": 0.1,
    "p/minus_zero": -0.0,
    "p/tiny": 5e-324,
    "p/huge": -1.7976931348623157e308,
    "p/big": 2**31 - 1,
    "p/small": -(2**31),
    "p/yes": True,
    "p/no": False,
    "p/string": "newline \n quote ' \" ☃ 🙂",
    "p/empty": "",
    "p/when": datetime(1999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC),
    "Case": 1,
    "case": 2,
    "a.b": 3,
    "a_b": 4,
}
NEW_YORK_TWICE = [datetime(2025, 11, 2, hour, 30, tzinfo=UTC) for hour in (4, 5, 6, 7)]
"""05:30Z and 06:30Z are both half past one in New York on that day."""
POINTS = [
    # value, step, moment
    (0.1, 0, NEW_YORK_TWICE[0]),
    (-0.0, 0.5, NEW_YORK_TWICE[1]),
    (5e-324, 1.000001, NEW_YORK_TWICE[2]),
    (1.7976931348623157e308, 1_234_567.25, NEW_YORK_TWICE[3]),
]
TEXTS = [("", 0.25), ("two\nlines", 0.5), ("🙂", 7)]
MANY = 2_345
TAGS = {"one", "☃ two", "x,y"}
FILES = {"f/text": ("text ☃".encode(), "md"), "f/bytes": (b"\x00\x01 raw \xff", ""), "f/empty": (b"", "txt")}
MEMBERS = {"tree/a.txt": b"a", "tree/deep/b.txt": b"bb", "model.bin": b"weights"}
PICTURES = {0.5: "red", 3: "blue"}
STAGES = {VERSIONS[0]: "production", VERSIONS[1]: "none"}


def log_live(served: Served, folder: Path) -> None:
    """Make the project on the server and log everything into it."""
    workspace, _, name = PROJECT.partition("/")
    project = {"name": name, "organizationIdentifier": workspace, "projectKey": KEY}
    served.client().post("/api/backend/v1/projects", json={"projectToCreate": project}).raise_for_status()
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("NEPTUNE")},
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "NEPTUNE_API_TOKEN": served.token,
        "OAUTHLIB_INSECURE_TRANSPORT": "1",
    }
    command = [sys.executable, "-W", "ignore", "-m", __name__]
    done = subprocess.run(
        command, env=environment, cwd=folder, text=True, capture_output=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def commit() -> str:
    """Make a git repository in the working directory, with one commit, and return its id."""
    git = ["git", "-c", "user.name=Ann", "-c", "user.email=ann@example.com"]
    subprocess.run([*git, "init", "-q", "."], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "Begin"], check=True)
    done = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _options() -> dict[str, Any]:
    return {"project": PROJECT, "mode": "sync"}


def _quiet() -> dict[str, Any]:
    return {
        "capture_stdout": False,
        "capture_stderr": False,
        "capture_traceback": False,
        "capture_hardware_metrics": False,
        "source_files": [],
    }


def main() -> None:
    """Log everything."""
    import neptune
    from neptune import management
    from neptune.types import File, GitRef
    from PIL import Image

    for name, content in MEMBERS.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
    commit()
    run = neptune.init_run(
        name="first ☃", tags=sorted(TAGS), git_ref=GitRef(repository_path=Path.cwd()), **_options(), **_quiet()
    )
    for path, value in SINGLES.items():
        run[path] = value
    for value, step, moment in POINTS:
        run["m/points"].append(value, step=step, timestamp=moment.timestamp())
    run["m/many"].extend([number / 7 for number in range(MANY)])
    for text, step in TEXTS:
        run["m/texts"].append(text, step=step, timestamp=NEW_YORK_TWICE[2].timestamp())
    for path, (content, extension) in FILES.items():
        run[path].upload(File.from_stream(io.BytesIO(content), extension=extension or None))
    run["f/set"].upload_files(sorted(MEMBERS))
    run["a/tracked"].track_files("tree")
    for step, colour in PICTURES.items():
        run["i/images"].append(
            File.as_image(Image.new("RGB", (3, 2), colour)), step=step, timestamp=NEW_YORK_TWICE[1].timestamp()
        )
    run.stop()
    second = neptune.init_run(name="second", custom_run_id="chosen", git_ref=False, **_options(), **_quiet())
    second["p/float"] = 2.5
    second["m/points"].append(1.0)
    second.stop()
    third = neptune.init_run(name="third", git_ref=False, **_options(), **_quiet())
    third["p/float"] = 3.5
    third.stop()
    management.trash_objects(PROJECT, TRASHED)

    model = neptune.init_model(key="FOREST", name="forest", **_options())
    model["signature"].upload(File.from_content("in -> out", extension="txt"))
    model.stop()
    for number, version_id in enumerate(VERSIONS, start=1):
        version = neptune.init_model_version(model=MODEL, **_options())
        version["validation/accuracy"] = number / 4
        version["model/binary"].upload(File.from_content(f"weights {number}", extension="bin"))
        version["training/run"] = FIRST
        version["m/points"].append(float(number), step=1, timestamp=NEW_YORK_TWICE[1].timestamp())
        if STAGES[version_id] != "none":
            version.change_stage(STAGES[version_id])
        version.stop()


if __name__ == "__main__":
    main()
