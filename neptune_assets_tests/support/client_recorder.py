"""Records runs with the real neptune-client in offline mode, each call in a process of its own.

What the scenarios log stands in this module, for tests to compare with. The client's asynchronous mode needs a server
before it writes its first record, so async folders are made by tests: they move an offline one as `neptune sync` does.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

STRING = "nul \x00 newline \n quote ' \" ☃ 🙂"
LONG_NAME = "n" * 1_000
WHEN = datetime(1999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)
POINTS = [
    # value, step, epoch seconds, epoch milliseconds
    (0.1, 0, 1_700_000_000.0005, 1_700_000_000_000),
    (-0.0, 0.5, 1_700_000_000.0015, 1_700_000_000_002),
    (5e-324, 1.000001, 1_700_000_000.1234, 1_700_000_000_123),
    (1.7976931348623157e308, 1_234_567.25, 1_700_000_001.0, 1_700_000_001_000),
    (42.0, 999_999_999_999, 1_700_000_002.9999, 1_700_000_003_000),
]
TEXTS = ["first", "", "two\nlines\x00", "🙂" * 100]
BYTES = b"\x00\x01 raw bytes \xff"
FILES = {"model.bin": b"weights", "tree/a.txt": b"a", "tree/deep/b.txt": b"bb", "tree/deep/c.csv": b"1,2"}
PICTURE_SIZE = (3, 2)
ARTIFACT_HASH = "0123456789abcdef" * 4

SINGLES: dict[str, Any] = {
    "p/float": 0.1,
    "p/minus_zero": -0.0,
    "p/tiny": 5e-324,
    "p/huge": -1.7976931348623157e308,
    "p/big": 2**31 - 1,
    "p/small": -(2**31),
    "p/yes": True,
    "p/no": False,
    "p/string": STRING,
    "p/empty": "",
    "p/longest": "x☃" * 8_192,
    "p/when": WHEN,
    "Case": 1,
    "case": 2,
    "a.b": 3,
    "a_b": 4,
    "ü ☃ 'quoted\"": "kept",
    LONG_NAME: "long",
    "deep/" * 250 + "leaf": "deep",
}
"""What :func:`hostile` assigns."""
REFUSED: dict[str, Any] = {"r/nan": float("nan"), "r/inf": float("-inf"), "r/beyond": 2**53 + 1, "r/long": 2**31}
"""What :func:`hostile` tries to assign: the client warns, and records none of it."""
TAGS = {"one", "☃ two", "x,y"}
TEXT_POINTS = [(0.25, 1_700_000_000_001, ""), (0.5, 1_700_000_000_002, "two\nlines\x00"), (7, 1_700_000_000_003, "🙂")]
PICTURES = {0.5: "red", 3: "blue"}


def record(scenario: str, folder: Path) -> None:
    """Run a scenario in its own process, with ``folder`` as its working directory."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NEPTUNE")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(folder)}
    command = [sys.executable, "-W", "ignore", "-m", __name__, scenario]
    done = subprocess.run(
        command, env=environment, cwd=folder, text=True, capture_output=True, timeout=240, check=False
    )
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr


def _start(**options: Any) -> Any:
    import neptune

    return neptune.init_run(
        mode="offline",
        capture_stdout=False,
        capture_stderr=False,
        capture_traceback=False,
        capture_hardware_metrics=False,
        source_files=[],
        git_ref=False,
        **options,
    )


def everything() -> None:
    """One run with every kind of operation that the client can still write, and one that copies from it."""
    from neptune.types import Artifact, File, FileSet, FloatSeries
    from PIL import Image

    for name, content in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)

    run = _start(name="first", description="", tags=["b", "a"])
    run["p/float"] = 1.5
    run["p/int"] = -(2**31)
    run["p/yes"] = True
    run["p/no"] = False
    run["p/string"] = STRING
    run["p/empty"] = ""
    run["p/when"] = WHEN
    run["p/twice"] = 1
    run["p/twice"] = 2
    run[LONG_NAME] = "long"
    run["Case"] = 1
    run["case"] = 2

    for value, step, seconds, _ in POINTS:
        run["m/points"].append(value, step=step, timestamp=seconds)
    run["m/bulk"].extend([float(n) for n in range(250)], steps=list(range(0, 500, 2)))
    run["m/numbered"].extend([7.0, 8.0, 9.0])
    run["m/from"].append(1.0, step=10)
    run["m/from"].append(2.0)
    run["m/texts"].extend(TEXTS)
    run["m/assigned"].append(99.0)
    run["m/assigned"].assign(FloatSeries([1.0, 2.0], min=0, max=5, unit="kg"))
    run["m/emptied"].append(1.0)
    run["m/emptied"].clear()
    run["m/again"].extend([1.0, 2.0])
    run["m/again"].clear()
    run["m/again"].append(3.0)
    run["m/texts_again"].append("gone")
    run["m/texts_again"].clear()
    run["m/texts_again"].append("kept")
    run["m/retyped"].append(1.0)
    del run["m/retyped"]
    run["m/retyped"] = "a string now"
    run["p/deleted"] = 1
    del run["p/deleted"]
    run["m/deleted"].append(1.0)
    del run["m/deleted"]

    run["s/changed"].add(["x", "y", "z"])
    run["s/changed"].remove("y")
    run["s/cleared"].add("x")
    run["s/cleared"].clear()

    run["f/path"].upload("model.bin")
    run["f/text"].upload(File.from_content("text ☃", extension="md"))
    run["f/bytes"].upload(File.from_stream(io.BytesIO(BYTES)))
    run["f/replaced"].upload(File.from_content("old"))
    run["f/replaced"].upload(File.from_content("new"))
    run["f/set"].upload_files("tree/**/*.txt")
    run["f/set"].upload_files(["model.bin"])
    run["f/shrunk"].upload_files(["tree", "model.bin"])
    run["f/shrunk"].delete_files(["tree/a.txt"])
    run["f/pruned"].upload_files(["tree", "model.bin"])
    run["f/pruned"].delete_files(["tree/deep"])
    run["f/reset"].upload_files("model.bin")
    run["f/reset"].assign(FileSet(["tree/deep/*.csv"]))
    run["a/tracked"].track_files("tree")
    run["a/tracked"].track_files(f"file://{Path('model.bin').absolute()}", destination="deep/er")
    run["a/hash"].assign(Artifact(ARTIFACT_HASH))

    for step, colour in ((3, "red"), (4, "blue")):
        run["i/images"].append(
            File.as_image(Image.new("RGB", PICTURE_SIZE, colour)), name=colour, description="d", step=step
        )
    run["i/cleared"].append(File.as_image(Image.new("RGB", PICTURE_SIZE, "red")))
    run["i/cleared"].clear()
    run["i/cleared"].append(File.as_image(Image.new("RGB", PICTURE_SIZE, "green")))

    run["c/float"] = run["p/float"]
    other = _start(name="second")
    other["c/string"] = run["p/string"]
    other["c/when"] = run["p/when"]
    other["c/int"] = run["p/twice"]
    other["c/again"] = other["c/string"]
    run["p/twice"] = 3
    other.stop()
    run.stop()


def hostile() -> None:
    """One run with every type of attribute that arrives whole, and values, names and steps that are easily damaged."""
    from neptune.types import File
    from PIL import Image

    for name, content in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)

    run = _start(name="hostile ☃", description="two\nlines", tags=sorted(TAGS))
    for path, value in (SINGLES | REFUSED).items():
        run[path] = value
    run["r/series"].append(float("nan"), step=1)
    run["s/changed"].add(["x", "y", "", "z\n"])
    run["s/changed"].remove("y")

    for value, step, seconds, _ in POINTS:
        for path in ("m/points", "M/points", "m.points", "m/" + LONG_NAME):
            run[path].append(value, step=step, timestamp=seconds)
    run["m/numbered"].extend([7.0, 8.0, 9.0])
    for step, milliseconds, text in TEXT_POINTS:
        run["m/texts"].append(text, step=step, timestamp=milliseconds / 1000)

    run["f/path"].upload("model.bin")
    run["f/text"].upload(File.from_content("text ☃", extension="md"))
    run["f/bytes"].upload(File.from_stream(io.BytesIO(BYTES)))
    run["f/empty"].upload(File.from_content(""))
    run["f/a.b"].upload(File.from_content("dot"))
    run["f/a_b"].upload(File.from_content("line"))
    run["F/a.b"].upload(File.from_content("other case"))
    run["f/set"].upload_files("tree/**/*.txt")
    run["f/set"].upload_files(["model.bin"])
    run["a/tracked"].track_files("tree")
    for step, colour in PICTURES.items():
        run["i/images"].append(File.as_image(Image.new("RGB", PICTURE_SIZE, colour)), step=step)
    run.stop()


def killed() -> None:
    """A run whose process dies while it logs."""
    run = _start(name="killed")
    for step in range(3_000):
        run["m/loss"].append(float(step), step=step)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    {"everything": everything, "hostile": hostile, "killed": killed}[sys.argv[1]]()
