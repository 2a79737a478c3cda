"""Recordings never decide what is read of the machine: files come from allowed directories, and only regular ones."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.errors import NeptuneAssetsError, UnsafePathError
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import Filters, LakeSettings
from neptune_assets.sources.files import AllowedRoots, FileSearch, Limits, open_regular
from neptune_assets.sources.offline.settings import OfflineSource
from neptune_assets.sources.offline.source import Offline
from neptune_assets_tests.support.client_reading import NAME, PROJECT, RUN_ID, Read, floats, op, read_one, write_log


def upload(path: str, file: str) -> dict[str, Any]:
    return op("UploadFile", path, ext="txt", file_path=file, tmp_file_name=None)


def file_set(path: str, *globs: str) -> dict[str, Any]:
    return op("UploadFileSet", path, file_globs=list(globs), reset="False")


def tracked(path: str, *locations: str) -> dict[str, Any]:
    return op("TrackFilesToArtifact", path, entries=[[location, None] for location in locations], project_id="p")


@pytest.fixture
def away(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of somebody else, beside the one in which the script ran."""
    path = tmp_path_factory.mktemp("away")
    (path / "secret.txt").write_text("secret")
    (path / "deep").mkdir()
    (path / "deep" / "other.txt").write_text("other")
    return path


def in_time(action: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What an action returns; fails if it blocks."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(action()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it blocks"
    return found[0]


def error_of(read: Read, path: str) -> str:
    """The message that opening the file of an attribute ends with."""
    with pytest.raises(NeptuneAssetsError) as caught:
        read.members(path)
    return str(caught.value)


@pytest.mark.parametrize(
    "operation",
    [
        file_set("f", "/etc/**"),
        file_set("f", "/etc/ssh*/*"),
        file_set("f", "/etc"),
        file_set("f", "/proc/**"),
        file_set("f", "/proc/self/environ", "/dev/zero", "/sys/kernel"),
        tracked("f", "/etc/ssh", "file:///etc/passwd"),
        tracked("f", "/proc/self/environ"),
    ],
)
@pytest.mark.parametrize("files_from", [[], ["/"]])
def test_nothing_below_the_machines_own_directories_is_ever_read(
    offline: Path, operation: dict[str, Any], files_from: list[str]
) -> None:
    write_log(offline / NAME, operation)
    read = in_time(lambda: read_one(offline, files_from=files_from))
    assert read.values("f") == []
    assert read.errors
    assert all("nothing is ever read" in message for message in read.errors)


@pytest.mark.parametrize("name", ["/proc/self/environ", "/proc/kmsg", "/etc/passwd", "/dev/zero", "/etc/../etc/shadow"])
def test_no_single_file_below_them_either(offline: Path, name: str) -> None:
    write_log(offline / NAME, upload("f", name))
    assert "nothing is ever read" in in_time(lambda: error_of(read_one(offline, files_from=["/"]), "f"))


def test_a_file_outside_is_named_with_the_setting_that_allows_it(offline: Path, away: Path) -> None:
    write_log(
        offline / NAME,
        upload("one", f"{away}/secret.txt"),
        file_set("set", f"{away}/**/*.txt"),
        file_set("folder", str(away)),
        tracked("art", str(away)),
    )
    read = read_one(offline)
    for message in (*read.errors, error_of(read, "one")):
        assert f"add '{away}" in message
        assert "source.offline.files_from" in message
    assert len(read.errors) == 3
    assert read.values("set") == read.values("folder") == read.values("art") == []
    allowed = read_one(offline, files_from=[str(away)])
    assert allowed.errors == []
    assert allowed.members("one") == {"one.txt": b"secret"}
    assert allowed.members("set") == {"secret.txt": b"secret", "deep/other.txt": b"other"}
    assert allowed.members("folder") == allowed.members("set")


def test_links_do_not_lead_out_and_are_followed_inside(offline: Path, tmp_path: Path, away: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "own.txt").write_text("own")
    (tmp_path / "data" / "file.txt").symlink_to(away / "secret.txt")
    (tmp_path / "data" / "folder").symlink_to(away)
    (tmp_path / "data" / "etc").symlink_to("/etc")
    (tmp_path / "data" / "circle").symlink_to(tmp_path / "data")
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    write_log(
        offline / NAME,
        file_set("stars", f"{tmp_path}/data/*/*"),
        file_set("all", f"{tmp_path}/data/**"),
        file_set("inside", f"{tmp_path}/linked/own*"),
        upload("one", f"{tmp_path}/data/file.txt"),
    )
    read = in_time(lambda: read_one(offline))
    assert read.members("inside") == {"linked/own.txt": b"own"}
    outside = [message for message in read.errors if str(away) in message]
    assert len(outside) == 3
    assert any("below /etc" in message for message in read.errors)
    assert f"leads to '{away}/secret.txt'" in error_of(read, "one")
    assert "leads to" in error_of(read, "all")
    names = [file.relative_path for file in read.source.files(PROJECT, read.run_id, read.values("all")[0])]
    assert "data/own.txt" in names
    assert len(names) == 2


def test_a_link_put_in_after_the_look_does_not_lead_out(tmp_path: Path, away: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "secret.txt").write_text("own")
    roots = AllowedRoots([tmp_path], "setting")
    real = roots.real(tmp_path / "data" / "secret.txt")
    (tmp_path / "data").rename(tmp_path / "old")
    (tmp_path / "data").symlink_to(away)
    with pytest.raises(UnsafePathError):
        roots.open(real)
    (tmp_path / "data").unlink()
    (tmp_path / "old").rename(tmp_path / "data")
    with roots.open(real) as file:
        assert file.read() == b"own"


def special(folder: Path) -> list[Path]:
    """A pipe and a socket in a folder."""
    pipe = folder / "pipe.txt"
    os.mkfifo(pipe)
    server = socket.socket(socket.AF_UNIX)
    where = Path.cwd()
    os.chdir(folder)  # names of sockets are short
    try:
        server.bind("socket.txt")
    finally:
        os.chdir(where)
    server.close()
    return [pipe, folder / "socket.txt"]


def test_pipes_and_sockets_are_named_and_never_opened(offline: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "good.txt").write_text("good")
    pipe, sock = special(tmp_path / "data")
    write_log(
        offline / NAME,
        upload("pipe", str(pipe)),
        upload("socket", str(sock)),
        file_set("folder", f"{tmp_path}/data"),
        file_set("pattern", f"{tmp_path}/data/*.txt"),
        tracked("art", f"{tmp_path}/data"),
        floats("m", 1.0),
    )
    read = in_time(lambda: read_one(offline))
    assert "named pipe" in in_time(lambda: error_of(read, "pipe"))
    assert "socket" in in_time(lambda: error_of(read, "socket"))
    assert read.members("folder") == read.members("pattern") == {"data/good.txt": b"good"}
    for word in ("a named pipe", "a socket"):
        assert sum(word in message for message in read.errors) == 3
    assert len(read.points("m")) == 1


@pytest.mark.parametrize("name", ["data-1.log", "metadata.json", "last_put_version", "data-2.log"])
def test_a_pipe_in_the_place_of_a_recordings_file_does_not_block(offline: Path, name: str) -> None:
    folder = write_log(offline / NAME, floats("m", 1.0))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    write_log(offline / NAME.replace("0123", "9999"), floats("m", 2.0))
    source = Offline(OfflineSource(paths=[str(offline)], project=PROJECT), Filters())
    runs = in_time(lambda: source.runs(PROJECT))
    ends = [chunk for run in runs for chunk in in_time(lambda run=run: list(source.read(PROJECT, [run.run_id])))]
    told = [*source.problems(PROJECT), *(issue for end in ends for issue in getattr(end, "errors", ()))]
    if name == "metadata.json":  # nothing of it is needed here
        assert len(runs) == 2
        assert told == []
    else:
        assert any(name in issue.message and "named pipe" in issue.message for issue in told)


def test_a_pipe_called_like_a_database_is_named(offline: Path) -> None:
    write_log(offline / NAME, floats("m", 1.0))
    os.mkfifo(offline / "run_operations.sqlite3")
    source = Offline(OfflineSource(paths=[str(offline)], project=PROJECT), Filters())
    in_time(lambda: source.runs(PROJECT))
    assert [issue.message for issue in source.problems(PROJECT) if "run_operations.sqlite3" in issue.message]


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        ({"files": 3}, "more than 3 files"),
        ({"gigabytes": 1e-8}, "more than the limit of 10"),
        ({"seconds": 1e-9}, "longer"),
    ],
)
def test_limits_are_reported_with_their_setting(
    offline: Path, tmp_path: Path, limits: dict[str, Any], what: str
) -> None:
    (tmp_path / "data").mkdir()
    for number in range(5):
        (tmp_path / "data" / f"{number}.txt").write_text("x" * 20)
    write_log(offline / NAME, file_set("set", f"{tmp_path}/data"), upload("one", f"{tmp_path}/data/1.txt"))
    read = read_one(offline, file_limits=limits)
    (name,) = limits
    message = error_of(read, "one") if name == "gigabytes" else " ".join(read.errors)
    assert what in message
    assert f"source.offline.file_limits.{name}" in message


def test_a_search_without_end_is_ended(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / "a" / str(number)).mkdir(parents=True)
    search = FileSearch(AllowedRoots([tmp_path], "s"), Limits(files=10), "limits")
    assert len(list(search.matches(str(tmp_path), ["**", "*", "**"]))) == 10
    assert len(search.problems) == 1


def test_the_lake_takes_no_file_of_others_and_grants_no_more_rights(tmp_path: Path, away: Path) -> None:
    offline = tmp_path / "job" / ".neptune" / "offline"
    private = tmp_path / "job" / "key.txt"
    private.parent.mkdir()
    private.write_text("mine")
    private.chmod(0o600)
    write_log(offline / NAME, upload("key", str(private)), upload("f", f"{away}/secret.txt"), file_set("e", "/etc/**"))
    settings = LakeSettings(root=str(tmp_path / "lake"))
    source = Offline(OfflineSource(paths=[str(tmp_path / "job")], project=PROJECT), Filters())
    report = LakeWriter(settings, source).write_project(PROJECT)
    assert report.partial == [RUN_ID]
    run = Lake(settings).project(PROJECT).run(RUN_ID)
    assert any("files_from" in issue.message for issue in run.record.errors)
    copies = [path for path in (tmp_path / "lake" / "files").rglob("*") if path.is_file()]
    assert [path.read_text() for path in copies] == ["mine"]
    assert stat.S_IMODE(copies[0].stat().st_mode) == 0o600


def test_open_regular_follows_links_and_refuses_what_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 10)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with open_regular(tmp_path / "link") as file:
        assert len(file.read()) == 10
    pipe, sock = special(tmp_path)
    for path, word in ((pipe, "pipe"), (sock, "socket"), (tmp_path, "directory"), (Path("/dev/zero"), "device")):
        with pytest.raises(OSError, match=word):
            open_regular(path)
    with pytest.raises(OSError, match="more than the limit of 9"):
        open_regular(tmp_path / "link", 9)
    with pytest.raises(OSError, match="null"):
        open_regular("a\0b")
    with pytest.raises(FileNotFoundError, match="gone"):
        open_regular(tmp_path / "gone")
