"""The demo's recordings, sent by neptune-scale's own command ``neptune sync`` and read back: the lake is the same."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.offline.source import Offline
from neptune_assets_tests.sources.neptune3.conftest import Open
from neptune_assets_tests.sources.neptune3.test_recordings import SERVER_MADE, brought_home, without
from neptune_assets_tests.support.server import server_process

PROJECT = "demo/vision"
RECORDINGS = Path(__file__).resolve().parents[3] / "demo" / "recordings" / "scale"
# The command's name, `neptune`, belongs to neptune-client where both are installed.
SYNC = "import sys\nfrom neptune_scale.cli.commands import main\nif __name__ == '__main__':\n    sys.exit(main())\n"


def sync(folder: Path, token: str) -> None:
    """Send every recording, the oldest first; the command may only touch copies, for it deletes what it has sent."""
    command = folder / "neptune_command.py"
    command.write_text(SYNC)
    databases = []
    for database in folder.rglob("run_operations.sqlite3"):
        connection = sqlite3.connect(database)
        with connection:
            for number, source in connection.execute("SELECT id, source_path FROM file_upload_requests").fetchall():
                place = str(database.parent / Path(source).name)
                connection.execute("UPDATE file_upload_requests SET source_path = ? WHERE id = ?", (place, number))
        (began,) = connection.execute("SELECT min(timestamp) FROM run_operations").fetchone()
        connection.close()
        databases.append((began, database))
    for _, database in sorted(databases):
        done = subprocess.run(
            [sys.executable, str(command), "sync", str(database), "--api-token", token],
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr
        assert not database.exists(), f"not all of it was sent: {done.stderr}"


@pytest.mark.slow
def test_the_lake_is_the_same(tmp_path: Path, open_source: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "recordings"
    shutil.copytree(RECORDINGS, copy)
    filters = without([*SERVER_MADE, "sys/tags", "sys/creation_time"])
    expected = brought_home(Offline(OfflineSource(paths=[str(RECORDINGS)]), filters), tmp_path / "offline", PROJECT)
    with server_process(tmp_path / "store") as server:
        sync(copy, server.token)
        monkeypatch.setenv("NEPTUNE_API_TOKEN", server.token)
        found = brought_home(open_source(filters), tmp_path / "server", PROJECT)
    assert len(expected) >= 7
    assert {run_id: record.digest for run_id, record in found.items()} == {
        run_id: record.digest for run_id, record in expected.items()
    }
    assert all(record.complete for record in found.values())
