"""Recordings of neptune-scale: what was logged is what is read. Made by the real client in processes of its own."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from neptune_assets.sources.offline import SOURCE
from neptune_assets_tests.conformance.sources import SourceCase, SourceContract, read
from neptune_assets_tests.support import scale_recorder as recorder
from neptune_assets_tests.support.scale_reading import offline, points_of, values_of
from neptune_assets_tests.support.scale_recorder import BASE, PROJECT


class TestContract(SourceContract):
    spec = SOURCE

    @pytest.fixture
    def case(self, everything: Path) -> SourceCase:
        return SourceCase(
            open=lambda filters: offline(everything, filters=filters),
            roots=(everything,),
            project=PROJECT,
            run_ids=frozenset({"everything", "defaults", recorder.HOSTILE_RUN}),
            series_run="everything",
            series="m/loss",
            parameter="params/lr",
        )


class TestContractOfKilledRuns(SourceContract):
    spec = SOURCE

    @pytest.fixture
    def case(self, killed: Path, family: Path) -> SourceCase:
        family_ids = {"parent", "child", "plain", "grandchild", "orphan", "resumed", "early", "late"}
        return SourceCase(
            open=lambda filters: offline(killed, family, filters=filters),
            roots=(killed, family),
            project=PROJECT,
            run_ids=frozenset({"killed", *family_ids}),
            series_run="killed",
            series="m",
            parameter="c",
        )


def test_single_values_are_exactly_what_was_logged(everything: Path) -> None:
    rows = read(offline(everything), PROJECT, ["everything"]).rows["everything"]
    expected = dict(recorder.CONFIGS)
    expected["params/set"] = ["", "a"]
    expected["my/set"] = ["y"]
    expected["sys/tags"] = ["", "one", "three"]
    expected["sys/group_tags"] = ["group"]
    expected["sys/name"] = "exp ☃"
    expected["sys/custom_run_id"] = "everything"
    expected["sys/creation_time"] = BASE
    found = values_of(rows)
    assert {path: repr(value) for path, value in found.items() if not isinstance(value, datetime)} == {
        path: repr(value) for path, value in expected.items() if not isinstance(value, datetime)
    }
    assert {path: value for path, value in found.items() if isinstance(value, datetime)} == {
        path: value for path, value in expected.items() if isinstance(value, datetime)
    }
    kinds = {row["attribute_path"]: row["attribute_type"] for row in rows}
    assert (kinds["params/big"], kinds["params/flag"], kinds["params/nan"]) == ("int", "bool", "float")
    assert (kinds["params/when"], kinds["params/set"], kinds["params/empty"]) == ("datetime", "string_set", "string")


def test_points_are_exactly_what_was_logged(everything: Path) -> None:
    rows = read(offline(everything), PROJECT, ["everything"]).rows["everything"]
    expected = [
        (Decimal(step), BASE + timedelta(milliseconds=1001 * number), value)
        for number, (step, value) in enumerate(zip(recorder.STEPS, recorder.VALUES, strict=True))
    ]
    assert repr(_comparable(points_of(rows, "m/loss", "float_value"))) == repr(_comparable(expected))
    assert [point[2] for point in points_of(rows, recorder.LONG_NAME + "/m", "float_value")] == [
        float(n) for n in range(8)
    ]
    assert {point[2] for point in points_of(rows, "Case/m", "float_value")} == {1.0}
    assert {point[2] for point in points_of(rows, "case/m", "float_value")} == {2.0}
    assert points_of(rows, "logs/text", "string_value") == [
        (Decimal(number), BASE + timedelta(seconds=number), text) for number, text in enumerate(recorder.TEXTS)
    ]


def _comparable(points: list[tuple[Decimal, datetime, Any]]) -> list[tuple[Decimal, float, Any]]:
    return [(step.quantize(Decimal("0.000001")), time.timestamp(), value) for step, time, value in points]


def test_histograms_are_exactly_what_was_logged(everything: Path) -> None:
    rows = read(offline(everything), PROJECT, ["everything"]).rows["everything"]
    edges, counts = recorder.COUNTS
    assert points_of(rows, "h/c", "histogram_value") == [
        (Decimal(1), BASE, {"type": "COUNTING", "edges": edges, "values": [float(count) for count in counts]})
    ]
    edges, densities = recorder.DENSITIES
    assert points_of(rows, "h/d", "histogram_value") == [
        (Decimal("1.5"), BASE, {"type": "DENSITY", "edges": edges, "values": densities})
    ]


def test_previews_are_no_points_and_are_told(everything: Path) -> None:
    result = read(offline(everything), PROJECT, ["everything"])
    rows, end = result.rows["everything"], result.ends["everything"]
    assert points_of(rows, "m/preview", "float_value") == []
    assert points_of(rows, "m/superseded", "float_value") == [(Decimal(1), BASE, 9.0)]
    assert end.repairs == {"previews_left_out": 3}
    (note,) = [note for note in end.notes if note.attribute_path is not None]
    assert note.attribute_path == "m/preview"
    assert "2.0" in note.message
    assert "step 2" in note.message
    assert end.errors == ()


def test_files_are_exactly_what_was_logged(everything: Path) -> None:
    source = offline(everything)
    rows = read(source, PROJECT, ["everything"]).rows["everything"]
    contents: dict[tuple[str, Any], bytes] = {}
    names: dict[str, str] = {}
    for row in rows:
        if row["file_value"] is not None:
            (file,) = source.files(PROJECT, "everything", row["file_value"]["path"])
            names[row["attribute_path"]] = file.relative_path
            with file.open() as opened:
                contents[row["attribute_path"], row["step"]] = opened.read()
    assert contents == {
        ("f/bytes", None): recorder.BYTES,
        ("f/path", None): recorder.TEXT_FILE.encode(),
        ("f/empty", None): b"",
        ("f/custom", None): b"custom",
        ("f/series", Decimal(1)): b"file 1",
        ("f/series", Decimal(2)): b"file 2",
        ("f/series", Decimal(3)): b"file 3",
    }
    assert (names["f/path"], names["f/custom"]) == ("note.txt", "my file.bin")


def test_hostile_run_ids_and_the_clients_own_defaults(everything: Path) -> None:
    result = read(offline(everything), PROJECT, [recorder.HOSTILE_RUN, "defaults"])
    assert values_of(result.rows[recorder.HOSTILE_RUN])["sys/custom_run_id"] == recorder.HOSTILE_RUN
    lines = [point[2] for point in points_of(result.rows["defaults"], "runtime/stdout", "string_value")]
    assert "a captured line" in "".join(lines)
    assert "sys/id" not in values_of(result.rows["defaults"])
