"""Runs of every size read together: what each is alone, in order, and what arrived whole stays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from neptune_assets.errors import SourceUnavailableError
from neptune_assets.schema import SCHEMA
from neptune_assets.sources.neptune2.source import Neptune2
from neptune_assets.sources.protocol import RunEnd, RunRows
from neptune_assets.testing.sources import key, read
from neptune_assets_tests.sources.neptune2.stub import PROJECT, Container, Stub, attribute, token_for
from neptune_assets_tests.support.faulty_proxy import Fault, FaultyProxy

Make = Callable[..., Neptune2]
SERVERS_OWN = 4
"""Values that the stub gives to every run."""


def containers() -> dict[str, Container]:
    """Runs of every size, by what is special about them."""
    made = {
        "small": Container("P-00", attributes=[attribute("p", "float", value=0.5)]),
        "nothing": Container("P-01"),
        "points": Container("P-02"),
        "long": Container("P-03", attributes=[attribute("p", "int", value=3)]),
        "broad": Container("P-04", attributes=[attribute(f"p/{n:05}", "int", value=n) for n in range(5_000)]),
        "mixed": Container("P-05", attributes=[attribute("tags", "stringSet", values=["b", "a"])]),
        "gone": Container("P-06", gone=True),
        "texts": Container("P-07", attributes=[attribute("text", "string", value="x" * 1_000_000)]),
        "wide": Container("P-08"),
        "last": Container("P-09", attributes=[attribute("p", "bool", value=True)]),
    }
    made["points"].floats("m", (0, 5, 1.0), (0.5, 6, 2.0))
    made["long"].floats("m", *((step, step, step / 2) for step in range(9_000)))
    made["long"].strings("log", *((step, step, f"line {step}") for step in range(1_500)))
    made["mixed"].floats("m", (7, 7, 7.0))
    made["mixed"].strings("log", (1, 1, ""), (2, 2, "☃"))
    for number in range(300):
        made["wide"].floats(f"m/{number:03}", *((step, step, number + step / 100) for step in range(20)))
    return made


def logged(container: Container) -> list[tuple[Any, ...]]:
    """Path, step and value of everything that was put into a run, but for the server's own values."""
    points = [(path, float(step), value) for path, points in container.points.items() for step, _, value in points]
    values = [
        (item["name"], None, properties.get("value", properties.get("values")))
        for item in container.attributes
        if not item["type"].endswith("Series")
        for properties in [item[f"{item['type']}Properties"]]
    ]
    return sorted(
        ((path, step, sorted(v) if isinstance(v, list) else v) for path, step, v in points + values), key=repr
    )


def found(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    kept = [row for row in rows if not row["attribute_path"].startswith("sys/")]
    assert len(rows) - len(kept) == SERVERS_OWN
    columns = [name for name in SCHEMA.names if name.endswith("_value")]
    return sorted(
        (
            (
                row["attribute_path"],
                None if row["step"] is None else float(row["step"]),
                next(row[name] for name in columns if row[name] is not None),
            )
            for row in kept
        ),
        key=repr,
    )


@pytest.mark.parametrize("settings", [{}, {"concurrency": 1}, {"points_per_page": 50}], ids=str)
def test_runs_of_every_size_come_whole_and_in_order(stub: Stub, source: Make, settings: Mapping[str, Any]) -> None:
    made = containers()
    stub.containers += made.values()
    ids = [container.run_id for container in made.values()]
    result = read(source(**settings), PROJECT, ids)
    assert list(result.ends) == ids
    for name, container in made.items():
        end = result.ends[container.run_id]
        assert bool(end.errors) == (name == "gone")
        if name == "gone":
            assert end.promised is None
            continue
        assert found(result.rows[container.run_id]) == logged(container), name
        kinds = [item["type"] for item in container.described()]
        assert end.promised is not None
        assert sum(end.promised.values()) == len(kinds)
        assert end.promised.get("float_series", 0) == kinds.count("floatSeries")


def test_a_run_read_alone_is_what_it_is_among_others(stub: Stub, source: Make) -> None:
    made = containers()
    stub.containers += made.values()
    together = read(source(), PROJECT, [container.run_id for container in made.values()])
    for container in made.values():
        alone = read(source(), PROJECT, [container.run_id])
        assert alone.ends[container.run_id] == together.ends[container.run_id]
        assert sorted(map(key, alone.rows.get(container.run_id, []))) == sorted(
            map(key, together.rows.get(container.run_id, []))
        )


@pytest.mark.parametrize("values", [0, 5_000], ids=["small", "large"])
def test_what_no_row_can_hold_is_told_by_its_run_and_leaves_the_others_alone(
    stub: Stub, source: Make, values: int
) -> None:
    bad = Container(
        "P-1",
        attributes=[
            attribute("huge", "int", value=2**63),
            attribute("odd", "string", value="\ud800"),
            attribute("odd \ud800", "int", value=1),
            attribute("odd series \ud800", "floatSeries"),
            attribute("set", "stringSet", values=["fine", "\ud800"]),
            attribute("fine", "int", value=1),
            attribute("year 58000", "datetime", value="+58000-01-01T00:00:00.123Z"),
            *(attribute(f"p/{number}", "int", value=number) for number in range(values)),
        ],
    )
    bad.strings("log", (0, 0, "fine"), (1, 1, "\ud800"))
    bad.floats("far", (1e13, 0, 1.0))
    bad.floats("late", (1, 2**60, 1.0))
    bad.floats("good", (1, 1, 2.0))
    stub.containers += [Container("P-0"), bad, Container("P-2", attributes=[attribute("p", "int", value=1)])]
    result = read(source(), PROJECT, ["P-0", "P-1", "P-2"])
    assert {issue.attribute_path for issue in result.ends["P-1"].errors} == {
        "huge",
        "odd",
        "odd \\ud800",
        "odd series \\ud800",
        "set",
        "log",
        "far",
    }
    kept = [row for row in result.rows["P-1"] if not row["attribute_path"].startswith(("sys/", "p/"))]
    assert {row["attribute_path"] for row in kept} == {"fine", "good", "late", "log", "year 58000"}
    assert len(result.paths("P-1")) == SERVERS_OWN + values + 5
    assert [row["string_value"] for row in kept if row["attribute_path"] == "log"] == ["fine"]
    assert [row["timestamp"] for row in kept if row["attribute_path"] == "late"] == [None]
    (note,) = (item for item in result.ends["P-1"].notes if "'late'" in item.message)
    assert "without a time" in note.message
    for run_id in ("P-0", "P-2"):
        assert not result.ends[run_id].errors
    assert ("p", "int") in result.paths("P-2")


def test_what_arrived_whole_stays_when_the_server_goes_away(
    stub: Stub, source: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        run = Container(f"P-{number}")
        run.floats(f"m{number}", (0, 0, 1.0))
        stub.containers.append(run)
    with FaultyProxy(stub.url).running() as proxy:
        monkeypatch.setenv("NEPTUNE_API_TOKEN", token_for(proxy.url))
        opened = source(retry_seconds=0.5)
        opened.runs(PROJECT)
        for path in ("attribute=m2", "projects/get"):
            proxy.faults.append(Fault(path, kind="drop", times=10_000))
        came: list[RunRows | RunEnd] = []
        with pytest.raises(SourceUnavailableError):
            came.extend(opened.read(PROJECT, ["P-0", "P-1", "P-2"]))
    # extend() keeps what came before the error.
    assert [chunk.run_id for chunk in came if isinstance(chunk, RunEnd)] == ["P-0", "P-1"]


def test_threads_end_when_reading_is_left_off(stub: Stub, source: Make) -> None:
    made = containers()
    stub.containers += made.values()
    chunks = source().read(PROJECT, [container.run_id for container in made.values()])
    next(iter(chunks))
    chunks.close()
    for thread in threading.enumerate():
        if thread.name.startswith("neptune2"):
            thread.join(60)
            assert not thread.is_alive()


def test_pages_of_series_are_asked_for_without_building_each_request_anew(
    stub: Stub, source: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bravado import client

    built: list[str] = []
    construct = client.construct_request

    def counted(operation: Any, *arguments: Any, **parameters: Any) -> Any:
        built.append(operation.operation_id)
        return construct(operation, *arguments, **parameters)

    monkeypatch.setattr(client, "construct_request", counted)
    run = Container("P-0")
    run.floats("a path/ü?&=%", *((step, step, float(step)) for step in range(1_000)))
    stub.containers.append(run)
    result = read(source(points_per_page=10, concurrency=1), PROJECT, ["P-0"])
    assert [row["float_value"] for row in result.rows["P-0"] if row["step"] is not None] == [
        float(step) for step in range(1_000)
    ]
    assert stub.asked("/series/float") == 100
    assert built.count("getFloatSeriesValues") == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault("series/float", status=429, headers={"Retry-After": "0.1"}, after=3),
        Fault("series/float", status=401, body=b'{"errorType": "AUTHORIZATION_TOKEN_EXPIRED"}', after=3),
        Fault("series/float", kind="drop", after=3, times=2),
        Fault("series/float", kind="lose", after=3),
        Fault("series/float", kind="garble", after=3),
        Fault("series/float", kind="cut", after=3),
    ],
    ids=["429", "expired", "drop", "lose", "garble", "cut"],
)
def test_what_passes_heals_on_later_pages_too(
    stub: Stub, source: Make, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    run = Container("P-0")
    run.floats("m", *((step, step, float(step)) for step in range(1_000)))
    stub.containers.append(run)
    planned = Fault(**vars(fault))
    with FaultyProxy(stub.url).running() as proxy:
        monkeypatch.setenv("NEPTUNE_API_TOKEN", token_for(proxy.url))
        proxy.faults.append(planned)
        result = read(source(points_per_page=100), PROJECT, ["P-0"])
    assert not result.ends["P-0"].errors
    assert [row["float_value"] for row in result.rows["P-0"] if row["step"] is not None] == [
        float(step) for step in range(1_000)
    ]
    assert planned.times == 0, "the fault was never met"
