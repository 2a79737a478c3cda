from __future__ import annotations

import math
from decimal import Decimal

import neptune_query
import neptune_query.runs
import pytest

from neptune_assets.lake.writer import LakeWriter
from neptune_assets.settings import AttributeFilter, Filters, LakeSettings, RunFilter
from neptune_assets_tests.conformance.sources import read
from neptune_assets_tests.sources.neptune3.conftest import Open
from neptune_assets_tests.support.server import Served
from neptune_assets_tests.support.wire_logging import WireLogger


def test_values_come_exactly(served: Served, open_source: Open) -> None:
    logger = WireLogger(served, "reading/values")
    values = {
        "big": 2**63 - 1,
        "small": -(2**63),
        "odd": 2**53 + 1,
        "nan": math.nan,
        "inf": -math.inf,
        "zero": -0.0,
        "tiny": 5e-324,
        "empty": "",
        "text": "nul \x00 newline \n quote ' \" ☃ 🙂",
        "n" * 1_000: True,
        "Case": 1,
        "case": 2,
        "a.b": 3,
        "a_b": 4,
        "spaces and `ticks`": False,
    }
    points = [(0.0, math.nan), (1e-06, math.inf), (0.5, -0.0), (7.654321, 5e-324), (9_000_000_000.5, 0.1)]
    # A second run lacks all of it: in a table of both runs ints would become floats.
    for run_id in ("full", "bare"):
        logger.create(run_id)
    logger.configs("full", values)
    logger.metrics("full", {"m/a": points, "m/b": [(3.25, 1.0)]})
    result = read(open_source(), logger.project, ["bare", "full"])
    rows = result.rows["full"]
    columns = ("int_value", "float_value", "string_value", "bool_value")
    found = {
        row["attribute_path"]: next(row[name] for name in columns if row[name] is not None)
        for row in rows
        if row["attribute_path"] in values
    }
    assert repr(sorted(found.items())) == repr(sorted(values.items()))
    metric = sorted((row["step"], row["float_value"]) for row in rows if row["attribute_path"] == "m/a")
    expected = [(Decimal(repr(step) if step != 1e-06 else "0.000001"), value) for step, value in points]
    assert repr([(step.normalize(), value) for step, value in metric]) == repr(
        [(step.quantize(Decimal("0.000001")).normalize(), value) for step, value in expected]
    )
    assert "lr" not in {row["attribute_path"] for row in result.rows["bare"]}


@pytest.mark.parametrize("per_page", [1_000, 1_001, 4_000])
@pytest.mark.parametrize("series_per_page", [1, 3, 1_000])
def test_long_series_come_whole_in_pages(
    per_page: int, series_per_page: int, served: Served, open_source: Open
) -> None:
    logger = WireLogger(served, "reading/long")
    counts = {"a": 0, "b": 1, "c": 999, "d": 1_000, "e": 2_001}
    if logger.project not in open_source().projects():
        for run_id in ("one", "two", "three"):
            logger.create(run_id)
            series = {
                name: [(step / 8, step * 0.25) for step in range(count)] for name, count in counts.items() if count
            }
            logger.metrics(run_id, series)
            logger.strings(run_id, {"log": [(float(step), f"{run_id} {step}") for step in range(300)]})
    source = open_source(points_per_page=per_page, series_per_page=series_per_page, concurrency=3)
    result = read(source, logger.project, ["three", "one", "two"])
    for run_id, rows in result.rows.items():
        assert not result.ends[run_id].errors
        for name, count in counts.items():
            mine = sorted((row["step"], row["float_value"]) for row in rows if row["attribute_path"] == name)
            assert mine == [(Decimal(step) / 8, step * 0.25) for step in range(count)]
        texts = {row["string_value"] for row in rows if row["attribute_path"] == "log"}
        assert texts == {f"{run_id} {step}" for step in range(300)}


def test_disjoint_grids_are_no_trouble(served: Served, open_source: Open) -> None:
    logger = WireLogger(served, "reading/disjoint")
    logger.create("r")
    grids = {f"m{number}": [(float(step * 30 + number), step + 0.5) for step in range(40)] for number in range(30)}
    logger.metrics("r", grids)
    rows = read(open_source(), logger.project, ["r"]).rows["r"]
    for name, points in grids.items():
        mine = sorted((row["step"], row["float_value"]) for row in rows if row["attribute_path"] == name)
        assert mine == [(Decimal(step), value) for step, value in points]


@pytest.fixture(scope="module")
def previews(served: Served) -> str:
    logger = WireLogger(served, "reading/previews")
    logger.create("r")
    logger.metrics("r", {"m": [(1.0, 1.0), (2.0, 2.0)]})
    logger.metrics("r", {"m": [(3.0, 3.0)], "only": [(1.0, 9.0)]}, preview=0.25)
    return logger.project


def test_previews_stay_out(previews: str, open_source: Open) -> None:
    result = read(open_source(), previews, ["r"])
    series = {(row["attribute_path"], row["step"]) for row in result.rows["r"] if row["step"] is not None}
    assert series == {("m", 1), ("m", 2)}
    assert not result.ends["r"].errors
    assert any(note.attribute_path == "only" for note in result.ends["r"].notes)


def test_previews_come_marked_if_asked_for(previews: str, open_source: Open) -> None:
    result = read(open_source(metric_previews=True), previews, ["r"])
    points = {
        (row["attribute_path"], int(row["step"]), row["float_value"])
        for row in result.rows["r"]
        if row["step"] is not None
    }
    assert points == {
        ("m", 1, 1.0),
        ("m", 2, 2.0),
        ("m:preview", 3, 3.0),
        ("m:preview_completion", 3, 0.25),
        ("only:preview", 1, 9.0),
        ("only:preview_completion", 1, 0.25),
    }
    assert not result.ends["r"].errors
    promised = result.ends["r"].promised
    assert promised is not None
    assert promised["float_series"] == len({path for path, _, _ in points})


def test_asking_for_previews_reads_runs_again(previews: str, open_source: Open) -> None:
    (without,), (with_them,) = (open_source(metric_previews=asked).runs(previews) for asked in (False, True))
    assert without.fingerprint != with_them.fingerprint


def test_a_fork_holds_its_own_points_only(served: Served, open_source: Open) -> None:
    logger = WireLogger(served, "reading/forks")
    logger.create("parent")
    logger.metrics("parent", {"m": [(step, 1.0) for step in range(5)], "parent's": [(1.0, 1.0)]})
    logger.create("child", parent="parent", fork_step=2.0)
    logger.metrics("child", {"m": [(3.0, 2.0)]})
    result = read(open_source(), logger.project, ["parent", "child"])
    points = {
        (row["attribute_path"], int(row["step"]), row["float_value"])
        for row in result.rows["child"]
        if row["step"] is not None
    }
    assert points == {("m", 3, 2.0)}
    assert not result.ends["child"].errors
    assert any("ancestors" in note.message for note in result.ends["child"].notes)
    parents = {row["string_value"] for row in result.rows["child"] if row["attribute_path"] == "sys/forking/parent"}
    assert parents == {"parent"}


def test_only_runs_that_changed_are_asked_for_again(served: Served, open_source: Open, tmp_path: object) -> None:
    logger = WireLogger(served, "reading/nightly")
    for run_id in ("a", "b"):
        logger.create(run_id)
        logger.metrics(run_id, {"m": [(1.0, 1.0)]})
    settings = LakeSettings(root=f"{tmp_path}/lake")
    assert LakeWriter(settings, open_source()).write_project(logger.project).new == ["a", "b"]
    again = LakeWriter(settings, open_source()).write_project(logger.project)
    assert (again.new, again.changed, again.skipped) == ([], [], ["a", "b"])
    logger.metrics("b", {"m": [(2.0, 2.0)]})
    logger.create("c")
    third = LakeWriter(settings, open_source()).write_project(logger.project)
    assert (third.new, third.changed, third.skipped) == (["c"], ["b"], ["a"])


def test_filters_on_runs(served: Served, open_source: Open) -> None:
    logger = WireLogger(served, "reading/filters")
    for run_id in ("alpha", "beta", "gamma"):
        logger.create(run_id)

    def chosen(**filters: object) -> list[str]:
        source = open_source(Filters(runs=RunFilter.model_validate(filters)))
        return [info.run_id for info in source.runs(logger.project)]

    assert chosen() == ["alpha", "beta", "gamma"]
    assert chosen(ids=["beta", "nowhere"]) == ["beta"]
    assert chosen(include=["^a", "a$"], exclude=["^g"]) == ["alpha", "beta"]
    assert chosen(created_since="2025-03-01") == ["alpha", "beta", "gamma"]
    assert chosen(created_since="2025-03-02") == []
    assert chosen(created_until="2025-03-01") == []
    assert chosen(modified_since="2999-01-01T00:00:00+02:00") == []
    assert chosen(modified_until="2999-01-01") == ["alpha", "beta", "gamma"]
    created = open_source().runs(logger.project)[0].created_at
    assert created is not None
    assert created.isoformat() == "2025-03-01T12:00:00.123000+00:00"


def test_archived_and_trashed_runs(served: Served, open_source: Open) -> None:
    logger = WireLogger(served, "reading/put-away")
    for run_id in ("there", "archived", "trashed"):
        logger.create(run_id)
    assert served.service is not None
    with served.service.store.project(logger.project).write() as writing:
        for run_id in ("archived", "trashed"):
            run = writing.run(run_id)
            assert run is not None
            writing.update_run(run, **{run_id: 1})

    def chosen(**filters: bool) -> list[str]:
        source = open_source(Filters(runs=RunFilter.model_validate(filters)))
        return [info.run_id for info in source.runs(logger.project)]

    assert chosen() == ["archived", "there"]
    assert chosen(archived=False) == ["there"]
    assert chosen(trashed=True) == ["archived", "there", "trashed"]
    result = read(open_source(Filters(runs=RunFilter(trashed=True))), logger.project, ["trashed"])
    assert result.rows["trashed"]


def test_classes_of_attributes_that_are_not_wanted_are_not_asked_for(served: Served, open_source: Open) -> None:
    logger = WireLogger(served, "reading/classes")
    logger.create("r")
    logger.configs("r", {"p": 1})
    logger.metrics("r", {"m": [(1.0, 1.0)]})
    source = open_source(Filters(attributes=AttributeFilter(classes=["metrics"])))
    result = read(source, logger.project, ["r"])
    assert result.paths("r") == {("m", "float_series")}
    assert result.ends["r"].promised == {"float_series": 1}


def test_projects_are_found_or_named(served: Served, open_source: Open) -> None:
    for project in ("found/one", "found/two", "other/one"):
        WireLogger(served, project).create("r")
    assert {"found/one", "found/two", "other/one"} <= set(open_source().projects())
    assert open_source(workspace="found").projects() == ["found/one", "found/two"]
    assert open_source(projects=["b/c", "a/b"]).projects() == ["a/b", "b/c"]


def test_what_is_read_is_what_neptune_query_shows(served: Served, open_source: Open) -> None:
    logger = WireLogger(served, "reading/same")
    logger.create("r", experiment_id="e")
    logger.metrics("r", {f"m{n}": [(step / 3, step * n / 7) for step in range(30)] for n in range(12)})
    logger.strings("r", {"log": [(0.000001 * n, str(n)) for n in range(20)]})
    rows = read(open_source(), logger.project, ["r"]).rows["r"]
    neptune_query.set_api_token(served.token)
    metrics = neptune_query.runs.fetch_metrics(project=logger.project, runs=["r"], attributes="m[0-9]+")
    texts = neptune_query.runs.fetch_series(project=logger.project, runs=["r"], attributes="log")
    for frame, column in ((metrics, "float_value"), (texts, "string_value")):
        for path in frame.columns:
            shown = [(round(step, 6), value) for (_, step), value in frame[path].items()]
            mine = sorted((float(row["step"]), row[column]) for row in rows if row["attribute_path"] == path)
            assert mine == shown
    assert len(metrics.columns) + len(texts.columns) == 13
