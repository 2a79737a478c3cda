# ruff: noqa: D102, S101 - tests: asserts, and names that say what they hold
"""What every test of a target starts from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pytest

from neptune_assets.lake.reader import LakeProject
from neptune_assets.plugins import TargetSpec
from neptune_assets.targets.report import LoadReport
from neptune_assets.testing.lakes import make_lake
from neptune_assets.testing.places import PROJECT, Held, Place, Rows, same


class TargetCase:
    """What the tests of a target share: its class variables, a place in a fresh directory, and comparing."""

    place_class: ClassVar[type[Place]]
    crash_points: ClassVar[Sequence[str]]
    """``module:Class.method`` of what a load calls while it writes; each is killed before and after."""
    spec: ClassVar[TargetSpec]
    """What the target declares; what it does not keep is demanded as dropped rows with a reason instead."""

    def held_param(self, kind: str, value: Any) -> Any:
        """How the target holds a parameter of this type; written by hand, not with the target's code."""
        raise NotImplementedError

    # -- fixtures and helpers

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return self.place_class(tmp_path)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "crash_point" in metafunc.fixturenames:
            metafunc.parametrize("crash_point", self.crash_points)

    def lake(
        self, root: Path, runs: Mapping[str, Any], project_id: str = PROJECT, partial: Sequence[str] = ()
    ) -> LakeProject:
        """Write a lake beneath ``root``; called again with other rows it replaces runs."""
        broken = {(project_id, run_id): "a file never arrived" for run_id in partial}
        return make_lake(root / "lake", {project_id: dict(runs)}, partial=broken).project(project_id)

    def one(self, place: Place, run_id: str, project_id: str = PROJECT) -> Held:
        held = place.held(project_id)[run_id]
        assert len(held) == 1, f"{run_id} is there {len(held)} times"
        return held[0]

    def check_points(self, held: Held, rows: Rows) -> None:
        """Every float point that was logged is held exactly, and nothing else."""
        logged: dict[str, list[tuple[Decimal, float, datetime | None]]] = {}
        for row in rows:
            if row["attribute_type"] == "float_series":
                value = math.nan if row["float_value"] is None else row["float_value"]
                logged.setdefault(row["attribute_path"], []).append((row["step"], value, row["timestamp"]))
        assert set(held.points) == set(logged)
        for path, points in logged.items():
            points.sort(key=lambda item: item[0])
            got = held.points[path]
            assert [p[0] for p in got] == [p[0] for p in points], path
            for (step, value, when), (_, got_value, got_ms) in zip(points, got, strict=True):
                assert same(value, got_value), (path, step, value, got_value)
                if self.spec.keeps_point_times and when is not None:
                    assert got_ms == round(when.timestamp() * 1000), (path, step)

    def kept(self, report: LoadReport, kind: str) -> bool:
        """True if the target keeps this attribute type; else its loaded rows must be dropped with a reason."""
        kinds = {"string_series": self.spec.keeps_texts, "histogram_series": self.spec.keeps_histograms}
        if kinds.get(kind, self.spec.keeps_files):
            return True
        dropped = {reason: rows for (held, reason), rows in report.dropped.items() if held == kind}
        assert sum(dropped.values()) == report.rows_in[kind], f"{kind}: neither kept nor dropped with a reason"
        assert all(dropped), dropped
        return False

    def good(self, report: LoadReport) -> LoadReport:
        assert not report.failed, report.failed
        return report
