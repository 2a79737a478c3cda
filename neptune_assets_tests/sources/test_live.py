from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from neptune_assets.retries import retry_after
from neptune_assets.sources.live import RateLimiter, RetryBudget, backoff


def test_requests_are_spaced_out() -> None:
    pace = RateLimiter(200)
    begin = time.monotonic()
    for _ in range(21):
        pace.wait()
    assert time.monotonic() - begin >= 20 / 200


def test_no_rate_is_no_pause() -> None:
    pace = RateLimiter(None)
    for _ in range(1_000):
        pace.wait()


def test_a_held_pace_lets_nobody_through() -> None:
    pace = RateLimiter(None)
    begin = time.monotonic()
    pace.hold(0.2)
    pace.wait()
    assert time.monotonic() - begin >= 0.2


def test_tries_end_with_the_time() -> None:
    attempts = RetryBudget(0, RateLimiter(None))
    assert not attempts.again()
    assert attempts.count == 1
    assert not RetryBudget(0, to_the_end=True).again()


def test_the_servers_wish_goes_first() -> None:
    attempts = RetryBudget(60, RateLimiter(None))
    begin = time.monotonic()
    assert attempts.again(0.2)
    assert time.monotonic() - begin >= 0.2
    assert attempts.count == 2


def test_all_wait_when_the_server_wishes() -> None:
    pace = RateLimiter(None)
    begin = time.monotonic()
    assert RetryBudget(60, pace).pause(0.2) == 0.2
    pace.wait()
    assert time.monotonic() - begin >= 0.2


def test_a_wish_beyond_the_time_ends_the_tries_at_once() -> None:
    begin = time.monotonic()
    assert not RetryBudget(5, RateLimiter(None)).again(3_600)
    assert time.monotonic() - begin < 5


def test_to_the_end_there_is_one_last_try() -> None:
    attempts = RetryBudget(0.2, to_the_end=True)
    begin = time.monotonic()
    assert attempts.again(3_600)
    assert time.monotonic() - begin >= 0.2
    assert not attempts.again(3_600)
    assert attempts.count == 2


def test_pauses_grow_and_are_bounded() -> None:
    for failures, ceiling in ((1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0), (1_000, 30.0)):
        pauses = [backoff(failures) for _ in range(100)]
        assert ceiling / 2 <= min(pauses) < max(pauses) <= ceiling


@pytest.mark.parametrize("text", [None, "", "soon", "Tue, 99 Foo 2026 00:00:00 GMT"])
def test_a_wish_that_cannot_be_read_is_none(text: str | None) -> None:
    assert retry_after(text) is None


def test_wishes_are_seconds_or_dates() -> None:
    assert retry_after("12.5") == 12.5
    assert retry_after(" 3 ") == 3
    assert retry_after("-1") == 0
    assert retry_after(formatdate(time.time() - 100, usegmt=True)) == 0
    # One without a time zone (-0000) is in universal time too.
    for usegmt in (True, False):
        wished = retry_after(formatdate(time.time() + 3_600, usegmt=usegmt))
        assert wished is not None
        assert 3_500 < wished <= 3_600
