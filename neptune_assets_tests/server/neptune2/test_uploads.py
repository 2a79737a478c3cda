from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from neptune_assets.server.neptune2.responses import RANGE_MISMATCH, BadRequestError, NotFoundError
from neptune_assets.server.neptune2.transfers import Range, Uploads, parse_range

CONTENT = bytes(range(256)) * 10


def put(uploads: Uploads, identifier: str, start: int, end: int) -> None:
    uploads.put(identifier, Range(start, end - start, len(CONTENT)), CONTENT[start:end])


def test_ranges() -> None:
    assert parse_range("bytes=0-4/10") == Range(0, 5, 10)
    assert parse_range("bytes=9-9/10") == Range(9, 1, 10)


@pytest.mark.parametrize("text", [None, "", "bytes=0-4", "0-4/10", "bytes=5-4/10", "bytes=0-10/10", "bytes=-1-4/10"])
def test_what_is_no_range(text: str | None) -> None:
    with pytest.raises(BadRequestError):
        parse_range(text)


def test_parts_in_any_order_and_twice_make_one_file(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "parts")
    identifier = uploads.start(len(CONTENT), {"attribute": "a/b"})
    for start, end in ((1000, 2000), (0, 1000), (2000, len(CONTENT)), (1000, 2000)):
        put(uploads, identifier, start, end)
    # Another process goes on where this one was killed.
    again = Uploads(tmp_path / "parts")
    assert b"".join(again.blocks(identifier)) == CONTENT
    assert again.about(identifier) == {"attribute": "a/b", "total": len(CONTENT)}
    again.remove(identifier)
    with pytest.raises(NotFoundError):
        again.about(identifier)


@pytest.mark.parametrize("parts", [[], [(0, 1000)], [(0, 1000), (1500, 2560)], [(500, 2560)]])
def test_gaps_make_the_client_begin_anew(tmp_path: Path, parts: list[tuple[int, int]]) -> None:
    uploads = Uploads(tmp_path)
    identifier = uploads.start(len(CONTENT), {})
    for start, end in parts:
        put(uploads, identifier, start, end)
    with pytest.raises(BadRequestError, match=RANGE_MISMATCH):
        list(uploads.blocks(identifier))


def test_parts_must_be_as_long_as_they_say(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    identifier = uploads.start(10, {})
    with pytest.raises(BadRequestError, match=RANGE_MISMATCH):
        uploads.put(identifier, Range(0, 5, 10), b"1234")
    with pytest.raises(BadRequestError, match=RANGE_MISMATCH):
        uploads.put(identifier, Range(0, 5, 11), b"12345")


@pytest.mark.parametrize("identifier", ["", "..", "0" * 32, "../" + "0" * 29])
def test_unknown_uploads(tmp_path: Path, identifier: str) -> None:
    with pytest.raises(NotFoundError):
        Uploads(tmp_path).about(identifier)


def test_what_nobody_came_back_to_is_removed(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    old, young = uploads.start(1, {}), uploads.start(1, {})
    week_ago = time.time() - 8 * 24 * 3600
    for path in (tmp_path / old / "about.json", tmp_path / old):
        os.utime(path, (week_ago, week_ago))
    newest = uploads.start(1, {})
    assert {path.name for path in tmp_path.iterdir()} == {young, newest}
