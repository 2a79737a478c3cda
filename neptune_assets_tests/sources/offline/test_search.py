"""Recordings of both clients are found in the same places. The demo's recordings, made by the real clients."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from neptune_assets.errors import SourceError
from neptune_assets.settings import Filters
from neptune_assets.sources.offline import recordings
from neptune_assets.sources.offline.recordings import Folder, Refusal, walk
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.offline.source import Offline

DEMO = Path(__file__).resolve().parents[3] / "demo" / "recordings"
PROJECTS = ["demo/tabular", "demo/vision"]


def offline(*paths: Path) -> Offline:
    return Offline(OfflineSource(paths=[str(path) for path in paths], project="demo/tabular"), Filters())


@pytest.fixture(scope="module")
def holder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with a recording of each client in a place of its own, both equally deep."""
    folder = tmp_path_factory.mktemp("search")
    for name, place in (("scale", "a"), ("client", "b")):
        shutil.copytree(DEMO / name, folder / "x" / place / "y z" / "work")
    return folder


def test_both_clients_recordings_are_found_at_any_depth(holder: Path) -> None:
    source = offline(holder)
    assert source.projects() == PROJECTS
    for project in PROJECTS:
        assert run_ids(source, project) == expected(project)


def run_ids(source: Offline, project: str) -> list[str]:
    return [info.run_id for info in source.runs(project)]


def expected(project: str) -> list[str]:
    found = run_ids(offline(DEMO / ("scale" if project == "demo/vision" else "client") / ".neptune"), project)
    assert len(found) >= 5
    return found


@pytest.mark.parametrize("name", ["scale", "client"])
def test_both_are_found_behind_links_once_and_loops_end(holder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(holder / "x" / ("a" if name == "scale" else "b"))
    (tmp_path / "again").symlink_to(tmp_path / "link")
    (tmp_path / "loop").symlink_to(tmp_path)
    source = offline(tmp_path)
    (project,) = source.projects()
    assert run_ids(source, project) == expected(project)
    assert source.problems(project) == []


@pytest.mark.parametrize("name", ["scale", "client"])
def test_what_lies_too_deep_is_told_for_both(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MAX_DEPTH", 3)
    shutil.copytree(DEMO / name, tmp_path / "1" / "2")  # its .neptune is the third
    told = [item.message for item in walk(tmp_path) if isinstance(item, Refusal)]
    assert told
    assert all("more than 3 folders deep" in message for message in told)
    with pytest.raises(SourceError, match="more than 3 folders deep"):
        offline(tmp_path).projects()


def test_the_search_ends_after_so_many_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (tmp_path / str(number)).mkdir()
    monkeypatch.setattr(recordings, "MAX_FOLDERS", 3)
    found = list(walk(tmp_path))
    assert [type(item) for item in found] == [Folder, Folder, Folder, Refusal]
    assert "after 3 folders" in found[-1].message  # type: ignore[union-attr]
