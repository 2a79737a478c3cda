"""The source `server` on a real store, while it is open for writing."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from neptune_assets.errors import FileGoneError, SourceError, UnknownProjectError
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.writer import LakeWriter
from neptune_assets.schema import MAX_TIME, MIN_TIME, AttributeType
from neptune_assets.server.store.projects import Store
from neptune_assets.server.store.runs import NewRun, encode, file_value, float_bits, histogram_value, to_json
from neptune_assets.settings import Filters, LakeSettings, RunFilter
from neptune_assets.sources.server import SOURCE
from neptune_assets.sources.server.settings import ServerSource
from neptune_assets.sources.server.source import Server
from neptune_assets.testing.sources import SourceCase, SourceContract, read

PROJECT = "team/vision"
FLOATS = [0.1, math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308]
STEPS = [0, 1, 290_000, 1_000_000, 2_500_001, 10**17, 10**18 - 1]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store")
    project = opened.project(PROJECT, create=True)
    with project.write() as writing:
        run = writing.create_run(NewRun("first", experiment="exp", created_at=1_700_000_000_123))
        operations = writing.operations(run)
        operations.assign("int", AttributeType.INT, encode(AttributeType.INT, 2**63 - 1))
        operations.assign("float", AttributeType.FLOAT, encode(AttributeType.FLOAT, -0.0))
        operations.assign("text", AttributeType.STRING, encode(AttributeType.STRING, "a\n\0'%\u00e9"))
        operations.assign("yes", AttributeType.BOOL, encode(AttributeType.BOOL, True))
        operations.assign("when", AttributeType.DATETIME, encode(AttributeType.DATETIME, 1_700_000_000_001))
        operations.change_set("sys/tags", add=["b", "a"])
        series = operations.attribute("loss", AttributeType.FLOAT_SERIES)
        assert series is not None
        assert not operations.append_floats(series, STEPS, [1_700_000_000_000 + i for i in range(7)], FLOATS)
        preview = operations.attribute("only/preview", AttributeType.FLOAT_SERIES)
        assert preview is not None
        operations.preview(preview, 0, 1_700_000_000_000, float_bits(1.0), float_bits(0.5))
        lines = operations.attribute("log", AttributeType.STRING_SERIES)
        assert lines is not None
        operations.append_objects(lines, [0, 1], [5, 6], ["", "line\n"])
        bins = operations.attribute("bins", AttributeType.HISTOGRAM_SERIES)
        assert bins is not None
        operations.append_objects(
            bins, [0], [7], [to_json(histogram_value("COUNTING", [-math.inf, 0.5, math.inf], [1, 2]))]
        )
        incoming = project.objects.receive()
        incoming.write(b"weights")
        stored = incoming.keep()
        writing.put_file("any/key", stored.sha256, stored.size, "text/plain")
        value = file_value("any/key", stored.size, "text/plain")
        operations.assign("model", AttributeType.FILE, encode(AttributeType.FILE, value))
        lost = file_value("never/sent.bin", 3, "application/octet-stream")
        operations.assign("lost", AttributeType.FILE, encode(AttributeType.FILE, lost))
        writing.create_run(NewRun("second", parent_project=PROJECT, parent_run_id="first", fork_step=1_500_000))
    yield opened
    opened.close()


def source(store: Store, filters: Filters | None = None) -> Server:
    return Server(ServerSource(store=str(store.root)), filters or Filters())


class TestServer(SourceContract):
    spec = SOURCE

    @pytest.fixture
    def case(self, store: Store) -> SourceCase:
        directory = store.project(PROJECT).directory
        return SourceCase(
            open=lambda filters: source(store, filters),
            roots=(directory / "project.sqlite3", directory / "objects"),
            project=PROJECT,
            run_ids=frozenset({"first", "second"}),
            series_run="first",
            series="loss",
            parameter="int",
        )


def test_every_value_is_exact(store: Store) -> None:
    result = read(source(store), PROJECT, ["first", "second"])
    rows = {row["attribute_path"]: row for row in result.rows["first"] if row["step"] is None}
    assert rows["int"]["int_value"] == 2**63 - 1
    assert math.copysign(1, rows["float"]["float_value"]) == -1
    assert rows["text"]["string_value"] == "a\n\0'%\u00e9"
    assert rows["yes"]["bool_value"] is True
    assert rows["when"]["datetime_value"] == datetime(2023, 11, 14, 22, 13, 20, 1000, UTC)
    assert rows["sys/tags"]["string_set_value"] == ["a", "b"]
    assert rows["sys/name"]["string_value"] == "exp"
    assert rows["sys/custom_run_id"]["string_value"] == "first"
    assert rows["sys/creation_time"]["datetime_value"] == datetime(2023, 11, 14, 22, 13, 20, 123_000, UTC)
    points = [row for row in result.rows["first"] if row["attribute_path"] == "loss"]
    assert [row["step"] for row in points] == [Decimal(step).scaleb(-6) for step in STEPS]
    assert [struct.pack("<d", row["float_value"]) for row in points] == [struct.pack("<d", v) for v in FLOATS]
    (bins,) = [row["histogram_value"] for row in result.rows["first"] if row["attribute_path"] == "bins"]
    assert bins == {"type": "COUNTING", "edges": [-math.inf, 0.5, math.inf], "values": [1.0, 2.0]}
    assert [row["string_value"] for row in result.rows["first"] if row["attribute_path"] == "log"] == ["", "line\n"]
    assert not [row for row in result.rows["first"] if row["attribute_path"] == "only/preview"]
    fork = {row["attribute_path"]: row for row in result.rows["second"]}
    assert fork["sys/forking/parent"]["string_value"] == "first"
    assert fork["sys/forking/step"]["float_value"] == 1.5


def test_a_run_is_marked_by_its_last_change_and_by_no_other(store: Store) -> None:
    before = {info.run_id: info.fingerprint for info in source(store).runs(PROJECT)}
    project = store.project(PROJECT)
    with project.write() as writing:
        run = writing.run("second")
        assert run is not None
        writing.operations(run).assign("more", AttributeType.INT, 1)
    after = {info.run_id: info.fingerprint for info in source(store).runs(PROJECT)}
    assert after["first"] == before["first"]
    assert after["second"] != before["second"]


def test_late_points_change_a_run_and_are_read_in_their_place(store: Store) -> None:
    before = {info.run_id: info.fingerprint for info in source(store).runs(PROJECT)}
    with store.project(PROJECT).write() as writing:
        run = writing.run("first")
        assert run is not None
        operations = writing.operations(run)
        series, lines = (
            operations.attribute(path, kind)
            for path, kind in (("loss", AttributeType.FLOAT_SERIES), ("log", AttributeType.STRING_SERIES))
        )
        assert series is not None
        assert lines is not None
        assert not operations.append_floats(series, [500_000, 2], [1, 2], [7.0, 8.0])
        assert not operations.append_objects(lines, [-1], [3], ["late"])
    after = {info.run_id: info.fingerprint for info in source(store).runs(PROJECT)}
    assert [after[run] != before[run] for run in ("first", "second")] == [True, False]
    rows = read(source(store), PROJECT, ["first"]).rows["first"]
    points = [(row["step"], row["float_value"]) for row in rows if row["attribute_path"] == "loss"]
    assert [step for step, _ in points] == [Decimal(step).scaleb(-6) for step in sorted([*STEPS, 500_000, 2])]
    assert dict(points)[Decimal("0.5")] == 7.0
    assert dict(points)[Decimal("0.000002")] == 8.0
    assert [row["string_value"] for row in rows if row["attribute_path"] == "log"] == ["late", "", "line\n"]


def test_a_run_is_read_as_it_was_when_its_reading_began(store: Store) -> None:
    reading = source(store).read(PROJECT, ["first"])
    first = next(reading)
    with store.project(PROJECT).write() as writing:
        run = writing.run("first")
        assert run is not None
        series = writing.operations(run).attribute("loss", AttributeType.FLOAT_SERIES)
        assert series is not None
        writing.operations(run).append_floats(series, [10**18], [1], [9.0])
    rest = [first, *reading]
    assert sum(chunk.batch["attribute_path"].to_pylist().count("loss") for chunk in rest[:-1]) == len(STEPS)


def test_the_lake_holds_the_store_and_names_what_never_arrived(store: Store, tmp_path: Path) -> None:
    settings = LakeSettings(root=str(tmp_path / "lake"))
    report = LakeWriter(settings, source(store)).write_project(PROJECT)
    project = Lake(settings).project(PROJECT)
    records = project.records()
    assert not report.failed
    assert records["second"].complete
    assert not records["first"].complete
    assert "never/sent.bin" in records["first"].errors[0].message
    (kept,) = project.run("first").file_records("model")
    assert kept.path.endswith(".txt")
    with project.run("first").open_file(kept.path) as stream:
        assert stream.read() == b"weights"


def test_filters_choose_runs(store: Store) -> None:
    filters = Filters(runs=RunFilter(include=["^sec"]))
    assert [info.run_id for info in source(store, filters).runs(PROJECT)] == ["second"]


def test_missing_things_are_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UnknownProjectError, match="team/vision"):
        source(store).runs("team/none")
    with pytest.raises(SourceError, match="no store"):
        Server(ServerSource(store=str(tmp_path / "nowhere")), Filters()).projects()
    with pytest.raises(FileGoneError, match="neptune sync"):
        source(store).files(PROJECT, "first", "file:never/sent.bin")


@pytest.mark.parametrize("milliseconds", [-(2**63), -70_000_000_000_000, 254_349_073_000_000, 2**63 - 1])
def test_times_that_no_calendar_has_cost_neither_project_nor_run(store, tmp_path, milliseconds):
    project = store.project(PROJECT)
    with project.write() as writing:
        run = writing.create_run(NewRun("odd", created_at=milliseconds, modified_at=milliseconds))
        operations = writing.operations(run)
        operations.assign("when", AttributeType.DATETIME, encode(AttributeType.DATETIME, milliseconds))
        operations.assign("lr", AttributeType.FLOAT, encode(AttributeType.FLOAT, 0.5))
        series = operations.attribute("m", AttributeType.FLOAT_SERIES)
        assert series is not None
        operations.append_floats(series, [0, 1_000_000], [milliseconds, 1_700_000_000_000], [1.5, 2.5])
    listed = {info.run_id: info for info in source(store).runs(PROJECT)}
    assert set(listed) == {"first", "second", "odd"}
    assert listed["odd"].created_at is None
    settings = LakeSettings(root=str(tmp_path / "lake"))
    report = LakeWriter(settings, source(store)).write_project(PROJECT)
    assert not report.failed
    held = Lake(settings).project(PROJECT).run("odd")
    rows = [row for batch in held.batches(["float", "float_series"], ["float_value"]) for row in batch.to_pylist()]
    assert [row["float_value"] for row in rows] == [0.5, 1.5, 2.5]
    said = "".join(issue.message for issue in (*held.record.errors, *held.record.notes))
    points = [batch["timestamp"].cast(pa.int64()) for batch in held.batches(["float_series"], ["timestamp"])]
    (first, second) = pa.concat_arrays(points).to_pylist()
    assert second == 1_700_000_000_000
    assert first == (milliseconds if MIN_TIME <= milliseconds <= MAX_TIME else None)
    assert str(milliseconds) in said
    times = [row for batch in held.batches(["datetime"], ["attribute_path"]) for row in batch.to_pylist()]
    assert {"attribute_path": "when"} in times or (str(milliseconds) in said and "when" in said)
