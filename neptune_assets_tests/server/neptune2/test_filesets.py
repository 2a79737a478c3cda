from __future__ import annotations

import io
import tarfile
import zipfile
from typing import BinaryIO

import pytest

from neptune_assets.server.neptune2.filesets import Listed, Member, listing, member_path, pack, selected, unpack
from neptune_assets.server.neptune2.responses import BadRequestError

MEMBERS = [
    Member("a.txt", "1", 3, 10),
    Member("d/b.txt", "2", 4, 20),
    Member("d/e/c.txt", "3", 5, 30),
    Member("d/empty", None, 0, 5),
    Member("dd.txt", "4", 6, 40),
]


def archive(*entries: tuple[tarfile.TarInfo, bytes]) -> BinaryIO:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w|gz") as tar:
        for info, content in entries:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return io.BytesIO(target.getvalue())


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mtime = kind, link, 1.5
    return info


def keep(stream: BinaryIO) -> tuple[str, int]:
    content = stream.read()
    return content.decode(), len(content)


def test_names() -> None:
    assert member_path("a/./b//c.txt") == "a/b/c.txt"
    assert member_path("..a/b..") == "..a/b.."
    for name in ("", ".", "/", "/etc/passwd", "../a", "a/../../b", "a\0b", "x" * 5000):
        with pytest.raises(BadRequestError):
            member_path(name)


def test_listings() -> None:
    assert listing(MEMBERS, "") == [
        Listed("d", True, 9, 30),
        Listed("a.txt", False, 3, 10),
        Listed("dd.txt", False, 6, 40),
    ]
    assert listing(MEMBERS, "/d/") == [
        Listed("e", True, 5, 30),
        Listed("empty", True, 0, 5),
        Listed("b.txt", False, 4, 20),
    ]
    assert listing(MEMBERS, "d/empty") == []
    assert listing([], "") == []
    assert listing(MEMBERS, "nothing") is None


def test_deleting_takes_directories_with_all_that_is_in_them() -> None:
    paths = [member.path for member in MEMBERS]
    assert selected(paths, ["d/"]) == ["d/b.txt", "d/e/c.txt", "d/empty"]
    assert selected(paths, ["a.txt", "d/e/c.txt", "none"]) == ["a.txt", "d/e/c.txt"]


def test_archives_are_unpacked() -> None:
    stream = archive(
        (entry("./", tarfile.DIRTYPE), b""),
        (entry("./d", tarfile.DIRTYPE), b""),
        (entry("d/a"), b"one"),
        (entry("b"), b""),
    )
    assert list(unpack(stream, keep, 100)) == [
        Member("d", None, 0, 1500),
        Member("d/a", "one", 3, 1500),
        Member("b", "", 0, 1500),
    ]


@pytest.mark.parametrize(
    "hostile",
    [
        entry("../out"),
        entry("/abs"),
        entry("link", tarfile.SYMTYPE, "/etc/passwd"),
        entry("hard", tarfile.LNKTYPE, "a"),
        entry("device", tarfile.CHRTYPE),
        entry("pipe", tarfile.FIFOTYPE),
    ],
)
def test_hostile_archives_are_refused(hostile: tarfile.TarInfo) -> None:
    with pytest.raises(BadRequestError):
        list(unpack(archive((hostile, b"")), keep, 100))


def test_archives_that_grow_too_large_are_refused() -> None:
    with pytest.raises(BadRequestError, match="more than"):
        list(unpack(archive((entry("zeros"), b"\0" * 10_000)), keep, 9_999))


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", archive((entry("a"), b"x" * 100_000)).read()[:60]],
    ids=["empty", "no archive", "cut short"],
)
def test_damaged_archives_are_refused(content: bytes) -> None:
    with pytest.raises(BadRequestError, match="cannot be read"):
        list(unpack(io.BytesIO(content), keep, 10**9))


def test_zips_have_the_root_and_every_directory_once() -> None:
    target = io.BytesIO()
    pack(target, MEMBERS, lambda key: io.BytesIO(key.encode()))
    with zipfile.ZipFile(target) as made:
        assert made.namelist() == ["/", "a.txt", "d/", "d/b.txt", "d/e/", "d/e/c.txt", "d/empty/", "dd.txt"]
        assert made.read("d/e/c.txt") == b"3"
        assert made.testzip() is None
