# ruff: noqa: D102, S101 - tests: asserts, and names that say what they hold
"""Whatever was logged arrives exactly: values, steps, names, files."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from neptune_assets.lake.rows import decimals
from neptune_assets.schema import MICROSTEPS, TIME_TYPE
from neptune_assets.targets.times import iso
from neptune_assets.testing.lakes import file, file_set, files
from neptune_assets.testing.places import (
    BORN_MS,
    Place,
    born,
    histogram,
    load,
    ms,
    param,
    point,
    text,
)
from neptune_assets.testing.target_case import TargetCase


class ValueTests(TargetCase):
    """Values of all types, hostile names, files."""

    def test_parameters_of_every_type_arrive_exactly(self, place: Place, tmp_path: Path) -> None:
        values = [
            ("p/int", "int", 10),
            ("p/max", "int", 2**63 - 1),
            ("p/min", "int", -(2**63)),
            ("p/odd", "int", 2**53 + 1),
            ("p/float", "float", 0.1),
            ("p/tiny", "float", 5e-324),
            ("p/nan", "float", math.nan),
            ("p/inf", "float", math.inf),
            ("p/ninf", "float", -math.inf),
            ("p/text", "string", "plain"),
            ("p/empty", "string", ""),
            ("p/lines", "string", "a\nb\r\n\tc 'q' \"d\" % ü 漢 🙂"),
            ("p/nul", "string", "a\x00b"),
            ("p/long", "string", "x" * 6_500 + "end"),
            ("p/yes", "bool", True),
            ("p/no", "bool", False),
            ("p/when", "datetime", ms(0.123)),
            ("p/set", "string_set", ["b", "a", "c,d"]),
            ("p/none", "string_set", []),
        ]
        self.lake(tmp_path, {"R-1": born(*(param(*value) for value in values))})
        report = self.good(load(place, tmp_path))
        held = self.one(place, "R-1").params
        for path, kind, value in values:
            assert held[path] == self.held_param(kind, value), path
        assert report.rows_in["int"] == 4 == report.written.get("int", 0) + report.mapped.get("int", 0)

    @pytest.mark.parametrize("far", [253_402_300_800_000, -62_135_596_800_001, 2**62, -(2**62)])
    def test_a_time_that_no_calendar_holds_does_not_stop_its_run(self, place: Place, tmp_path: Path, far: int) -> None:
        rows: list[Any] = [
            point("m", 0, 1.0, ms(1)),
            {**point("m", 1, 2.0), "timestamp": far},
            {**text("t", 0, "said"), "timestamp": far},
            {**histogram("h", 0, [0.0, 1.0], [5.0]), "timestamp": far},
            {**param("sys/modification_time", "datetime", None), "datetime_value": far},
            {**param("when", "datetime", None), "datetime_value": far},
        ]
        self.lake(tmp_path, {"R-1": born(*rows), "R-2": [{**row, "run_id": "R-2"} for row in rows]})
        report = self.good(load(place, tmp_path))
        assert report.loaded == ["R-1", "R-2"]
        assert all(receipt.unbalanced() == {} for receipt in report.receipts)
        held = self.one(place, "R-1")
        assert [(step, value) for step, value, _ in held.points["m"]] == [(Decimal(0), 1.0), (Decimal(1), 2.0)]
        if self.kept(report, "string_series"):
            assert held.texts["t"] == [(Decimal(0), "said")]
        assert str(far)[:4] in str(held.params["when"]) or iso(far) in str(held.params["when"])

    def test_points_arrive_exactly(self, place: Place, tmp_path: Path) -> None:
        rows = [
            *(point("m/loss", i, 1 / (i + 1), ms(i)) for i in range(50)),
            point("m/odd", 0, math.nan, ms(1)),
            point("m/odd", 1, math.inf, ms(2)),
            point("m/odd", 2, -math.inf, ms(3)),
            point("m/odd", 3, -0.0, ms(4)),
            point("m/odd", 4, 5e-324, ms(5)),
            point("m/odd", 5, 1.7976931348623157e308, ms(6)),
            point("m/odd", 6, float(2**53 + 2), ms(7)),
            point("m/only_inf", 0, math.inf, ms(1)),
            point("m/negative", -5, 1.0, ms(1)),
            point("m/far", 999_999_999_999, 2.0, ms(1)),
        ]
        self.lake(tmp_path, {"R-1": born(*rows)})
        self.good(load(place, tmp_path))
        self.check_points(self.one(place, "R-1"), rows)

    def test_decimal_steps_never_meet(self, place: Place, tmp_path: Path) -> None:
        rows = [
            *(point("m/hundredth", Decimal(i) / 100, float(i), ms(i)) for i in range(100)),
            *(point("m/micro", Decimal(i).scaleb(-6), float(i), ms(i)) for i in range(20)),
            point("m/far", "999999999999.999999", 1.0, ms(1)),
        ]
        self.lake(tmp_path, {"R-1": born(*rows)})
        self.good(load(place, tmp_path))
        self.check_points(self.one(place, "R-1"), rows)

    def test_points_without_a_time_arrive(self, place: Place, tmp_path: Path) -> None:
        rows = [point("m/x", 0, 1.0, None), point("m/x", 1, 2.0, ms(5))]
        self.lake(tmp_path, {"R-1": born(*rows)})
        report = self.good(load(place, tmp_path))
        self.check_points(self.one(place, "R-1"), rows)
        assert any("time" in note for note in report.notes)

    def test_string_series_are_complete(self, place: Place, tmp_path: Path) -> None:
        lines = [(str(i), f"line {i}\nwith 'break' ü\x00") for i in range(300)]
        rows = [*(text("logs/stdout", step, value) for step, value in lines), text("logs/one", "0.5", "")]
        self.lake(tmp_path, {"R-1": born(*rows)})
        if not self.kept(self.good(load(place, tmp_path)), "string_series"):
            return
        held = self.one(place, "R-1").texts
        assert held["logs/stdout"] == [(Decimal(step), value) for step, value in lines]
        assert held["logs/one"] == [(Decimal("0.5"), "")]

    def test_histograms_are_complete_and_numbers(self, place: Place, tmp_path: Path) -> None:
        rows = [
            histogram("h/w", 0, [0.0, 0.1, 0.30000000000000004], [1.0, 2.0]),
            histogram("h/w", 1, [-1.0, 5e-324, 1e300], [0.0, 3.0]),
            histogram("h/density", 0, [0.0, 1.0], [1.0], "DENSITY"),
            point("m/later", 1000, 1.0),
        ]
        self.lake(tmp_path, {"R-1": born(*rows)})
        if not self.kept(self.good(load(place, tmp_path)), "histogram_series"):
            return
        held = self.one(place, "R-1").histograms
        assert held["h/w"] == [
            (Decimal(0), [0.0, 0.1, 0.30000000000000004], [1.0, 2.0]),
            (Decimal(1), [-1.0, 5e-324, 1e300], [0.0, 3.0]),
        ]
        assert held["h/density"] == [(Decimal(0), [0.0, 1.0], [1.0])]

    def test_hostile_names_stay_apart(self, place: Place, tmp_path: Path) -> None:
        paths = [
            "a/b",
            "a_b",
            "a:b",
            "a.b",
            "a b",
            "a[b]",
            "a(b)",
            "A/B",
            "a//b",
            "/a/b",
            "a/../b",
            "../b",
            "a/b/",
            "a'b",
            'a"b',
            "a%b",
            "a`b",
            "ü/漢/🙂",
            "tab\tname",
            "line\nname",
            "trailing\n",
            ".",
            "..",
            "x" * 1_200,
            "x" * 1_199 + "y",
            "deep/" * 60 + "end",
        ]
        rows = [point(f"m/{path}", 0, float(i)) for i, path in enumerate(paths)]
        rows += [point(path, 0, float(i)) for i, path in enumerate(paths)]
        values = [param(f"{path}~p", "int", i) for i, path in enumerate(paths)]
        self.lake(tmp_path, {"R-1": born(*rows, *values)})
        self.good(load(place, tmp_path))
        held = self.one(place, "R-1")
        self.check_points(held, rows)
        for row in values:
            assert held.params[row["attribute_path"]] == self.held_param("int", row["int_value"])

    def test_hostile_run_and_project_names(self, place: Place, tmp_path: Path) -> None:
        runs = ["it's", 'say "hi"', "50%", "100%s", "ü漢🙂", "a/b", "..", "x" * 300, "semi;colon--", "tags.`a` = 'b'"]
        project = 'wörk\'s/100% "proj"'
        self.lake(tmp_path, {run: born(point("m", 0, float(i))) for i, run in enumerate(runs)}, project)
        self.good(load(place, tmp_path, project))
        state = place.state()
        again = self.good(load(place, tmp_path, project))
        assert again.loaded == []
        assert sorted(again.skipped) == sorted(runs)
        assert place.state() == state
        for i, run in enumerate(runs):
            assert self.one(place, run, project).points["m"][0][1] == float(i)

    def test_files_arrive(self, place: Place, tmp_path: Path) -> None:
        self.lake(
            tmp_path,
            {
                "R-1": born(
                    param("p", "int", 1),
                    file("f/a/model.bin", b"\x00\x01", "model.bin"),
                    file("f/b/model.bin", b"other", "model.bin"),
                    file("f/empty", b""),
                    file("f/pic", b"\x89PNG\r\n\x1a\n", "pic.png"),
                    file("f/pic.png", b"another", "pic.png"),
                    *files("f/series", [b"zero", b"one"], steps=["0", "1.5"], extension="txt"),
                    file_set("f/set", {"a/x.txt": b"x", "b/x.txt": b"y", "..%2f/#1": b"z"}),
                )
            },
        )
        report = self.good(load(place, tmp_path))
        if {self.kept(report, kind) for kind in ("file", "file_series", "file_set")} != {True}:
            return
        held = self.one(place, "R-1").files
        assert held["f/a/model.bin"] == {"": b"\x00\x01"}
        assert held["f/b/model.bin"] == {"": b"other"}
        assert held["f/empty"] == {"": b""}
        assert held["f/pic"] == {"": b"\x89PNG\r\n\x1a\n"}
        assert held["f/pic.png"] == {"": b"another"}
        assert sorted(held["f/series"].values()) == [b"one", b"zero"]
        assert sorted(held["f/set"].values()) == [b"x", b"y", b"z"]

    def test_a_large_file_arrives(self, place: Place, tmp_path: Path) -> None:
        size = 100 << 20
        content = b"large" + bytes(size - 10) + b"file!"
        self.lake(tmp_path, {"R-1": born(file("f/large", content, "large.bin"), file("f/../../up", b"up"))})
        if not self.kept(self.good(load(place, tmp_path)), "file"):
            return
        held = self.one(place, "R-1").files
        assert held["f/large"][""] == content
        assert held["f/../../up"] == {"": b"up"}

    def test_a_file_that_is_gone_is_dropped_with_its_reason(self, place: Place, tmp_path: Path) -> None:
        self.lake(tmp_path, {"R-1": born(file("f/gone", None, "gone.bin"), file("f/here", b"here"))})
        report = self.good(load(place, tmp_path, partial_runs="load"))
        if not self.kept(report, "file"):
            return
        assert sum(rows for (kind, _), rows in report.dropped.items() if kind == "file") == 1
        assert self.one(place, "R-1").files["f/here"] == {"": b"here"}

    @pytest.mark.slow
    def test_a_million_points_in_bounded_memory(self, place: Place, tmp_path: Path) -> None:
        peaks = {}
        for points in (1_000_000, 2_000_000):
            root = tmp_path / str(points)
            self.place_class(root)
            self.lake(root, {"R-1": million(points)})
            name = f"{self.place_class.__module__}:{self.place_class.__qualname__}"
            code = (
                f"from neptune_assets.testing.places import load_and_measure; load_and_measure({name!r}, {str(root)!r})"
            )
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            done = subprocess.run(  # noqa: S603 - this very Python
                [sys.executable, "-c", code], capture_output=True, timeout=580, check=False, env=environment
            )
            assert done.returncode == 0, done.stderr.decode()
            peaks[points] = int(done.stdout.split()[-1])
        assert peaks[1_000_000] < 500 << 20, peaks
        assert peaks[2_000_000] - peaks[1_000_000] < 64 << 20, peaks


def million(points: int, series: int = 10) -> pa.Table:
    """Return that many points in a few series, as a table of the lake's schema but for project and run."""
    each = points // series
    steps = decimals(np.tile(np.arange(each, dtype=np.int64), series) * MICROSTEPS)
    return pa.table(
        {
            "attribute_path": pa.array(np.repeat([f"m/{i}" for i in range(series)], each)),
            "attribute_type": pa.array(["float_series"] * points),
            "step": steps,
            "timestamp": pa.array(BORN_MS + np.tile(np.arange(each), series)).cast(TIME_TYPE),
            "float_value": pa.array(np.random.default_rng(1).normal(size=points)),
        }
    )
