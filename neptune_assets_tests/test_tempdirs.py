"""Real processes, real SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from neptune_assets.tempdirs import PREFIX, TempDirectory, sweep

HOLDER = """
import sys
from neptune_assets.tempdirs import TempDirectory
held = TempDirectory("held", sys.argv[1])
(held.path / "content").write_text("x")
(held.path / "deep").mkdir()
print(held.path, flush=True)
if sys.argv[2] == "stay":
    sys.stdin.read()
"""


def holder(place: Path, how: str) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that makes a directory, and wait until it has one."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place), how],
        cwd=Path(__file__).parents[1],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_a_directory_is_gone_when_it_is_closed_forgotten_or_its_process_ends(tmp_path: Path) -> None:
    place = tmp_path / "made" / "as needed"
    with TempDirectory("one", place) as path:
        assert path.parent == place
        assert path.name.startswith(f"{PREFIX}one-")
        (path / "file").write_text("x")
    assert names(place) == []
    forgotten = TempDirectory("two", place)
    assert len(names(place)) == 1
    del forgotten
    assert names(place) == []
    process, path = holder(place, "end")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert path.parent == place
    assert names(place) == []


def test_what_a_killed_process_left_goes_with_the_next_one(tmp_path: Path) -> None:
    killed, left = holder(tmp_path, "stay")
    living, held = holder(tmp_path, "stay")
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    (tmp_path / "somebody else's").mkdir()
    (tmp_path / f"{PREFIX}file").write_text("x")
    try:
        assert (left / "content").exists()
        with TempDirectory("next", tmp_path) as path:
            assert names(tmp_path) == sorted([held.name, path.name, "somebody else's", f"{PREFIX}file"])
        assert (held / "content").read_text() == "x"
        assert sweep(tmp_path) == []
    finally:
        living.communicate("", timeout=60)
    assert names(tmp_path) == sorted(["somebody else's", f"{PREFIX}file"])


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / f"{PREFIX}link").symlink_to(tmp_path / "kept")
    assert sweep(tmp_path / "place") == []
    assert (tmp_path / "kept").is_dir()


def test_a_forked_child_leaves_its_parents_directory(tmp_path: Path) -> None:
    directory = TempDirectory("parent", tmp_path)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            directory.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert directory.path.is_dir()
    assert sweep(tmp_path) == []
    directory.close()
    assert names(tmp_path) == []
