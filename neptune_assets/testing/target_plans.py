# ruff: noqa: D102, S101 - tests: asserts, and names that say what they hold
"""What is said before a load comes true, rules for names hold, and a later comparison finds every change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from neptune_assets.lake.reader import Lake
from neptune_assets.settings import NameRules
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.plan import ProjectPlan, plan_project
from neptune_assets.targets.reconcile import Comparison, reconcile
from neptune_assets.targets.report import balance
from neptune_assets.targets.rules import Rules
from neptune_assets.testing.lakes import file, forget_hashes
from neptune_assets.testing.places import PROJECT, Place, born, histogram, load, param, point, settings_of, text
from neptune_assets.testing.target_case import TargetCase


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
        assert sum(rows for (_, what, _), rows in plan.unfit.items() if what == "no value") == sum(
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
