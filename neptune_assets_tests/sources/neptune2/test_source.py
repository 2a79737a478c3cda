"""The source against a stub: real client, real wire, answers that a test chooses."""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from neptune_assets.errors import FileGoneError
from neptune_assets.schema import Scope
from neptune_assets.settings import AttributeFilter, Filters
from neptune_assets.sources.neptune2 import SOURCE
from neptune_assets.sources.neptune2.source import Neptune2
from neptune_assets.testing.sources import Read, SourceCase, SourceContract, read
from neptune_assets_tests.sources.neptune2.stub import PROJECT, Container, Stub, attribute

Make = Callable[..., Neptune2]


def rows(result: Read, run_id: str = "P-1") -> dict[str, list[dict[str, Any]]]:
    """Rows of a run by attribute."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in result.rows[run_id]:
        found.setdefault(row["attribute_path"], []).append(row)
    return found


def one(result: Read, path: str, column: str) -> Any:
    (row,) = rows(result)[path]
    return row[column]


class TestContract(SourceContract):
    spec = SOURCE

    @pytest.fixture
    def case(self, stub: Stub, source: Make, run: Container) -> SourceCase:
        return SourceCase(
            open=source,
            roots=(),
            project=PROJECT,
            run_ids=frozenset({"P-1", "P-2"}),
            series_run="P-1",
            series="loss",
            parameter="p/rate",
        )


def test_a_run_is_opened_once_and_costs_one_request_for_all_but_its_series(
    stub: Stub, source: Make, run: Container
) -> None:
    stub.requests.clear()
    read(source(), PROJECT, ["P-1", "P-2"])
    assert stub.asked("/v1/attributes") == 2
    assert stub.asked("/series/float") == 1
    assert stub.asked("/series/string") == 1
    assert not stub.asked("/v1/experiments")
    assert not stub.asked("/stringSets")


def test_values_of_every_type(stub: Stub, source: Make) -> None:
    stub.containers.append(
        Container(
            "P-1",
            attributes=[
                attribute("int", "int", value=2**63 - 1),
                attribute("small", "int", value=-(2**63)),
                attribute("float", "float", value=3),
                attribute("nan", "float", value="NaN"),
                attribute("inf", "float", value="-Infinity"),
                attribute("zero", "float", value=-0.0),
                attribute("bool", "bool", value=False),
                attribute("string", "string", value="nul \0 newline \n ☃"),
                attribute("empty", "string", value=""),
                attribute("when", "datetime", value="1999-12-31T23:59:59.999Z"),
                attribute("other zone", "datetime", value="2025-03-01T12:00:00.5+05:30"),
                attribute("set", "stringSet", values=["b", "", "a"]),
                attribute("no strings", "stringSet", values=[]),
                attribute("sys/state", "experimentState", value="running"),
            ],
        )
    )
    result = read(source(), PROJECT, ["P-1"])
    assert one(result, "int", "int_value") == 2**63 - 1
    assert one(result, "small", "int_value") == -(2**63)
    assert one(result, "float", "float_value") == 3.0
    assert math.isnan(one(result, "nan", "float_value"))
    assert one(result, "inf", "float_value") == -math.inf
    assert struct.pack("<d", one(result, "zero", "float_value")) == struct.pack("<d", -0.0)
    assert one(result, "bool", "bool_value") is False
    assert one(result, "string", "string_value") == "nul \0 newline \n ☃"
    assert one(result, "empty", "string_value") == ""
    assert one(result, "when", "datetime_value") == datetime(1999, 12, 31, 23, 59, 59, 999_000, UTC)
    assert one(result, "other zone", "datetime_value") == datetime(2025, 3, 1, 6, 30, 0, 500_000, UTC)
    assert one(result, "set", "string_set_value") == ["", "a", "b"]
    assert one(result, "no strings", "string_set_value") == []
    assert one(result, "sys/state", "string_value") == "Active"
    assert not result.ends["P-1"].errors


def test_points_come_page_by_page_and_whole(stub: Stub, source: Make) -> None:
    run = Container("P-1")
    points = [(step + 0.000001 * step, 1_740_000_000_000 + step, step * 0.1) for step in range(2_345)]
    run.floats("long", *points)
    run.floats("short", (7, 1_740_000_000_007, 7))
    run.strings("texts", *((step, 0, f"line {step}") for step in range(501)))
    stub.containers.append(run)
    found = rows(read(source(points_per_page=100), PROJECT, ["P-1"]))
    assert [
        (row["step"], int(row["timestamp"].timestamp() * 1000 + 0.5), row["float_value"]) for row in found["long"]
    ] == [(Decimal(f"{step:.6f}"), when, value) for step, when, value in points]
    assert [row["string_value"] for row in found["texts"]] == [f"line {step}" for step in range(501)]
    assert len(found["short"]) == 1
    assert stub.asked("/series/float") == 25


def test_a_server_that_gives_shorter_pages_than_asked_for_gives_all_the_same(stub: Stub, source: Make) -> None:
    run = Container("P-1")
    run.floats("long", *((step, step, float(step)) for step in range(1_000)))
    stub.containers.append(run)
    stub.page = 70
    found = rows(read(source(points_per_page=500), PROJECT, ["P-1"]))
    assert [row["float_value"] for row in found["long"]] == [float(step) for step in range(1_000)]


def test_a_server_that_refuses_large_pages_is_asked_for_those_of_the_client(stub: Stub, source: Make) -> None:
    run = Container("P-1")
    for name in ("a", "b"):
        run.floats(name, *((step, step, float(step)) for step in range(2_500)))
    run.strings("texts", *((step, 0, f"line {step}") for step in range(1_001)))
    stub.containers.append(run)
    stub.refused = 1_000
    result = read(source(concurrency=1), PROJECT, ["P-1"])
    found = rows(result)
    for name in ("a", "b"):
        assert [row["float_value"] for row in found[name]] == [float(step) for step in range(2_500)]
    assert len(found["texts"]) == 1_001
    assert not result.ends["P-1"].errors
    # Refused once, then never asked for again.
    assert stub.asked("/series/float") == 1 + 3 + 3


def test_a_series_that_the_server_refuses_whatever_is_asked_for_is_told(stub: Stub, source: Make) -> None:
    run = Container("P-1")
    run.floats("a", *((step, step, float(step)) for step in range(10)))
    stub.containers.append(run)
    stub.refused = 0
    result = read(source(), PROJECT, ["P-1"])
    assert "HTTP 400" in result.ends["P-1"].errors[0].message


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata", "Europe/Warsaw"])
def test_times_are_right_in_every_zone_and_in_the_hour_that_comes_twice(
    stub: Stub, source: Make, zone: str, monkeypatch: pytest.MonkeyPatch, reset_zone: None
) -> None:
    # 05:30Z and 06:30Z are both 01:30 in New York on that day, 00:30Z and 01:30Z both 02:30 in Warsaw a week before.
    moments = [datetime(2025, 11, 2, hour, 30, tzinfo=UTC) for hour in (4, 5, 6, 7)]
    moments += [datetime(2025, 10, 26, hour, 30, tzinfo=UTC) for hour in (0, 1, 2)]
    milliseconds = [int(moment.timestamp()) * 1000 + 123 for moment in moments]
    run = Container("P-1", created="2025-11-02T05:30:00.000Z")
    run.floats("loss", *((step, when, 0.0) for step, when in enumerate(milliseconds)))
    run.attributes.append(attribute("when", "datetime", value="2025-11-02T06:30:00.123Z"))
    stub.containers.append(run)
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    result = read(source(), PROJECT, ["P-1"])
    found = [row["timestamp"] for row in rows(result)["loss"]]
    assert found == [moment.replace(microsecond=123_000) for moment in moments]
    assert one(result, "when", "datetime_value") == datetime(2025, 11, 2, 6, 30, 0, 123_000, UTC)
    (info,) = source().runs(PROJECT)
    assert info.created_at == datetime(2025, 11, 2, 5, 30, tzinfo=UTC)


@pytest.fixture
def reset_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process's zone as it was, once the test has put TZ back."""
    with pytest.MonkeyPatch.context():
        yield
    monkeypatch.undo()
    time.tzset()


def test_git_information_becomes_values_below_its_path(stub: Stub, source: Make) -> None:
    git = attribute(
        "source_code/git",
        "gitRef",
        commit={
            "commitId": "0a1b",
            "message": "Fix it",
            "authorName": "Ann",
            "authorEmail": "ann@example.com",
            "commitDate": "2024-05-06T07:08:09+02:00",
        },
        currentBranch="main",
        remotes=["git@example.com:a.git"],
        repositoryDirty=True,
    )
    stub.containers.append(Container("P-1", attributes=[git]))
    result = read(source(), PROJECT, ["P-1"])
    assert one(result, "source_code/git/commit/commit_id", "string_value") == "0a1b"
    assert one(result, "source_code/git/commit/message", "string_value") == "Fix it"
    assert one(result, "source_code/git/commit/author_name", "string_value") == "Ann"
    assert one(result, "source_code/git/commit/author_email", "string_value") == "ann@example.com"
    assert one(result, "source_code/git/commit/commit_date", "datetime_value") == datetime(2024, 5, 6, 5, 8, 9, 0, UTC)
    assert one(result, "source_code/git/branch", "string_value") == "main"
    assert one(result, "source_code/git/remotes", "string_set_value") == ["git@example.com:a.git"]
    assert one(result, "source_code/git/dirty", "bool_value") is True


def test_what_cannot_be_kept_is_one_line_each_and_stops_nothing(stub: Stub, source: Make) -> None:
    stub.containers += [
        Container(
            "P-1",
            attributes=[
                attribute("sys/group_tags", "stringSet"),
                attribute("brand/new", "hologram", value=1),
                attribute("book", "notebookRef", notebookName="n"),
                attribute("nothing", "float", value=None),
                attribute("kept", "int", value=1),
            ],
        ),
        Container("P-2", attributes=[attribute("kept", "int", value=2)], gone=True),
        Container("P-3", attributes=[attribute("kept", "int", value=3), attribute("bad", "int", value="three")]),
    ]
    result = read(source(), PROJECT, ["P-1", "P-2", "P-3"])
    notes = {note.attribute_path: note.message for note in result.ends["P-1"].notes}
    assert set(notes) == {"sys/group_tags", "brand/new", "book", "nothing"}
    assert "hologram" in notes["brand/new"]
    assert not result.ends["P-1"].errors
    assert one(result, "kept", "int_value") == 1
    (gone,) = result.ends["P-2"].errors
    assert "deleted" in gone.message
    (bad,) = result.ends["P-3"].errors
    assert bad.attribute_path == "bad"
    assert [row["int_value"] for row in rows(result, "P-3")["kept"]] == [3]


def test_images_have_real_steps_where_the_server_tells_them(stub: Stub, source: Make) -> None:
    run = Container("P-1", attributes=[attribute("pictures", "imageSeries", lastStep=2.5)])
    run.images["pictures"] = [b"\x89PNG\r\n\x1a\none", b"two", b"three"]
    stub.containers.append(run)
    stub.image_points = True
    first = source(points_per_page=2)
    result = read(first, PROJECT, ["P-1"])
    found = rows(result)["pictures"]
    assert [row["step"] for row in found] == [Decimal("0.5"), Decimal("1.5"), Decimal("2.5")]
    assert [round(row["timestamp"].timestamp() * 1000) for row in found] == [
        1_740_000_000_000,
        1_740_000_000_001,
        1_740_000_000_002,
    ]
    assert not result.ends["P-1"].notes
    contents = [first.files(PROJECT, "P-1", row["file_value"]["path"])[0].open().read() for row in found]
    assert contents == run.images["pictures"]


def test_images_are_numbered_and_marked_where_it_does_not(stub: Stub, source: Make) -> None:
    run = Container("P-1", attributes=[attribute("pictures", "imageSeries", lastStep=100)])
    run.images["pictures"] = [b"one", b"two", b"three"]
    stub.containers.append(run)
    first = source(points_per_page=2)
    result = read(first, PROJECT, ["P-1"])
    found = rows(result)["pictures"]
    assert [(row["step"], row["timestamp"]) for row in found] == [(Decimal(step), None) for step in range(3)]
    assert result.ends["P-1"].repairs == {"steps_numbered": 3}
    (note,) = result.ends["P-1"].notes
    assert "places" in note.message
    contents = [first.files(PROJECT, "P-1", row["file_value"]["path"])[0].open().read() for row in found]
    assert contents == run.images["pictures"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_set_whose_archive_holds_a_name_twice_is_refused_by_name(source: Make, run: Container) -> None:
    run.sets["set"] = [("a.txt", b"one"), ("b.txt", b"two"), ("a.txt", b"three")]  # type: ignore[assignment]
    opened = source()
    reference = one(read(opened, PROJECT, ["P-1"]), "set", "file_value")["path"]
    with pytest.raises(FileGoneError, match=r"'a\.txt' more than once"):
        opened.files(PROJECT, "P-1", reference)


def test_files_have_their_extension_and_sets_their_members(source: Make, run: Container) -> None:
    opened = source()
    result = read(opened, PROJECT, ["P-1"])
    (file,) = opened.files(PROJECT, "P-1", one(result, "model/weights", "file_value")["path"])
    assert (file.relative_path, file.open().read()) == ("weights.bin", b"w" * 100)
    members = opened.files(PROJECT, "P-1", one(result, "set", "file_value")["path"])
    assert {member.relative_path: member.open().read() for member in members} == run.sets["set"]
    zipped = source(file_sets="zip")
    (archive,) = zipped.files(PROJECT, "P-1", one(read(zipped, PROJECT, ["P-1"]), "set", "file_value")["path"])
    assert archive.relative_path == "set.zip"
    assert archive.open().read(4) == b"PK\x03\x04"


def test_a_file_that_the_server_lost_is_gone_and_says_so(source: Make, run: Container) -> None:
    opened = source()
    reference = one(read(opened, PROJECT, ["P-1"]), "model/weights", "file_value")["path"]
    del run.files["model/weights"]
    with pytest.raises(FileGoneError, match=r"model/weights.*404"):
        opened.files(PROJECT, "P-1", reference)[0].open()


def test_a_series_without_points_is_noted_and_not_missed(stub: Stub, source: Make) -> None:
    run = Container("P-1")
    run.floats("empty")
    run.floats("full", (0, 0, 1.0))
    stub.containers.append(run)
    end = read(source(), PROJECT, ["P-1"]).ends["P-1"]
    assert end.promised is not None
    assert end.promised["float_series"] == 1
    (note,) = end.notes
    assert "empty" in note.message


def test_models_and_versions_are_read_like_runs(stub: Stub, source: Make) -> None:
    stub.containers += [
        Container("P-1"),
        Container("P-FOREST", "model", [attribute("key", "string", value="forest")]),
        Container("P-FOREST-1", "modelVersion", [attribute("sys/stage", "string", value="production")]),
        Container("P-FOREST-2", "modelVersion", trashed=True),
    ]
    opened = source()
    assert [info.run_id for info in opened.runs(PROJECT)] == ["P-1"]
    assert [info.run_id for info in opened.runs(PROJECT, Scope.MODELS)] == ["P-FOREST"]
    assert [info.run_id for info in opened.runs(PROJECT, Scope.MODEL_VERSIONS)] == ["P-FOREST-1"]
    chunks = list(opened.read(PROJECT, ["P-FOREST-1"], Scope.MODEL_VERSIONS))
    stages = [row for chunk in chunks[:-1] for row in chunk.batch.to_pylist() if row["attribute_path"] == "sys/stage"]
    assert [row["string_value"] for row in stages] == ["production"]
    without = source(Filters(model_registry=False))
    assert without.runs(PROJECT, Scope.MODELS) == []


def test_only_series_that_are_wanted_are_asked_for(stub: Stub, source: Make, run: Container) -> None:
    stub.requests.clear()
    read(source(Filters(attributes=AttributeFilter(exclude=["loss|log"]))), PROJECT, ["P-1"])
    assert not stub.asked("/series/float")
    assert not stub.asked("/series/string")


def test_reading_may_be_left_off_in_the_middle(stub: Stub, source: Make) -> None:
    for number in range(20):
        run = Container(f"P-{number}")
        run.floats("long", *((step, step, float(step)) for step in range(50_000)))
        stub.containers.append(run)
    opened = source()
    chunks = opened.read(PROJECT, [f"P-{number}" for number in range(20)])
    next(iter(chunks))
    chunks.close()
    assert opened.requests < 400, "whole runs were read although nobody wanted them"


def test_a_fingerprint_changes_with_the_run_and_with_what_is_taken_of_it(source: Make, run: Container) -> None:
    def mark(made: Neptune2) -> str:
        return next(info.fingerprint for info in made.runs(PROJECT) if info.run_id == "P-1")

    first = mark(source())
    assert mark(source()) == first
    assert mark(source(file_sets="zip")) != first
    assert mark(source(Filters(attributes=AttributeFilter(include=["loss"])))) != first
    run.modified = "2025-03-01T13:00:00.001Z"
    assert mark(source()) != first


def test_many_runs_are_read_from_tables_and_give_the_same(stub: Stub, source: Make) -> None:
    for number in range(250):
        run = Container(f"P-{number:03}", attributes=[attribute("p", "int", value=number)])
        run.floats("m", (0, 0, float(number)))
        stub.containers.append(run)
    stub.containers[100].gone = True
    opened = source()
    ids = [info.run_id for info in opened.runs(PROJECT)]
    stub.requests.clear()
    result = read(opened, PROJECT, ids)
    assert [end.run_id for end in result.ends.values() if end.errors] == ["P-100"]
    for number in set(range(250)) - {100}:
        found = rows(result, f"P-{number:03}")
        assert found["p"][0]["int_value"] == number
        assert found["m"][0]["float_value"] == number
    assert stub.asked("/v1/attributes") == 2, "the first, to see how large runs are, and the one that is gone"
    assert stub.asked("/entries/search") == 3
