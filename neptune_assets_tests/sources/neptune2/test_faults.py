"""Faults on the wire between the real client and a server: what passes heals, what stays is told and stops nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from neptune_assets.errors import FileGoneError, SettingsError, SourceError, SourceUnavailableError
from neptune_assets.sources.live import ApiToken
from neptune_assets.sources.neptune2.connection import Connection
from neptune_assets.sources.neptune2.source import Neptune2
from neptune_assets.testing.sources import key, read
from neptune_assets_tests.sources.neptune2.stub import PROJECT, Container, Stub, attribute, token_for
from neptune_assets_tests.support.faulty_proxy import Fault, FaultyProxy

Make = Callable[..., Neptune2]
EXPIRED = b'{"errorType": "AUTHORIZATION_TOKEN_EXPIRED"}'
PLACES = ["projects/get", "entries/search", "v1/attributes?", "series/float", "series/string"]


@pytest.fixture
def proxy(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with FaultyProxy(stub.url).running() as running:
        monkeypatch.setenv("NEPTUNE_API_TOKEN", token_for(running.url))
        yield running


@pytest.fixture
def expected(source: Make, run: Container, proxy: FaultyProxy) -> list[str]:
    """All rows of the first run, read without faults; the session is open afterwards."""
    return everything(source())


def everything(opened: Neptune2) -> list[str]:
    assert {info.run_id for info in opened.runs(PROJECT)} >= {"P-1", "P-2"}
    result = read(opened, PROJECT, ["P-1", "P-2"])
    assert not any(end.errors for end in result.ends.values()), result.ends
    return sorted(key(row) for row in result.rows["P-1"])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "fault",
    [
        Fault("", status=429, headers={"Retry-After": "0.3"}),
        Fault("", status=500, times=2),
        Fault("", status=503, times=2),
        Fault("", status=401, body=EXPIRED),
        Fault("", kind="drop", times=2),
        Fault("", kind="lose"),
        Fault("", kind="garble"),
        Fault("", kind="hang", seconds=1.5),
    ],
    ids=["429", "500", "503", "expired", "drop", "lose", "garble", "hang"],
)
def test_what_passes_heals(source: Make, proxy: FaultyProxy, expected: list[str], place: str, fault: Fault) -> None:
    planned = Fault(**{**vars(fault), "path": place})
    proxy.faults.append(planned)
    assert everything(source(request_seconds=1)) == expected
    assert planned.times == 0, "the fault was never met"


def test_retry_after_is_waited_for_whole(source: Make, proxy: FaultyProxy, expected: list[str]) -> None:
    proxy.faults.append(Fault("series/float", status=429, headers={"Retry-After": "2"}))
    started = time.monotonic()
    assert everything(source()) == expected
    assert time.monotonic() - started >= 2


def test_an_expired_token_is_fetched_anew_and_not_hammered(
    source: Make, proxy: FaultyProxy, expected: list[str]
) -> None:
    proxy.faults.append(Fault("v1/attributes?", status=401, body=EXPIRED, times=3))
    before, tokens = proxy.seen.count("v1/attributes?"), proxy.seen.count("openid-connect/token")
    assert everything(source()) == expected
    assert proxy.seen.count("v1/attributes?") - before == 5
    assert proxy.seen.count("openid-connect/token") > tokens


def test_a_token_that_is_always_expired_is_given_up_without_a_busy_loop(
    source: Make, proxy: FaultyProxy, expected: list[str]
) -> None:
    proxy.faults.append(Fault("v1/attributes?", status=401, body=EXPIRED, times=10_000))
    before = proxy.seen.count("v1/attributes?")
    result = read(source(retry_seconds=1), PROJECT, ["P-1"])
    assert "expired" in result.ends["P-1"].errors[0].message
    assert proxy.seen.count("v1/attributes?") - before < 10


@pytest.mark.parametrize("status", [500, 503, 403, 404])
def test_a_series_that_always_fails_leaves_its_run_partial_and_the_others_whole(
    stub: Stub, source: Make, proxy: FaultyProxy, expected: list[str], status: int
) -> None:
    other = next(item for item in stub.containers if item.run_id == "P-2")
    other.floats("fine", (0, 0, 1.0))
    proxy.faults.append(Fault("attribute=loss", status=status, times=10_000))
    result = read(source(retry_seconds=0.5), PROJECT, ["P-1", "P-2"])
    (error,) = result.ends["P-1"].errors
    assert error.attribute_path == "loss"
    assert str(status) in error.message
    promised = result.ends["P-1"].promised
    assert promised is not None
    paths = {row["attribute_path"] for row in result.rows["P-1"]}
    assert "loss" not in paths
    assert {"log", "p/rate", "model/weights"} <= paths
    assert not result.ends["P-2"].errors
    assert ("fine", "float_series") in result.paths("P-2")


def test_a_page_in_the_middle_that_always_fails_keeps_what_came(stub: Stub, source: Make, proxy: FaultyProxy) -> None:
    run = Container("P-1")
    run.floats("long", *((step, step, float(step)) for step in range(1_000)))
    stub.containers.append(run)
    proxy.faults.append(Fault("offset=500", status=500, times=10_000))
    result = read(source(points_per_page=100, retry_seconds=0.3), PROJECT, ["P-1"])
    assert result.ends["P-1"].errors[0].attribute_path == "long"
    values = sorted(row["float_value"] for row in result.rows["P-1"] if row["attribute_path"] == "long")
    assert values[:500] == [float(step) for step in range(500)]


def test_a_run_that_always_fails_does_not_stop_the_others(
    source: Make, proxy: FaultyProxy, expected: list[str]
) -> None:
    proxy.faults.append(Fault("key%20of%20P-2", status=500, times=10_000))
    proxy.faults.append(Fault("key+of+P-2", status=500, times=10_000))
    proxy.faults.append(Fault("entries/search", status=500, times=10_000, holding=b"P-2"))
    result = read(source(retry_seconds=0.5), PROJECT, ["P-2", "P-1"])
    assert "500" in result.ends["P-2"].errors[0].message
    assert sorted(key(row) for row in result.rows["P-1"]) == expected


def test_a_table_is_asked_again_when_a_page_in_its_middle_fails(stub: Stub, source: Make, proxy: FaultyProxy) -> None:
    stub.containers += [Container(f"P-{number}") for number in range(100)]
    for kind in ("status", "drop"):
        proxy.faults.append(Fault("entries/search", kind=kind, after=3))  # type: ignore[arg-type]
    assert len(source(runs_per_page=10).runs(PROJECT)) == 100
    assert not any(fault.times for fault in proxy.faults)


def test_a_server_that_goes_away_ends_the_reading_for_now(
    source: Make, proxy: FaultyProxy, expected: list[str]
) -> None:
    opened = source(retry_seconds=0.5)
    opened.runs(PROJECT)
    proxy.faults.append(Fault("", kind="drop", times=10_000))
    with pytest.raises(SourceUnavailableError, match="does not answer"):
        list(opened.read(PROJECT, ["P-1", "P-2"]))


def test_a_token_that_is_not_accepted_any_more_ends_the_reading_at_once(
    source: Make, proxy: FaultyProxy, expected: list[str]
) -> None:
    opened = source(retry_seconds=60)
    opened.runs(PROJECT)
    proxy.faults.append(Fault("v1/attributes?", status=401, times=10_000))
    with pytest.raises(SourceError, match="does not accept the API token") as caught:
        list(opened.read(PROJECT, ["P-1", "P-2"]))
    assert not caught.value.transient


@pytest.mark.parametrize("place", ["clients/config", "oauth-token"])
def test_a_bad_token_fails_at_once(source: Make, proxy: FaultyProxy, place: str) -> None:
    proxy.faults.append(Fault(place, status=401, times=10_000))
    with pytest.raises(SourceError, match="does not accept the API token"):
        source(retry_seconds=60).projects()
    assert proxy.seen.count(place) == 1


def test_a_file_that_comes_short_is_fetched_again(stub: Stub, source: Make, run: Container) -> None:
    opened = source()
    result = read(opened, PROJECT, ["P-1"])
    reference = next(
        row["file_value"]["path"] for row in result.rows["P-1"] if row["attribute_path"] == "model/weights"
    )
    stub.short = 2
    assert opened.files(PROJECT, "P-1", reference)[0].open().read() == b"w" * 100
    assert stub.short == 0


def test_a_file_that_always_comes_short_is_gone(stub: Stub, source: Make, run: Container) -> None:
    opened = source(retry_seconds=0.5)
    result = read(opened, PROJECT, ["P-1"])
    reference = next(
        row["file_value"]["path"] for row in result.rows["P-1"] if row["attribute_path"] == "model/weights"
    )
    run.files["model/weights"] = b"w" * 60
    with pytest.raises(FileGoneError, match="60 of 100 bytes"):
        opened.files(PROJECT, "P-1", reference)[0].open()


def test_no_more_requests_than_allowed_at_a_time_and_in_a_second(stub: Stub, source: Make, proxy: FaultyProxy) -> None:
    for number in range(10):
        run = Container(f"P-{number}", attributes=[attribute("a", "int", value=1)])
        run.floats("x", (0, 0, 1.0))
        stub.containers.append(run)
    opened = source(concurrency=2, requests_per_second=20)
    started = time.monotonic()
    read(opened, PROJECT, [f"P-{number}" for number in range(10)])
    assert proxy.seen.at_once <= 2
    assert time.monotonic() - started >= (opened.requests - 1) / 20


def test_another_version_of_the_client_is_named_with_what_it_lacks() -> None:
    with pytest.raises(SettingsError, match=r"not version 1\.14\.0\.post2.*backend_client"):
        Connection(object(), ApiToken("", "http://localhost", ""), 1)
