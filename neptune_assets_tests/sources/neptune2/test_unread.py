"""Runs of which the server fails to give one attribute, and files that have no end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from neptune_assets.errors import FileGoneError
from neptune_assets.settings import StorageSettings
from neptune_assets.sources.live import ApiToken, allow_transport
from neptune_assets.sources.neptune2.connection import Calls, open_connection
from neptune_assets.sources.neptune2.files import ArtifactStore, Files
from neptune_assets.sources.neptune2.settings import Neptune2Source
from neptune_assets.sources.neptune2.source import Neptune2
from neptune_assets.sources.neptune2.values import Reference, parse_reference
from neptune_assets.testing.sources import key, read
from neptune_assets_tests.sources.neptune2.stub import PROJECT, Container, Stub, attribute

Make = Callable[..., Neptune2]


@pytest.mark.parametrize("bad", ["p/rate", "set"])
def test_one_attribute_that_the_server_fails_to_give_leaves_the_others_of_its_run(
    bad: str, stub: Stub, source: Make, run: Container
) -> None:
    whole = read(source(), PROJECT, ["P-1", "P-2"])
    stub.broken = {bad}
    opened = source(retry_seconds=1)
    found = read(opened, PROJECT, ["P-1", "P-2"])
    first, last = found.ends["P-1"].errors
    assert first.attribute_path == bad
    assert "500" in first.message
    assert "whether the run has others is unknown" in last.message
    expected = [row for row in whole.rows["P-1"] if row["attribute_path"] != bad]
    assert sorted(map(key, found.rows["P-1"])) == sorted(map(key, expected))
    assert not found.ends["P-2"].errors
    assert sorted(map(key, found.rows["P-2"])) == sorted(map(key, whole.rows["P-2"]))


def test_points_of_a_series_come_although_the_server_fails_to_describe_it(
    stub: Stub, source: Make, run: Container
) -> None:
    stub.broken = {"loss"}
    found = read(source(retry_seconds=1), PROJECT, ["P-1"])
    assert [row["float_value"] for row in found.rows["P-1"] if row["attribute_path"] == "loss"] == [1.5, 2.0, -0.0]
    (error,) = found.ends["P-1"].errors
    assert "500" in error.message


def test_an_attribute_that_no_list_of_columns_names_leaves_its_run_partial(
    stub: Stub, source: Make, run: Container
) -> None:
    stub.broken = stub.unlisted = {"p/rate"}
    found = read(source(retry_seconds=1), PROJECT, ["P-1"])
    assert ("p/name", "string") in found.paths("P-1")
    assert "is unknown" in found.ends["P-1"].errors[-1].message


def test_a_run_whose_attributes_only_tables_give_is_whole(stub: Stub, source: Make, run: Container) -> None:
    whole = read(source(), PROJECT, ["P-1"])
    stub.no_single = True
    found = read(source(retry_seconds=1), PROJECT, ["P-1"])
    assert not found.ends["P-1"].errors
    assert sorted(map(key, found.rows["P-1"])) == sorted(map(key, whole.rows["P-1"]))


def test_a_run_of_which_nothing_comes_is_named_and_the_project_goes_on(
    stub: Stub, source: Make, run: Container
) -> None:
    stub.containers.append(Container("P-3", attributes=[attribute("only here", "int", value=1)]))
    stub.broken = {"only here", "sys/size"}
    stub.no_search = True
    found = read(source(retry_seconds=1), PROJECT, ["P-1", "P-3"])
    assert not found.ends["P-1"].errors
    (error,) = found.ends["P-3"].errors
    assert "'P-3'" in error.message
    assert not found.rows["P-3"]


@pytest.fixture
def files(stub: Stub, run: Container) -> Callable[..., Files]:
    """Resolves references with limits of a test."""

    def make(*, unpack: bool = True, **limits: int) -> Files:
        token = ApiToken(stub.token, stub.url, "NEPTUNE_API_TOKEN")
        allow_transport(token, allow_http=False)
        settings = Neptune2Source(retry_seconds=1)
        calls = Calls(open_connection(token, settings), settings)
        return Files(calls, ArtifactStore([], StorageSettings()), unpack=unpack, patience=5, **limits)

    return make


def test_a_file_without_an_end_is_read_to_its_size(stub: Stub, files: Callable[..., Files]) -> None:
    stub.endless = True
    (file,) = files().resolve(Reference("file", "key of P-1", "model/weights", extension="bin", size=100))
    with pytest.raises(FileGoneError, match="more than the 100 bytes"):
        file.open()
    assert stub.asked("attributes/download") == 1


def test_an_image_without_an_end_is_read_to_the_limit(stub: Stub, run: Container, files: Callable[..., Files]) -> None:
    run.images["image"] = [b"i" * 1_000]
    (file,) = files(largest_image=1_000).resolve(Reference("image", "key of P-1", "image", place="0"))
    with file.open() as stream:
        assert stream.read() == b"i" * 1_000
    stub.endless = True
    with pytest.raises(FileGoneError, match="more than the 1,000 bytes"):
        file.open()


@pytest.mark.parametrize("size", [5, 0, -1])
def test_an_archive_without_an_end_is_read_to_the_limit(size: int, stub: Stub, files: Callable[..., Files]) -> None:
    reference = Reference("file_set", "key of P-1", "set", size=size)
    made = files(beside=1_000, largest_archive=1_005)
    assert [member.relative_path for member in made.resolve(reference)] == ["a/b.txt", "c"]
    stub.endless = True
    with pytest.raises(FileGoneError, match="more than the 1,005 bytes"):
        made.resolve(reference)
    (kept,) = files(unpack=False, beside=1_000, largest_archive=1_005).resolve(reference)
    with pytest.raises(FileGoneError, match="more than the 1,005 bytes"):
        kept.open()


def test_an_archive_that_claims_more_than_the_server_counts_is_not_unpacked(
    run: Container, files: Callable[..., Files]
) -> None:
    run.sets["set"] = {"zeros": bytes(1 << 20)}
    with pytest.raises(FileGoneError, match="claims 1,048,576 bytes, the server counts 5"):
        files(beside=10_000).resolve(Reference("file_set", "key of P-1", "set", size=5))


def test_an_archive_that_lacks_bytes_gives_what_it_holds_and_says_so(stub: Stub, source: Make, run: Container) -> None:
    del run.sets["set"]["a/b.txt"]
    opened = source()
    (row,) = (row for row in read(opened, PROJECT, ["P-1"]).rows["P-1"] if row["attribute_path"] == "set")
    assert parse_reference(row["file_value"]["path"]).size == 5
    member, missing = opened.files(PROJECT, "P-1", row["file_value"]["path"])
    assert (member.relative_path, member.open().read()) == ("c", b"")
    with pytest.raises(FileGoneError, match="0 of the 5 bytes"):
        missing.open()
