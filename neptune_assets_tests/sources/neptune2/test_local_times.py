from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from neptune_assets.sources.neptune2.local_times import moments_of


@pytest.fixture
def zone(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"], indirect=True)
def test_a_year_of_moments_comes_back(zone: None) -> None:
    begin = datetime(2025, 1, 1, 0, 0, 0, 123_000, UTC)
    moments = [begin + timedelta(minutes=20 * number) for number in range(365 * 72)]
    milliseconds = [int(moment.timestamp()) * 1000 + 123 for moment in moments]
    found, _ = moments_of(datetime.fromtimestamp(value / 1000) for value in milliseconds)
    # Where an hour comes twice, the order of a series tells, except for those before the first step back.
    wrong = [place for place, (one, other) in enumerate(zip(found, milliseconds, strict=True)) if one != other]
    assert wrong == []


@pytest.mark.parametrize("zone", ["America/New_York"], indirect=True)
def test_what_could_be_two_moments_is_counted(zone: None) -> None:
    twice = datetime(2025, 11, 2, 1, 30)
    found, unsure = moments_of([datetime(2025, 11, 2, 0, 30), twice, twice + timedelta(minutes=5)])
    assert unsure == 2
    assert found[1] == int(datetime(2025, 11, 2, 5, 30, tzinfo=UTC).timestamp()) * 1000
