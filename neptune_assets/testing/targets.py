"""The promises every target keeps, as one pytest class.

A target's own test module says ``class TestMine(TargetContract)`` and names its
:class:`~neptune_assets.testing.places.Place`: how to open the target in a directory, and a reader of what the target
really holds that is independent of the target's own code.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from neptune_assets.errors import LakeBusyError, TargetError, TargetUnavailableError
from neptune_assets.lake.reader import Lake, LakeProject, LakeRun
from neptune_assets.lake.rows import decimals
from neptune_assets.plugins import TargetSpec, target_plugins
from neptune_assets.schema import MICROSTEPS, TIME_TYPE
from neptune_assets.settings import NameRules
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.plan import ProjectPlan, plan_project
from neptune_assets.targets.protocol import Plan, Receipt, Target
from neptune_assets.targets.reconcile import Comparison, reconcile
from neptune_assets.targets.report import LoadReport, balance
from neptune_assets.targets.rules import Rules
from neptune_assets.targets.times import iso
from neptune_assets.testing.lakes import file, file_set, files, forget_hashes, make_lake
from neptune_assets.testing.places import (
    BORN,
    BORN_MS,
    PROJECT,
    Died,
    Held,
    Place,
    Rows,
    born,
    die_at,
    dying,
    histogram,
    hook,
    load,
    ms,
    param,
    point,
    same,
    settings_of,
    text,
)

# ruff: noqa: S101 - tests: asserts, and names that say what they hold


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


# ruff: noqa: S101 - tests: asserts, and names that say what they hold


def planned(place: Place, root: Path, **options: Any) -> ProjectPlan:
    """Plan a load of the project beneath ``root``."""
    return plan_project(Lake(settings_of(root)).project(PROJECT), place.open, _ledger(place, root), **options)


def compared(place: Place, root: Path, **options: Any) -> Comparison:
    """Compare the target with the project beneath ``root``."""
    return reconcile(Lake(settings_of(root)).project(PROJECT), place.open, _ledger(place, root), **options)


def _ledger(place: Place, root: Path) -> Ledger:
    target = place.open()
    name = target.name
    target.close()
    return Ledger(settings_of(root), name, PROJECT)


def _flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


class PlanTests(TargetCase):
    """Plan, rules, reports, reconciliation."""

    @pytest.mark.parametrize("damaged", ["a part", "a part from before parts were hashed", "a file"])
    def test_nothing_is_loaded_from_a_damaged_lake_and_the_lake_is_named(
        self, place: Place, tmp_path: Path, damaged: str
    ) -> None:
        good = born(*(point("m", step, math.sin(step)) for step in range(500)), file("f", bytes(range(256)) * 20))
        self.lake(tmp_path, {"R-1": good, "R-2": born(point("m", 0, 1.0))})
        self.good(load(place, tmp_path))
        before = place.held(PROJECT)
        assert compared(place, tmp_path).counts == {"equal": 2}
        lake = Lake(settings_of(tmp_path)).project(PROJECT)
        part = Path(lake.parts()["R-1"][0])
        if damaged == "a file":
            (stored,) = (path for path in (tmp_path / "lake" / "files").rglob("*") if path.is_file())
            _flip(stored, 100)
        elif damaged == "a part":
            _flip(part, part.stat().st_size // 3)
        else:
            # As a part without checksums reads after a flip that happened to decode: other values, no error.
            rows = pq.read_table(part)
            values = pc.multiply(rows["float_value"], 2.0)
            changed = rows.set_column(rows.schema.get_field_index("float_value"), "float_value", values)
            metadata = pq.read_metadata(part).metadata
            kept = {key: metadata[key] for key in metadata if key.startswith(b"neptune_assets")}
            with pq.ParquetWriter(part, changed.schema, store_decimal_as_integer=True) as writer:
                writer.write_table(changed)
                writer.add_key_value_metadata({key.decode(): value.decode() for key, value in kept.items()})
            forget_hashes(tmp_path / "lake")
        report = load(place, tmp_path, full_refresh=True)
        assert list(report.failed) == ["R-1"]
        assert report.loaded == ["R-2"]
        assert not report.transient
        assert "damaged" in report.failed["R-1"]
        assert "full_refresh" in report.failed["R-1"], "the next action is missing"
        balanced = balance(report)
        assert balanced.wrong == []
        assert balanced.fates["float_series"] == {"failed": 500, "written": 1}
        after = place.held(PROJECT)
        assert after["R-1"] == before["R-1"], "the good copy was touched"
        assert len(after["R-2"]) == 1
        if damaged != "a file":
            (wrong,) = compared(place, tmp_path).wrong
            assert (wrong.run_id, wrong.word) == ("R-1", "lake_damaged")
            assert str(part) in wrong.differences[0] or "digest" in wrong.differences[0]

    def test_a_run_whose_id_a_target_cannot_spell_is_still_found(self, place: Place, tmp_path: Path) -> None:
        odd = "nul\x00 and \u202e"
        self.lake(tmp_path, {odd: born(point("m", 0, 1.0)), "plain": born(point("m", 0, 2.0))})
        self.good(load(place, tmp_path))
        assert compared(place, tmp_path).counts == {"equal": 2}

    def test_a_plan_writes_nothing_and_comes_true(self, place: Place, tmp_path: Path) -> None:
        first = {
            "R-1": born(point("m", 0, 1.0), point("m", 1, math.inf), param("none", "float", None)),
            "R-2": born(*(point("m", step, 1.0) for step in ("0.5", "1"))),
            "torn": born(),
        }
        self.lake(tmp_path, first, partial=["torn"])
        state = place.state()
        plan = planned(place, tmp_path)
        assert place.state() == state
        assert (plan.create, plan.replace, plan.skip) == (["R-1", "R-2"], [], [])
        assert list(plan.withhold) == ["torn"]
        assert plan.rows == {"datetime": 2, "float": 1, "float_series": 4}
        assert plan.seconds is None
        report = self.good(load(place, tmp_path))
        assert report.loaded == plan.create
        assert report.rows_in == plan.rows
        assert sum(rows for (_, what, _), rows in plan.unsupported.items() if what == "no value") == sum(
            report.dropped.values()
        )
        self.lake(tmp_path, {**first, "R-2": born(point("m", 0, 2.0)), "R-3": born()}, partial=["torn"])
        state = place.state()
        plan = planned(place, tmp_path)
        assert place.state() == state
        assert (plan.create, plan.replace, plan.skip) == (["R-3"], ["R-2"], ["R-1"])
        assert plan.seconds is not None
        assert planned(place, tmp_path, full_refresh=True).replace == ["R-1", "R-2"]

    def test_every_row_is_accounted_for(self, place: Place, tmp_path: Path) -> None:
        rows = {
            "R-1": born(
                param("p", "int", 1),
                param("none", "string", None),
                point("m", 0, math.inf),
                point("m", 1, math.nan),
                point("secret/m", 0, 1.0),
                text("t", 0, "x"),
                histogram("h", 0, [0.0, 1.0], [1.0]),
                file("f", b"x"),
            ),
            "torn": born(point("m", 0, 1.0)),
        }
        project = self.lake(tmp_path, rows, partial=["torn"])
        for _ in range(2):
            found = balance(load(place, tmp_path, rules=Rules(NameRules(drop=["^secret/"]))))
            assert found.wrong == []
            assert sum(found.lake.values()) == sum(record.total_rows for record in project.records().values()) == 11
            assert all(found.difference(kind) == 0 for kind in found.types)
            assert sum(fates.get("withheld", 0) for fates in found.fates.values()) == 2
            reasons = {(kind, fate, why): count for (kind, fate, why), count in found.reasons.items()}
            assert reasons["float_series", "dropped", "dropped by rule '^secret/'"] == 1

    def test_rules_drop_and_rename_and_never_merge(self, place: Place, tmp_path: Path) -> None:
        kept = [point("metrics/loss", 0, 1.0), point("loss", 0, 2.0), point("other/acc", 0, 3.0)]
        values = [param("hyper/lr", "float", 0.5), param("lr", "float", 0.25)]
        gone = [point("secret/m", 0, 9.0), param("secret/p", "int", 9)]
        self.lake(tmp_path, {"R-1": born(*kept, *values, *gone)})
        rules = Rules(NameRules(drop=["^secret/"], strip=["metrics/", "hyper/"]))
        plan = planned(place, tmp_path, rules=rules)
        assert sum(plan.dropped.values()) == 2
        assert plan.collided == 2
        report = self.good(load(place, tmp_path, rules=rules))
        held = self.one(place, "R-1")
        self.check_points(held, kept)
        assert held.params["hyper/lr"] == self.held_param("float", 0.5)
        assert held.params["lr"] == self.held_param("float", 0.25)
        assert "secret/p" not in held.params
        assert report.dropped == {
            ("float_series", "dropped by rule '^secret/'"): 1,
            ("int", "dropped by rule '^secret/'"): 1,
        }
        assert load(place, tmp_path, rules=rules).skipped == ["R-1"]
        assert not compared(place, tmp_path, rules=rules).wrong
        # Other rules are another load of the same run, which replaces it.
        assert self.good(load(place, tmp_path)).loaded == ["R-1"]
        self.check_points(self.one(place, "R-1"), [*kept, *gone])

    def test_collisions_can_be_refused(self, place: Place, tmp_path: Path) -> None:
        rows = {"R-1": born(point("a/m", 0, 1.0), point("m", 0, 2.0)), "R-2": born(point("a/m", 0, 1.0))}
        self.lake(tmp_path, rows)
        rules = Rules(NameRules(strip=["a/"], collisions="refuse"))
        assert list(planned(place, tmp_path, rules=rules).refuse) == ["R-1"]
        report = load(place, tmp_path, rules=rules)
        assert list(report.failed) == ["R-1"]
        assert report.loaded == ["R-2"]
        assert list(place.held(PROJECT)) == ["R-2"]
        assert balance(report).wrong == []

    def test_a_comparison_finds_what_somebody_changed(self, place: Place, tmp_path: Path) -> None:
        rows = {f"R-{i}": born(*(point("m", s, float(s)) for s in range(10))) for i in range(4)}
        self.lake(tmp_path, {**rows, "torn": born()}, partial=["torn"])
        assert compared(place, tmp_path).counts == {"not_loaded": 4, "withheld": 1}
        self.good(load(place, tmp_path))
        state = place.state()
        assert compared(place, tmp_path).counts == {"equal": 4, "withheld": 1}
        assert place.state() == state
        place.damage(PROJECT, "R-1")
        target = place.open()
        target.remove(PROJECT, "R-2")
        target.close()
        self.lake(tmp_path, {**rows, "R-3": born(), "torn": born()}, partial=["torn"])
        for lost in (False, True):
            if lost:
                for ledger in (tmp_path / "lake" / "targets").rglob("*.jsonl"):
                    ledger.unlink()
            found = compared(place, tmp_path)
            assert {item.run_id: item.word for item in found.runs} == {
                "R-0": "equal",
                "R-1": "differs",
                "R-2": "not_loaded" if lost else "missing",
                "R-3": "outdated",
                "torn": "withheld",
            }
            assert any("m" in difference for difference in found.runs[1].differences)
        assert found.reader().read_all().num_rows >= 5

    def test_a_comparison_finds_a_run_that_the_lake_does_not_know(self, place: Place, tmp_path: Path) -> None:
        self.lake(tmp_path, {"R-1": born(point("m", 0, 1.0)), "R-2": born()})
        self.good(load(place, tmp_path))
        lake = Lake(settings_of(tmp_path)).project(PROJECT).only(["R-1"])
        target = place.open()
        name = target.name
        target.close()
        found = reconcile(lake, place.open, Ledger(settings_of(tmp_path), name, PROJECT))
        assert {item.run_id: item.word for item in found.runs} == {"R-1": "equal", "R-2": "unknown"}


# ruff: noqa: S101 - tests: asserts, and names that say what they hold


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


# ruff: noqa: S101 - tests: asserts, and names that say what they hold


class TroubleTests(TargetCase):
    """What goes wrong is repaired by the next load, and never doubles anything."""

    def test_partial_runs_are_withheld_unless_asked_for(self, place: Place, tmp_path: Path) -> None:
        self.lake(tmp_path, {"whole": born(point("m", 0, 1.0)), "torn": born(point("m", 0, 2.0))}, partial=["torn"])
        report = self.good(load(place, tmp_path, partial_runs="withhold"))
        assert report.loaded == ["whole"]
        assert list(report.withheld) == ["torn"]
        assert list(place.held(PROJECT)) == ["whole"]
        report = self.good(load(place, tmp_path, partial_runs="load"))
        assert report.loaded == ["torn"]
        assert not report.withheld

    def test_crash_leaves_nothing_a_load_does_not_repair(
        self, place: Place, tmp_path: Path, crash_point: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = {"R-1": born(point("m", 0, 1.0), text("t", 0, "old")), "R-2": born(point("m", 0, 2.0))}
        new = {
            "R-1": born(point("m", 0, 9.0), point("n", 1, 3.0), text("t", 0, "new")),
            "R-2": old["R-2"],
            "R-3": born(point("m", 0, 4.0), text("t", 0, "three")),
        }
        for when in ("before", "after"):
            self.lake(tmp_path, old)
            self.good(load(place, tmp_path, full_refresh=True))
            self.lake(tmp_path, new)
            with dying(crash_point, when):
                load(place, tmp_path)
            for run_id, rows in {"R-1": (old["R-1"], new["R-1"]), "R-2": (old["R-2"],)}.items():
                finished = [held for held in place.held(PROJECT).get(run_id, []) if held.digest]
                assert len(finished) <= 1, f"{run_id} is doubled after dying {when} {crash_point}"
                if finished:
                    values = [finished[0].points[path][0][1] for path in sorted(finished[0].points)]
                    wanted = [[r["float_value"] for r in version if "float_value" in r] for version in rows]
                    assert values in wanted, f"{run_id} is a mix after dying {when} {crash_point}"
            self.good(load(place, tmp_path))
            assert sorted(place.held(PROJECT)) == ["R-1", "R-2", "R-3"]
            for run_id, version in new.items():
                held = self.one(place, run_id)
                self.check_points(held, version)
                assert held.digest
            if self.spec.keeps_texts:
                assert self.one(place, "R-1").texts["t"] == [(Decimal(0), "new")]

    def test_kill_nine_is_repaired(self, place: Place, tmp_path: Path) -> None:
        rows = {f"R-{i}": born(*(point("m", s, float(s + i)) for s in range(20))) for i in range(3)}
        deaths = []
        for number, dotted in enumerate(self.crash_points[-4:]):
            root = tmp_path / str(number)
            # Every run stands there already in another form, so that whatever replacing does, is done.
            self.lake(root, {run_id: born(point("old", 0, 1.0)) for run_id in rows})
            self.good(load(self.place_class(root), root))
            self.lake(root, rows)
            deaths.append((str(root), dotted, "before" if number % 2 else "after"))
        name = f"{self.place_class.__module__}:{self.place_class.__qualname__}"
        code = f"from neptune_assets.testing.places import run_and_die; run_and_die({name!r}, {deaths!r})"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        died = subprocess.run(  # noqa: S603 - this very Python
            [sys.executable, "-c", code], capture_output=True, timeout=240, check=False, env=environment
        )
        assert died.returncode == 0, died.stderr.decode()
        for home, _, _ in deaths:
            again = self.place_class(Path(home))
            self.good(load(again, Path(home)))
            assert {run_id: len(held) for run_id, held in again.held(PROJECT).items()} == dict.fromkeys(rows, 1)
            for run_id, version in rows.items():
                self.check_points(self.one(again, run_id), version)

    def test_an_answer_that_is_lost_doubles_nothing(self, place: Place, tmp_path: Path) -> None:
        rows = {f"R-{i}": born(point("m", 0, float(i))) for i in range(2)}
        self.lake(tmp_path, rows)
        lost: list[str] = []

        def lose(run_id: str) -> None:
            if lost.count(run_id) < 2:
                lost.append(run_id)
                raise TargetUnavailableError(f"no answer about {run_id}.", hint="")

        report = self.good(load(Troubled(place, lose), tmp_path, sleep=lambda _: None))
        # Targets that take several runs at once meet the trouble in any order.
        assert sorted(lost) == ["R-0", "R-0", "R-1", "R-1"]
        assert report.loaded == ["R-0", "R-1"]
        for run_id, version in rows.items():
            self.check_points(self.one(place, run_id), version)

    def test_an_error_that_stays_fails_one_run_and_no_other(self, place: Place, tmp_path: Path) -> None:
        rows = {f"R-{i}": born(point("m", 0, float(i))) for i in range(3)}
        self.lake(tmp_path, rows)

        def refuse(run_id: str) -> None:
            if run_id == "R-1":
                raise TargetError("the target does not want R-1.", hint="Ask why.")

        report = load(Troubled(place, refuse), tmp_path)
        assert list(report.failed) == ["R-1"]
        assert not report.transient
        assert report.loaded == ["R-0", "R-2"]
        again = self.good(load(place, tmp_path))
        assert sorted(again.loaded + again.skipped) == sorted(rows)
        for run_id, version in rows.items():
            self.check_points(self.one(place, run_id), version)

    def test_two_writers_do_not_double(self, place: Place, tmp_path: Path) -> None:
        rows = {f"R-{i}": born(*(point("m", s, float(s + i)) for s in range(50))) for i in range(4)}
        self.lake(tmp_path, rows)
        together = threading.Barrier(2)

        def write(_: int) -> LoadReport | None:
            together.wait()
            try:
                return load(place, tmp_path)
            except LakeBusyError:
                return None

        with ThreadPoolExecutor(2) as pool:
            reports = [report for report in pool.map(write, range(2)) if report is not None]
        assert reports
        assert sorted(run_id for report in reports for run_id in report.loaded) == sorted(rows)
        for run_id, version in rows.items():
            self.check_points(self.one(place, run_id), version)


class Troubled:
    """A place whose targets do what they should and then run into ``trouble``."""

    def __init__(self, place: Place, trouble: Callable[[str], None]) -> None:
        self._place, self._trouble = place, trouble

    def open(self) -> Target:
        """Open the target, its answers to be lost."""
        target = self._place.open()
        replace = target.replace

        def then(run: LakeRun, plan: Plan) -> Receipt:
            receipt = replace(run, plan)
            self._trouble(run.run_id)
            return receipt

        target.replace = then  # type: ignore[method-assign]
        return target


# ruff: noqa: S101 - tests: asserts, and names that say what they hold


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


__all__ = [
    "BORN",
    "BORN_MS",
    "PROJECT",
    "Died",
    "Held",
    "Place",
    "Rows",
    "TargetContract",
    "born",
    "die_at",
    "dying",
    "histogram",
    "hook",
    "load",
    "ms",
    "param",
    "point",
    "same",
    "settings_of",
    "text",
]


class TargetContract(ValueTests, RunTests, ReloadTests, TroubleTests, PlanTests):
    """Subclass this as ``Test...`` and set the class variables."""
