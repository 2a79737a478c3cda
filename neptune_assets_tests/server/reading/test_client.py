"""neptune-query itself, the real client, against a server over a lake and a store."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import neptune_query as experiments
import neptune_query.runs as runs
import pytest
from neptune_query.exceptions import AttributeTypeInferenceError, NeptuneProjectInaccessible
from neptune_query.filters import Attribute, AttributeFilter, Filter

from neptune_assets_tests.server.reading.conftest import CREATED, LOSS

pytestmark = pytest.mark.usefixtures("token")


def rows(frame: Any) -> dict[str, dict[str, Any]]:
    """A table as {run: {attribute: value}}, without what is missing."""
    return {
        label: {name: value for name, value in row.items() if not (isinstance(value, float) and math.isnan(value))}
        for label, row in frame.to_dict("index").items()
    }


def points(frame: Any, name: str) -> dict[tuple[str, float], Any]:
    """One column of a frame of series as {(run, step): value}, without what is missing."""
    return {key: value for key, value in frame[name].to_dict().items() if value == value}


def test_lists() -> None:
    assert sorted(runs.list_runs(project="ws/lake")) == ["archived", "child", "no ids", "run-1", "run-2"]
    assert sorted(runs.list_runs(project="ws/lake", runs="^run")) == ["run-1", "run-2"]
    assert sorted(experiments.list_experiments(project="ws/lake")) == ["experiment 0", "experiment 1"]
    assert sorted(runs.list_runs(project="ws/store")) == ["fork", "fork of fork", "parent"]
    assert sorted(experiments.list_experiments(project="ws/store")) == ["exp", "other"]
    assert sorted(runs.list_runs(project="ws/both")) == ["fork of the lake", "kept", "shared"]


def test_tables_begin_with_the_youngest() -> None:
    table = runs.fetch_runs_table(project="ws/lake", attributes=["lr"])
    assert list(table.index) == ["child", "archived", "run-2", "run-1", "no ids"]


def test_trashed_runs_are_found_by_those_who_name_the_trash() -> None:
    trashed = Filter.eq(Attribute("sys/trashed", type="bool"), True)
    assert runs.list_runs(project="ws/lake", runs=trashed) == ["trashed"]
    archived = Filter.eq(Attribute("sys/archived", type="bool"), True)
    assert runs.list_runs(project="ws/lake", runs=archived) == ["archived"]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Filter.eq("lr", 0.1), {"run-1"}),
        (Filter.gt("lr", 0.1), {"run-2", "no ids"}),
        (Filter.ne("opt", "adam"), {"run-2", "child", "no ids", "archived"}),
        (Filter.eq("big", 2**63 - 1), {"run-1"}),
        (Filter.ge("when", CREATED), {"run-1"}),
        (Filter.gt("when", CREATED), set()),
        (Filter.contains_all("labels", ["a", "b"]), {"run-1"}),
        (Filter.contains_none("labels", "c"), {"run-1", "run-2", "child", "no ids", "archived"}),
        (Filter.contains_all("note", '"quoted"\\ '), {"run-1"}),
        (Filter.matches("opt", "^ad"), {"run-1"}),
        (Filter.lt("loss", 1), {"run-1"}),
        (Filter.exists(Attribute("layers", type="string")), {"run-2"}),
        (Filter.exists(Attribute("layers", type="int")), {"run-1"}),
        (Filter.eq(Attribute("log", type="string_series"), "two again"), {"child"}),
        (Filter.eq("debug", True) & ~Filter.eq("lr", 0.2), {"run-1"}),
    ],
)
def test_filters(condition: Filter, expected: set[str]) -> None:
    assert set(runs.list_runs(project="ws/lake", runs=condition)) == expected


def test_types_are_told_for_each_run() -> None:
    with pytest.raises(AttributeTypeInferenceError):
        runs.list_runs(project="ws/lake", runs=Filter.eq("layers", 3))
    frame = runs.fetch_runs_table(project="ws/lake", runs=["run-1", "run-2"], attributes="^layers$",
                                  type_suffix_in_column_names=True)  # fmt: skip
    assert rows(frame) == {"run-1": {"layers:int": 3}, "run-2": {"layers:string": "three"}}


def test_table_of_exact_names() -> None:
    names = ["lr", "layers", "big", "opt", "debug", "when", "labels", "note", "loss", "acc", "log", "missing"]
    (row,) = rows(runs.fetch_runs_table(project="ws/lake", runs=["run-1"], attributes=names)).values()
    assert row.pop("when").astimezone(UTC) == CREATED
    assert row == {
        "lr": 0.1,
        "layers": 3,
        "big": 2**63 - 1,
        "opt": "adam",
        "debug": True,
        "labels": {"a", "b"},
        "note": 'a "quoted"\\ text\nof two lines',
        "loss": -0.0,
        "acc": 0.3,
        "log": "three",
    }
    assert math.copysign(1, row["loss"]) == -1


def test_table_by_expressions_of_forks() -> None:
    frame = experiments.fetch_experiments_table(project="ws/store", attributes="^(lr|loss|log|only)")
    assert rows(frame) == {"exp": {"lr": 0.6, "loss": 40.0, "log": "c"}, "other": {"loss": 7.0, "log": "c"}}


@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_sorting_puts_runs_without_the_attribute_last(direction: Any) -> None:
    found = list(runs.fetch_runs_table(project="ws/lake", attributes=["lr"], sort_by="lr",
                                       sort_direction=direction).index)  # fmt: skip
    sorted_runs = ["run-1", "run-2", "no ids"]
    assert found[:3] == (sorted_runs if direction == "asc" else sorted_runs[::-1])
    assert set(found[3:]) == {"child", "archived"}


def test_limits() -> None:
    table = runs.fetch_runs_table(project="ws/lake", attributes=["lr"], sort_by="lr", sort_direction="asc", limit=2)
    assert list(table.index) == ["run-1", "run-2"]


def test_attributes() -> None:
    found = runs.list_attributes(project="ws/lake", runs=["run-2", "child"])
    assert [name for name in found if not name.startswith("sys/")] == [
        "acc", "layers", "log", "loss", "lr", "samples", "weights"]  # fmt: skip
    assert runs.list_attributes(project="ws/lake", attributes="^l & !og$") == ["labels", "layers", "loss", "lr"]
    only = AttributeFilter(name=".*", type=["int", "file_series"])
    assert runs.list_attributes(project="ws/lake", attributes=only) == ["big", "layers", "samples"]


def test_metrics_are_exact() -> None:
    frame = runs.fetch_metrics(project="ws/lake", runs=["run-1"], attributes=["loss"], include_time="absolute")
    column = frame[("loss", "value")]
    assert list(frame.index) == [("run-1", step) for step in (0.0, 1.0, 2.5, 3.0, 1_000_000.0)]
    assert [repr(value) for value in column] == [repr(value) for value in LOSS]
    assert frame[("loss", "absolute_time")].iloc[0].to_pydatetime() == datetime(2025, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {0: 1.5, 1: 100.0, 2: 200.0}),
        ({"lineage_to_the_root": False}, {1: 100.0, 2: 200.0}),
        ({"step_range": (0, 1)}, {0: 1.5, 1: 100.0}),
        ({"tail_limit": 1}, {2: 200.0}),
        ({"tail_limit": 3}, {0: 1.5, 1: 100.0, 2: 200.0}),
    ],
)
def test_metrics_of_a_fork_in_the_lake(options: dict[str, Any], expected: dict[float, float]) -> None:
    frame = runs.fetch_metrics(project="ws/lake", runs=["child"], attributes=["loss"], **options)
    assert points(frame, "loss") == {("child", step): value for step, value in expected.items()}


@pytest.mark.parametrize(
    ("run", "options", "expected"),
    [
        ("fork", {}, {0: 1.0, 1: 2.0, 2: 3.0, 2.5: 10.0, 3: 20.0}),
        ("fork", {"include_point_previews": True}, {0: 1, 1: 2, 2: 3, 2.5: 10, 3: 20, 4: 30, 5: 40}),
        ("fork", {"lineage_to_the_root": False}, {2.5: 10.0, 3: 20.0}),
        ("fork", {"tail_limit": 3, "include_point_previews": True}, {3: 20.0, 4: 30.0, 5: 40.0}),
        ("fork of fork", {}, {0: 1.0, 1: 2.0, 2: 3.0, 2.5: 10.0, 7: 7.0}),
        ("fork of fork", {"step_range": (1, 2.5)}, {1: 2.0, 2: 3.0, 2.5: 10.0}),
    ],
)
def test_metrics_of_forks(run: str, options: dict[str, Any], expected: dict[float, float]) -> None:
    wanted = {key: value for key, value in options.items() if key != "include_point_previews"}
    if "include_point_previews" in options:
        frame = runs.fetch_metrics(project="ws/store", runs=[run], attributes=["loss"], include_point_previews=True,
                                   **wanted)  # fmt: skip
        found = points(frame, ("loss", "value"))  # type: ignore[arg-type]
        shown = frame[("loss", "is_preview")].to_dict()
        assert {step for (_, step), preview in shown.items() if preview} == {4.0, 5.0} & {s for _, s in found}
    else:
        found = points(runs.fetch_metrics(project="ws/store", runs=[run], attributes=["loss"], **wanted), "loss")
    assert found == {(run, step): value for step, value in expected.items()}


def test_lineage_of_an_experiment_ends_where_it_began() -> None:
    options: dict[str, Any] = {"project": "ws/store", "attributes": ["loss"], "lineage_to_the_root": False}
    assert points(experiments.fetch_metrics(experiments=["exp"], **options), "loss") == {
        ("exp", step): value for step, value in {0: 1.0, 1: 2.0, 2: 3.0, 2.5: 10.0, 3: 20.0}.items()
    }
    assert points(experiments.fetch_metrics(experiments=["other"], **options), "loss") == {("other", 7): 7.0}


def test_a_run_of_the_store_continues_one_of_the_lake() -> None:
    frame = runs.fetch_metrics(project="ws/both", runs=["fork of the lake"], attributes=["loss"])
    assert list(frame["loss"]) == [1.0, 2.0, 30.0]


def test_the_store_hides_the_lake() -> None:
    frame = runs.fetch_runs_table(project="ws/both", runs=["shared"], attributes=["from", "only"])
    assert rows(frame) == {"shared": {"from": "store", "only": None}} or rows(frame) == {"shared": {"from": "store"}}


def test_series_of_strings() -> None:
    frame = runs.fetch_series(project="ws/lake", runs=["run-1", "child"], attributes=["log"])
    assert points(frame, "log") == {
        ("run-1", 0): "one", ("run-1", 1): "two", ("run-1", 2): "three", ("child", 0): "one", ("child", 1): "two again",
    }  # fmt: skip
    tail = runs.fetch_series(project="ws/store", runs=".*", attributes=["log"], tail_limit=1)
    assert points(tail, "log") == {("fork", 2): "c", ("fork of fork", 2): "c", ("parent", 2): "c"}


def test_series_of_histograms() -> None:
    frame = runs.fetch_series(project="ws/lake", runs=["run-1"], attributes=["weights"])
    first, second = frame["weights"]
    assert (first.type, first.edges, first.values) == ("COUNTING", [0.0, 1.0, 2.0], [3.0, 4.0])
    assert (second.edges, second.values) == ([0.0, 0.5, 1.0], [1.0, 0.0])


def test_files(tmp_path: Any) -> None:
    table = runs.fetch_runs_table(project="ws/lake", runs=["run-1"], attributes=["model"])
    series = runs.fetch_series(project="ws/lake", runs=["run-1"], attributes=["samples"])
    found = [table["model"].iloc[0], *series["samples"]]
    assert [(item.size_bytes, item.mime_type) for item in found] == [
        (16, "application/json"), (5, "image/png"), (7, "image/png")]  # fmt: skip
    places = runs.download_files(files=series, destination=str(tmp_path))
    contents = [open(path, "rb").read() for path in places["samples"]]  # noqa: SIM115, PTH123
    assert contents == [b"first", b"second!"]


def test_buckets() -> None:
    frame = experiments.fetch_metric_buckets(
        project="ws/lake", experiments=["experiment 0"], x="step", y=["loss"], limit=2
    )
    # The head of experiment 0 is archived and has no loss.
    assert frame.empty
    frame = experiments.fetch_metric_buckets(
        project="ws/lake", experiments=["experiment 1"], x="step", y=["loss"], limit=2
    )
    assert [tuple(row) for row in frame.to_numpy().tolist()] == [(0.0, 1.5), (2.0, 200.0)]


def test_unknown_projects() -> None:
    with pytest.raises(NeptuneProjectInaccessible):
        runs.list_runs(project="ws/nothing")
    with pytest.raises(NeptuneProjectInaccessible):
        runs.list_attributes(project="elsewhere/lake")


def test_what_is_logged_is_there_at_once(served: Any) -> None:
    from neptune_assets_tests.server.reading.store_logging import log

    store = served.service.store.project("ws/growing", create=True)
    for step in range(3):
        log(store, "r", floats={"m": {step: float(step)}}, values={"last": step})
        frame = runs.fetch_runs_table(project="ws/growing", attributes=["m", "last"])
        assert rows(frame) == {"r": {"m": float(step), "last": step}}
        metrics = runs.fetch_metrics(project="ws/growing", runs=["r"], attributes=["m"])
        assert list(metrics["m"]) == [float(number) for number in range(step + 1)]
