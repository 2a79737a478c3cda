from __future__ import annotations

import math
from typing import Any

import pytest

from neptune_assets.schema import AttributeType
from neptune_assets.server.neptune2.responses import BadRequestError
from neptune_assets.server.neptune2.writing import (
    Assign,
    ChangeSet,
    Clear,
    Configure,
    Delete,
    DeleteFiles,
    Log,
    Point,
    needs_numbers,
    parse_operations,
)


def one(name: str, **body: Any) -> Any:
    (operation,) = parse_operations([{"path": "a/b", name: body}])
    return operation


def point(value: Any, step: Any = None, time: Any = 5) -> dict[str, Any]:
    return {"value": value, "step": step, "timestampMilliseconds": time}


@pytest.mark.parametrize(
    ("name", "body", "kind", "value"),
    [
        ("assignFloat", {"value": 2}, AttributeType.FLOAT, 2.0),
        ("assignInt", {"value": -(2**63)}, AttributeType.INT, -(2**63)),
        ("assignInt", {"value": 3.0}, AttributeType.INT, 3),
        ("assignBool", {"value": False}, AttributeType.BOOL, False),
        ("assignString", {"value": ""}, AttributeType.STRING, ""),
        ("assignDatetime", {"valueMilliseconds": -1}, AttributeType.DATETIME, -1),
        ("assignArtifact", {"hash": "ab"}, AttributeType.ARTIFACT, "ab"),
    ],
)
def test_values(name: str, body: dict[str, Any], kind: AttributeType, value: Any) -> None:
    operation = one(name, **body)
    assert operation == Assign("a/b", kind, value)
    assert type(operation.value) is type(value)


def test_points_keep_steps_to_the_millionth() -> None:
    entries = [point(1, 0.1), point(math.nan, 2), point(3, None, 7.9)]
    log = one("logFloats", entries=entries)
    assert isinstance(log, Log)
    assert [(item.step, item.time) for item in log.points] == [(100_000, 5), (2_000_000, 5), (None, 7)]
    assert log.points[0].value == 1.0
    assert math.isnan(log.points[1].value)
    assert needs_numbers([log])
    assert not needs_numbers([one("logFloats", entries=entries[:2])])


def test_the_other_operations() -> None:
    assert one("logStrings", entries=[point("x", 1)]) == Log(
        "a/b", AttributeType.STRING_SERIES, [Point(1_000_000, 5, "x")]
    )
    assert one("clearImageSeries") == Clear("a/b", AttributeType.FILE_SERIES)
    assert one("configFloatSeries", min=0, unit="m") == Configure("a/b", {"min": 0, "max": None, "unit": "m"})
    assert one("insertStrings", values=["x"]) == ChangeSet("a/b", ["x"], add=True)
    assert one("removeStrings", values=["x"]) == ChangeSet("a/b", ["x"], add=False)
    assert one("deleteAttribute") == Delete("a/b")
    assert one("deleteFiles", filePaths=["x"]) == DeleteFiles("a/b", ["x"])


@pytest.mark.parametrize(
    "item",
    [
        "text",
        {"assignInt": {"value": 1}},
        {"path": "", "assignInt": {"value": 1}},
        {"path": "a"},
        {"path": "a", "assignInt": {"value": 1}, "assignFloat": {"value": 1}},
        {"path": "a", "assignInt": 1},
        {"path": "a", "assignNothing": {}},
        {"path": "a", "assignInt": {"value": 2**63}},
        {"path": "a", "assignInt": {"value": 1.5}},
        {"path": "a", "assignInt": {"value": True}},
        {"path": "a", "assignFloat": {"value": "1"}},
        {"path": "a", "assignFloat": {"value": 10**400}},
        {"path": "a", "assignString": {"value": 1}},
        {"path": "a", "assignDatetime": {"valueMilliseconds": 10**18}},
        {"path": "a", "logFloats": {}},
        {"path": "a", "logFloats": {"entries": [point(None)]}},
        {"path": "a", "logFloats": {"entries": [point(1, 10**12)]}},
        {"path": "a", "logFloats": {"entries": [point(1, True)]}},
        {"path": "a", "logFloats": {"entries": [point(1, 1, None)]}},
        {"path": "a", "logStrings": {"entries": [point(1)]}},
        {"path": "a", "logImages": {"entries": [point("data")]}},
        {"path": "a", "insertStrings": {"values": [1]}},
    ],
)
def test_mistakes_are_told_with_their_place(item: Any) -> None:
    with pytest.raises(BadRequestError, match="Operation 1"):
        parse_operations([{"path": "ok", "deleteAttribute": {}}, item])


def test_a_body_must_be_a_list() -> None:
    with pytest.raises(BadRequestError, match="list"):
        parse_operations({"path": "a"})
