from __future__ import annotations

import time
from email.utils import formatdate

from neptune_assets.sources.neptune3.pacing import Attempts, Pace


def test_requests_are_spaced_out() -> None:
    pace = Pace(200)
    begin = time.monotonic()
    for _ in range(21):
        pace.wait()
    assert time.monotonic() - begin >= 20 / 200


def test_no_rate_is_no_pause() -> None:
    pace = Pace(None)
    for _ in range(1_000):
        pace.wait()


def test_a_held_pace_lets_nobody_through() -> None:
    pace = Pace(None)
    begin = time.monotonic()
    pace.hold(0.2)
    pace.wait()
    assert time.monotonic() - begin >= 0.2


def test_tries_end_with_the_time() -> None:
    attempts = Attempts(0, Pace(None))
    assert not attempts.again()
    assert attempts.count == 1


def test_the_servers_wish_goes_first() -> None:
    pace = Pace(None)
    attempts = Attempts(60, pace)
    begin = time.monotonic()
    assert attempts.again("0.2")
    assert time.monotonic() - begin >= 0.2
    assert attempts.count == 2


def test_a_wish_beyond_the_time_ends_the_tries_at_once() -> None:
    begin = time.monotonic()
    assert not Attempts(5, Pace(None)).again("3600")
    assert not Attempts(5, Pace(None)).again(formatdate(time.time() + 3600, usegmt=True))
    assert time.monotonic() - begin < 5


def test_a_wish_that_cannot_be_read_is_none() -> None:
    assert Attempts(60, Pace(None)).again("soon")
