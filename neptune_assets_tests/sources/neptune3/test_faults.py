"""What goes wrong on the wire: a proxy that misbehaves stands in front of the real server."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator

import pytest

from neptune_assets.errors import (
    FileGoneError,
    SettingsError,
    SourceError,
    SourceUnavailableError,
    UnknownProjectError,
)
from neptune_assets.settings import Filters
from neptune_assets.sources.neptune3.source import Neptune3
from neptune_assets_tests.conformance.sources import Read, key, read
from neptune_assets_tests.sources.neptune3.conftest import Open
from neptune_assets_tests.support.faulty_proxy import Fault, FaultyProxy
from neptune_assets_tests.support.server import Served
from neptune_assets_tests.support.wire_logging import WireLogger

PROJECT = "faults/project"
RUNS = ["a", "b", "c"]
CONTENT = bytes(range(256)) * 20_000
FLOATS, OBJECTS = "/series/float", "/attributes/series?"
SEARCH, VALUES, DEFINITIONS = "/entries/search", "/leaderboard/attributes/query", "/definitions/query"
TOKEN, SIGN, BYTES = "/oauth-token", "/signedUrl", "/storage/v1/"


@pytest.fixture(scope="module")
def logged(served: Served) -> str:
    logger = WireLogger(served, PROJECT)
    for run_id in RUNS:
        logger.create(run_id)
        logger.configs(run_id, {"lr": 0.1})
        logger.metrics(run_id, {f"m/{name}": [(step, step + 0.5) for step in range(50)] for name in ("x", "y", "bad")})
        logger.strings(run_id, {"log": [(1.0, run_id)]})
    logger.file("a", "file", "a/large.bin", CONTENT, "application/octet-stream")
    return PROJECT


@pytest.fixture
def proxy(whole: Read, served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with FaultyProxy(served.url).running() as proxy:
        monkeypatch.setenv("NEPTUNE_API_TOKEN", token_for(served, proxy))
        yield proxy


@pytest.fixture
def whole(open_source: Open, logged: str) -> Read:
    """What a reading without faults gives."""
    return read(open_source(), PROJECT, RUNS)


def token_for(served: Served, proxy: FaultyProxy) -> str:
    fields = json.loads(base64.b64decode(served.token))
    fields["api_url"] = fields["api_address"] = proxy.url
    return base64.b64encode(json.dumps(fields).encode()).decode()


def open_behind(proxy: FaultyProxy, **settings: object) -> Neptune3:
    from neptune_assets.sources.neptune3.settings import Neptune3Source

    chosen = {"retry_seconds": 30, "concurrency": 2, **settings}
    return Neptune3(Neptune3Source.model_validate(chosen), Filters())


def same(found: Read, expected: Read) -> None:
    for run_id in RUNS:
        assert not found.ends[run_id].errors
        assert sorted(map(key, found.rows[run_id])) == sorted(map(key, expected.rows[run_id]))


PASSING = [
    Fault("", status=429),
    Fault("", status=429, headers={"Retry-After": "1"}),
    Fault("", status=500),
    Fault("", status=503, headers={"Retry-After": "0.1"}),
    Fault("", status=408),
    Fault("", "drop"),
    Fault("", "lose"),
    Fault("", "cut"),
]


@pytest.mark.parametrize(
    "fault", PASSING, ids=lambda fault: f"{fault.kind}{fault.status if fault.kind == 'status' else ''}"
)
def test_what_passes_heals_wherever_it_strikes(fault: Fault, proxy: FaultyProxy, whole: Read) -> None:
    for path in (TOKEN, SEARCH, VALUES, DEFINITIONS, FLOATS, OBJECTS):
        proxy.faults.append(Fault(path, fault.kind, 1, fault.status, fault.headers))
    same(read(open_behind(proxy), PROJECT, RUNS), whole)
    assert all(fault.times == 0 for fault in proxy.faults)


@pytest.mark.parametrize("path", [SEARCH, VALUES, FLOATS, OBJECTS])
def test_an_answer_that_does_not_come_is_asked_for_again(path: str, proxy: FaultyProxy, whole: Read) -> None:
    proxy.faults.append(Fault(path, "hang", seconds=30))
    same(read(open_behind(proxy, request_seconds=3), PROJECT, RUNS), whole)


def test_retry_after_is_kept_to(proxy: FaultyProxy) -> None:
    proxy.faults.append(Fault(SEARCH, status=429, headers={"Retry-After": "2"}))
    begin = time.monotonic()
    open_behind(proxy).runs(PROJECT)
    assert time.monotonic() - begin >= 2


def test_an_access_token_that_is_taken_no_more_is_fetched_anew(proxy: FaultyProxy, whole: Read) -> None:
    for path in (SEARCH, VALUES, FLOATS, OBJECTS):
        proxy.faults.append(Fault(path, status=401))
    same(read(open_behind(proxy), PROJECT, RUNS), whole)
    assert proxy.seen.count(TOKEN) > 1


def test_a_token_that_is_refused_again_ends_it(proxy: FaultyProxy) -> None:
    proxy.faults.append(Fault(SEARCH, times=-1, status=401))
    with pytest.raises(SourceError, match="does not accept the API token"):
        open_behind(proxy).runs(PROJECT)
    assert proxy.seen.count(SEARCH) == 2


def test_one_attribute_that_always_fails_leaves_the_others(proxy: FaultyProxy, whole: Read) -> None:
    proxy.faults.append(Fault(FLOATS, times=-1, status=500, holding=b'"m/bad"'))
    found = read(open_behind(proxy, retry_seconds=5), PROJECT, RUNS)
    for run_id in RUNS:
        (error,) = found.ends[run_id].errors
        assert (error.attribute_path, error.attribute_type) == ("m/bad", "float_series")
        assert "500" in error.message
        expected = [row for row in whole.rows[run_id] if row["attribute_path"] != "m/bad"]
        assert sorted(map(key, found.rows[run_id])) == sorted(map(key, expected))


def test_one_run_that_always_fails_leaves_the_others(proxy: FaultyProxy, whole: Read) -> None:
    source = open_behind(proxy, retry_seconds=5)
    source.runs(PROJECT)
    sys_id = next(row["string_value"] for row in whole.rows["b"] if row["attribute_path"] == "sys/id")
    for path in (VALUES, FLOATS, OBJECTS):
        proxy.faults.append(Fault(path, times=-1, status=422, holding=f'/{sys_id}"'.encode()))
    found = read(source, PROJECT, RUNS)
    assert "attributes could not be read" in found.ends["b"].errors[0].message
    assert found.ends["b"].promised is None
    for run_id in ("a", "c"):
        assert not found.ends[run_id].errors
        assert sorted(map(key, found.rows[run_id])) == sorted(map(key, whole.rows[run_id]))


def test_a_server_that_goes_away_ends_the_reading_and_is_worth_another_try(proxy: FaultyProxy) -> None:
    source = open_behind(proxy, retry_seconds=3)
    source.runs(PROJECT)
    proxy.faults.append(Fault("", "drop", times=-1))
    with pytest.raises(SourceUnavailableError) as caught:
        list(source.read(PROJECT, RUNS))
    assert caught.value.transient
    proxy.faults.clear()
    assert not read(source, PROJECT, RUNS).ends["a"].errors


@pytest.mark.parametrize("kind", ["cut", "drop", "status"])
def test_a_file_goes_on_where_it_broke_off(kind: str, proxy: FaultyProxy) -> None:
    source = open_behind(proxy)
    reference = file_reference(source)
    proxy.faults.extend(Fault(path, kind) for path in (SIGN, BYTES))  # type: ignore[arg-type]
    (member,) = source.files(PROJECT, "a", reference)
    assert member.relative_path == "large.bin"
    with member.open() as stream:
        assert stream.read() == CONTENT
    assert all(fault.times == 0 for fault in proxy.faults)


def test_a_file_that_ends_early_is_told(proxy: FaultyProxy) -> None:
    source = open_behind(proxy, retry_seconds=10)
    reference = file_reference(source)
    proxy.faults.append(Fault(BYTES, "short", times=-1))
    (member,) = source.files(PROJECT, "a", reference)
    with pytest.raises(FileGoneError, match="ends after"), member.open() as stream:
        stream.read()


def test_a_file_that_goes_on_after_its_size_is_given_up_at_once(proxy: FaultyProxy) -> None:
    source = open_behind(proxy)
    reference = file_reference(source)
    proxy.faults.append(Fault(BYTES, "long", times=-1))
    (member,) = source.files(PROJECT, "a", reference)
    with pytest.raises(FileGoneError, match="goes on after"), member.open() as stream:
        stream.read()


def test_a_file_that_is_not_there_is_told_at_once(proxy: FaultyProxy) -> None:
    source = open_behind(proxy)
    reference = file_reference(source).replace("a/large.bin", "a/never.bin")
    (member,) = source.files(PROJECT, "a", reference)
    with pytest.raises(FileGoneError, match=r"a/never\.bin.*404"):
        member.open()


def file_reference(source: Neptune3) -> str:
    for row in read(source, PROJECT, ["a"]).rows["a"]:
        if row["file_value"] is not None:
            return str(row["file_value"]["path"])
    raise AssertionError("there is no file")


def test_a_bad_token_fails_at_once_with_one_clear_error(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = json.loads(base64.b64decode(os.environ["NEPTUNE_API_TOKEN"]))
    fields["api_key"] = "0" * 64
    monkeypatch.setenv("OTHER_TOKEN", base64.b64encode(json.dumps(fields).encode()).decode())
    source = open_behind(proxy, api_token_env="OTHER_TOKEN")
    with pytest.raises(SourceError, match="OTHER_TOKEN") as caught:
        source.runs(PROJECT)
    assert "0000" not in str(caught.value)
    assert len(proxy.seen.requests) <= 2


def test_an_unknown_project_fails_at_once(proxy: FaultyProxy) -> None:
    with pytest.raises(UnknownProjectError, match=f"no/such.*{PROJECT}"):
        open_behind(proxy).runs("no/such")
    assert proxy.seen.count(SEARCH) == 1


@pytest.mark.parametrize(
    "value", ["", "not a token", base64.b64encode(b"{}").decode(), base64.b64encode(b"[1]").decode()]
)
def test_what_is_no_token_is_told_without_repeating_it(
    value: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEPTUNE_API_TOKEN", value)
    with pytest.raises(SettingsError, match="NEPTUNE_API_TOKEN") as caught:
        open_behind(proxy).projects()
    assert not value or value not in str(caught.value)


@pytest.mark.parametrize("value", ["true", "TRUE", "1"])
def test_where_neptune_is_switched_off_no_call_is_made(
    value: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISABLE_NEPTUNE_LOGGING", value)
    source = open_behind(proxy, projects=[PROJECT])
    with pytest.raises(SettingsError, match="DISABLE_NEPTUNE_LOGGING"):
        source.projects()
    with pytest.raises(SettingsError, match="DISABLE_NEPTUNE_LOGGING"):
        source.runs(PROJECT)
    with pytest.raises(SettingsError, match="DISABLE_NEPTUNE_LOGGING"):
        list(source.read(PROJECT, RUNS))
    assert not proxy.seen.requests


def test_no_more_requests_at_once_than_allowed(proxy: FaultyProxy) -> None:
    source = open_behind(proxy, concurrency=2, series_per_page=1)
    read(source, PROJECT, RUNS)
    assert proxy.seen.at_once <= 2


def test_requests_are_spaced_out(proxy: FaultyProxy) -> None:
    source = open_behind(proxy, requests_per_second=10, series_per_page=1)
    begin = time.monotonic()
    read(source, PROJECT, RUNS)
    asked = sum(1 for _, path, _, _ in proxy.seen.requests if "/leaderboard/" in path)
    assert asked >= 9
    assert time.monotonic() - begin >= (asked - 1) / 10


@pytest.mark.parametrize("status", [500, 422])
def test_one_attribute_whose_page_always_fails_leaves_the_others_of_its_run(
    status: int, proxy: FaultyProxy, whole: Read
) -> None:
    source = open_behind(proxy, retry_seconds=60)
    source.runs(PROJECT)
    sys_id = next(row["string_value"] for row in whole.rows["b"] if row["attribute_path"] == "sys/id")
    # What is asked for without names fails, and so does every request that names the one.
    for holding in (b'"attributeNameFilter":{},"nextPage"', b'"lr"'):
        proxy.faults.append(Fault(VALUES, times=-1, status=status, holding=holding, also=f'/{sys_id}"'.encode()))
    found = read(source, PROJECT, RUNS)
    (error,) = found.ends["b"].errors
    assert (error.attribute_path, error.attribute_type) == ("lr", "float")
    assert str(status) in error.message
    assert found.ends["b"].promised == whole.ends["b"].promised
    for run_id in RUNS:
        expected = [row for row in whole.rows[run_id] if run_id != "b" or row["attribute_path"] != "lr"]
        assert sorted(map(key, found.rows[run_id])) == sorted(map(key, expected))
    assert not found.ends["a"].errors
    assert not found.ends["c"].errors


def test_the_points_of_a_series_come_although_the_server_cannot_describe_it(proxy: FaultyProxy, whole: Read) -> None:
    for holding in (b'"attributeNameFilter":{},"nextPage"', b'"m/bad"'):
        proxy.faults.append(Fault(VALUES, times=-1, status=422, holding=holding))
    found = read(open_behind(proxy), PROJECT, RUNS)
    same(found, whole)
    for run_id in RUNS:
        (note,) = found.ends[run_id].notes
        assert note.attribute_path == "m/bad"
        assert "422" in note.message


def test_a_run_of_which_no_attribute_comes_is_given_up_soon(proxy: FaultyProxy, whole: Read) -> None:
    proxy.faults.append(Fault(VALUES, times=-1, status=422))
    found = read(open_behind(proxy), PROJECT, ["a"])
    assert "attributes could not be read" in found.ends["a"].errors[0].message
    assert found.ends["a"].promised is None
    assert ("m/x", "float_series") in found.paths("a")
    assert proxy.seen.count(VALUES) < 30
