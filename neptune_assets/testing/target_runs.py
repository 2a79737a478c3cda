# ruff: noqa: D102, S101 - tests: asserts, and names that say what they hold
"""A run is itself in the target: what it says of itself, its forks, and loading it again."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path

from neptune_assets.plugins import target_plugins
from neptune_assets.testing.places import (
    BORN_MS,
    PROJECT,
    Place,
    Rows,
    born,
    histogram,
    load,
    ms,
    param,
    point,
    text,
)
from neptune_assets.testing.target_case import TargetCase


class RunTests(TargetCase):
    """The run itself."""

    def test_opens_what_its_entry_point_declares(self, place: Place) -> None:
        found = target_plugins()
        assert found.specs.get(self.spec.name) is self.spec, found.broken
        self.spec.check_installed()
        target = place.open()
        try:
            assert target.name == self.spec.name
        finally:
            target.close()

    def test_empty_run(self, place: Place, tmp_path: Path) -> None:
        self.lake(tmp_path, {"R-1": born()})
        self.good(load(place, tmp_path))
        assert self.one(place, "R-1").points == {}

    def test_what_a_run_says_of_itself(self, place: Place, tmp_path: Path) -> None:
        tags = ["best", "it's", "ü/x", "a,b", "A", "a"]
        self.lake(
            tmp_path,
            {
                "R-1": born(
                    param("sys/tags", "string_set", tags),
                    param("sys/group_tags", "string_set", ["g1"]),
                    param("sys/failed", "bool", True),
                    param("sys/description", "string", "what it was for"),
                    point("m", 0, 1.0, ms(60)),
                ),
                "R-2": born(point("m", 0, 1.0, ms(60))),
            },
        )
        self.good(load(place, tmp_path))
        held = self.one(place, "R-1")
        assert held.tags == set(tags)
        assert held.group_tags == {"g1"}
        assert held.failed
        assert held.description == "what it was for"
        assert held.start_ms == BORN_MS
        assert not self.one(place, "R-2").failed

    def test_forks_and_orphans(self, place: Place, tmp_path: Path) -> None:
        def child(of: str, step: str) -> Rows:
            return born(
                param("sys/forking/parent", "string", of),
                param("sys/forking/step", "float", float(step)),
                point("m", 5, 1.0),
            )

        self.lake(
            tmp_path,
            {
                "A-child": child("Z-parent", "2.5"),
                "B-grandchild": child("A-child", "3"),
                "Z-parent": born(point("m", 0, 1.0)),
                "orphan": child("gone", "1"),
                "loop1": child("loop2", "1"),
                "loop2": child("loop1", "1"),
            },
        )
        report = self.good(load(place, tmp_path))
        order = report.loaded
        assert order.index("Z-parent") < order.index("A-child") < order.index("B-grandchild")
        assert self.one(place, "A-child").parent == "Z-parent"
        assert self.one(place, "A-child").fork_step == Decimal("2.5")
        assert self.one(place, "orphan").parent == "gone"
        assert self.one(place, "Z-parent").parent is None
        assert {run: len(held) for run, held in place.held(PROJECT).items()} == dict.fromkeys(order, 1)

    def test_two_projects_with_one_run_id(self, place: Place, tmp_path: Path) -> None:
        for number, project in enumerate(["ws/one", "ws/two"]):
            self.lake(tmp_path, {"RUN-1": born(point("m", 0, float(number)))}, project)
        for project in ["ws/one", "ws/two"]:
            self.good(load(place, tmp_path, project))
        assert self.one(place, "RUN-1", "ws/one").points["m"][0][1] == 0.0
        assert self.one(place, "RUN-1", "ws/two").points["m"][0][1] == 1.0


class ReloadTests(TargetCase):
    """Loading again, and again."""

    def test_same_digest_writes_nothing(self, place: Place, tmp_path: Path) -> None:
        self.lake(tmp_path, {"R-1": born(point("m", 0, 1.0), text("t", 0, "x"), param("p", "int", 1))})
        assert self.good(load(place, tmp_path)).loaded == ["R-1"]
        state = place.state()
        report = self.good(load(place, tmp_path))
        assert report.loaded == []
        assert report.skipped == ["R-1"]
        assert place.state() == state

    def test_changed_and_shrunken_runs_are_replaced(self, place: Place, tmp_path: Path) -> None:
        other = born(point("m", 0, 7.0))
        first = born(*(point("m", i, float(i)) for i in range(20)), point("gone", 0, 1.0), param("p", "int", 1))
        self.lake(tmp_path, {"R-1": first, "R-2": other})
        self.good(load(place, tmp_path))
        before = self.one(place, "R-2")
        second = born(*(point("m", i, -float(i)) for i in range(1, 6)), param("p", "int", 2))
        self.lake(tmp_path, {"R-1": second, "R-2": other})
        report = self.good(load(place, tmp_path))
        assert report.loaded == ["R-1"]
        assert report.skipped == ["R-2"]
        held = self.one(place, "R-1")
        self.check_points(held, second)
        assert held.params["p"] == self.held_param("int", 2)
        assert self.one(place, "R-2") == before

    def test_full_refresh_loads_again_without_doubling(self, place: Place, tmp_path: Path) -> None:
        rows = born(point("m", 0, 1.0), text("t", 0, "x"))
        self.lake(tmp_path, {"R-1": rows})
        self.good(load(place, tmp_path))
        assert self.good(load(place, tmp_path, full_refresh=True)).loaded == ["R-1"]
        self.check_points(self.one(place, "R-1"), rows)

    def test_lost_ledger_is_rebuilt_from_the_target(self, place: Place, tmp_path: Path) -> None:
        project = self.lake(tmp_path, {"R-1": born(point("m", 0, 1.0)), "R-2": born()})
        self.good(load(place, tmp_path))
        ledger = tmp_path / "lake" / "targets"
        removed = list(ledger.rglob("*.jsonl"))
        assert removed
        for item in removed:
            item.write_bytes(b"\x00 not json\n{")
        state = place.state()
        report = self.good(load(place, tmp_path))
        assert report.loaded == []
        assert sorted(report.skipped) == ["R-1", "R-2"]
        assert place.state() == state
        target = place.open()
        try:
            found = {run.run_id: run.digest for run in target.runs(PROJECT)}
        finally:
            target.close()
        assert found == {run: record.digest for run, record in project.records().items()}

    def test_receipts_balance(self, place: Place, tmp_path: Path) -> None:
        rows = born(
            param("p", "int", 1),
            point("m", 0, math.inf),
            point("m", 1, math.nan),
            text("t", 0, "x"),
            histogram("h", 0, [0.0, 1.0], [1.0]),
        )
        project = self.lake(tmp_path, {"R-1": rows})
        target = place.open()
        try:
            target.check()
            run = project.run("R-1")
            receipt = target.replace(run, target.plan(run))
        finally:
            target.close()
        assert receipt.unbalanced() == {}
        assert dict(receipt.rows_in) == dict(project.records()["R-1"].rows)
        assert receipt.digest == project.records()["R-1"].digest

    def test_verify_finds_a_missing_point(self, place: Place, tmp_path: Path) -> None:
        project = self.lake(tmp_path, {"R-1": born(*(point("m", i, float(i)) for i in range(10)))})
        target = place.open()
        run = project.run("R-1")
        receipt = target.replace(run, target.plan(run))
        target.close()
        fresh = place.open()
        assert fresh.verify(run, receipt).ok
        fresh.close()
        place.damage(PROJECT, "R-1")
        fresh = place.open()
        verdict = fresh.verify(run, receipt)
        fresh.close()
        assert not verdict.ok
        assert any("m" in difference for difference in verdict.differences)

    def test_remove(self, place: Place, tmp_path: Path) -> None:
        self.lake(tmp_path, {"R-1": born(point("m", 0, 1.0)), "R-2": born(point("m", 0, 2.0))})
        self.good(load(place, tmp_path))
        target = place.open()
        target.remove(PROJECT, "R-1")
        target.remove(PROJECT, "never there")
        assert target.find(PROJECT, "R-1") is None
        target.close()
        assert list(place.held(PROJECT)) == ["R-2"]
