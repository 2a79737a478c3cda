from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from neptune_assets.schema import AttributeType
from neptune_assets.server.neptune2.containers import GIT, git_attributes, git_properties, is_git
from neptune_assets.server.neptune2.tables import ALIVE_SECONDS, iso, moment_of, state_of


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_706_702_400_120, "2024-01-31T12:00:00.120Z"),
        (-62_135_596_800_000, "0001-01-01T00:00:00.000Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times(moment: int, text: str) -> None:
    assert iso(moment) == text
    assert moment_of(text) == moment
    # The client parses them with this very format.
    assert datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC) == datetime.fromisoformat(text)


def test_times_that_no_calendar_holds() -> None:
    assert iso(10**16) is None
    assert iso(None) is None
    assert moment_of("yesterday") is None


def test_runs_are_running_while_they_give_signs_of_life() -> None:
    now = time.time_ns() // 1_000_000
    assert state_of(now) == "running"
    assert state_of(now - ALIVE_SECONDS * 1000 - 1000) == "idle"
    assert state_of(None) == "idle"


def test_git_information_comes_back_as_it_went() -> None:
    info = {
        "commit": {
            "commitId": "abc",
            "message": "m\n",
            "authorName": "Ada",
            "authorEmail": "a@b.c",
            "commitDate": "2024-01-31T12:00:00.120Z",
        },
        "currentBranch": "main",
        "remotes": ["git@x:y.git"],
        "repositoryDirty": True,
    }
    made = list(git_attributes(info))
    assert {path for path, _, _ in made} == {path for path, _, _ in made if path.startswith(f"{GIT}/") and is_git(path)}
    assert (f"{GIT}/commit/commit_date", AttributeType.DATETIME, 1_706_702_400_120) in made
    assert git_properties({path: value for path, _, value in made}) == info
    assert git_properties({}) == {
        "commit": dict.fromkeys(("commitId", "message", "authorName", "authorEmail")),
        "currentBranch": None,
        "remotes": None,
        "repositoryDirty": None,
    }
    assert list(git_attributes({"commit": None, "remotes": "x", "commitDate": 3})) == []
