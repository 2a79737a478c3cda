# ruff: noqa: D102, S101 - tests: asserts, and names that say what they hold
"""What goes wrong: partial runs, crashes, kills, errors, two writers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest

from neptune_assets.errors import LakeBusyError, TargetError, TargetUnavailableError
from neptune_assets.lake.reader import LakeRun
from neptune_assets.targets.protocol import Plan, Receipt, Target
from neptune_assets.targets.report import LoadReport
from neptune_assets.testing.places import (
    PROJECT,
    Place,
    born,
    dying,
    load,
    point,
    text,
)
from neptune_assets.testing.target_case import TargetCase


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
