# ruff: noqa: D102, S101 - tests: asserts, and names that say what they hold
"""The promises every target keeps, as one pytest class.

A target's own test module says ``class TestMine(TargetContract)`` and names its :class:`Place`: how to open the target
in a directory, and a reader of what the target really holds that is **independent of the target's own code** (raw SQL,
parsed log files). Everything a place reports is in Neptune's words, so that expectations are what was logged.
"""

from __future__ import annotations

import importlib
import math
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest

from neptune_assets.lake.reader import Lake, LakeProject
from neptune_assets.settings import LakeSettings
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.protocol import Target
from neptune_assets.targets.report import LoadReport
from neptune_assets.testing.lakes import file, file_set, files, make_lake

PROJECT = "ws/proj"
BORN = datetime(2024, 3, 1, 12, 0, 0, tzinfo=UTC)
BORN_MS = 1_709_294_400_000

Rows = list[dict[str, Any]]


@dataclass
class Held:
    """One run as the target really holds it, under Neptune's names and steps."""

    target_id: str
    digest: str | None
    points: dict[str, list[tuple[Decimal, float, int | None]]] = field(default_factory=dict)
    """attribute path -> (step, value, time in ms or None if the target keeps none), by step; wherever kept."""
    params: dict[str, Any] = field(default_factory=dict)
    """attribute path -> value as held; compared with ``TargetContract.held_param``."""
    texts: dict[str, list[tuple[Decimal, str]]] = field(default_factory=dict)
    histograms: dict[str, list[tuple[Decimal, list[float], list[float]]]] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """attribute path -> {anything that tells files of a set or series apart, "" for a single file: content}."""
    tags: set[str] = field(default_factory=set)
    group_tags: set[str] = field(default_factory=set)
    failed: bool = False
    description: str | None = None
    start_ms: int | None = None
    parent: str | None = None
    fork_step: Decimal | None = None


class Place(Protocol):
    """One target in one directory, able to be opened again in another process."""

    def __init__(self, root: Path) -> None:
        """Use ``root`` (which also holds ``lake/``); calling it twice on one directory finds what is there."""

    def open(self) -> Target:
        """Open the target anew."""

    def held(self, project_id: str) -> dict[str, list[Held]]:
        """run id -> everything visible that claims to be this run; more than one means doubled."""

    def damage(self, project_id: str, run_id: str) -> None:
        """Take one stored metric point away behind the target's back."""

    def state(self) -> Any:
        """Anything that differs if a load wrote anything at all."""


class Died(BaseException):
    """Stands for the process dying: not an Exception, so that nobody's handler can tidy up."""


def same(left: float, right: float) -> bool:
    """True if two floats are the same double; every NaN counts as the same."""
    if math.isnan(left) or math.isnan(right):
        return math.isnan(left) and math.isnan(right)
    return struct.pack("<d", left) == struct.pack("<d", right)


def ms(offset_s: float = 0) -> datetime:
    """A moment so many seconds after the run was born."""
    return datetime.fromtimestamp((BORN_MS + round(offset_s * 1000)) / 1000, tz=UTC)


def param(path: str, kind: str, value: Any) -> dict[str, Any]:
    """A row of a parameter type."""
    return {"attribute_path": path, "attribute_type": kind, f"{kind}_value": value}


def point(path: str, step: str | int | Decimal, value: float | None, when: datetime | None = BORN) -> dict[str, Any]:
    """A row of a float series."""
    return {
        "attribute_path": path,
        "attribute_type": "float_series",
        "step": Decimal(step),
        "timestamp": when,
        "float_value": value,
    }


def text(path: str, step: str | int | Decimal, value: str) -> dict[str, Any]:
    """A row of a string series."""
    return {
        "attribute_path": path,
        "attribute_type": "string_series",
        "step": Decimal(step),
        "timestamp": BORN,
        "string_value": value,
    }


def histogram(
    path: str, step: str | int, edges: list[float], values: list[float], kind: str = "COUNTING"
) -> dict[str, Any]:
    """A row of a histogram series."""
    return {
        "attribute_path": path,
        "attribute_type": "histogram_series",
        "step": Decimal(step),
        "timestamp": BORN,
        "histogram_value": {"type": kind, "edges": edges, "values": values},
    }


def born(*rows: dict[str, Any]) -> Rows:
    """Rows of a run with the sys attributes every run has."""
    return [param("sys/creation_time", "datetime", BORN), *rows]


def settings_of(root: Path) -> LakeSettings:
    """The lake beneath a place's directory."""
    return LakeSettings(root=str(root / "lake"))


def load(place: Place, root: Path, project_id: str = PROJECT, **options: Any) -> LoadReport:
    """Load one project of the lake beneath ``root`` as the assets do."""
    settings = settings_of(root)
    target = place.open()
    name = target.name
    target.close()
    return load_project(Lake(settings).project(project_id), place.open, Ledger(settings, name, project_id), **options)


def hook(dotted: str) -> tuple[Any, str]:
    """Resolve ``module:Class.method`` or ``module:function`` to (owner, attribute name)."""
    module, _, path = dotted.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, last = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    return owner, last


def die_at(dotted: str, when: str, act: Callable[[], None]) -> Callable[[], None]:
    """Make the ``when`` ("before" or "after") of the next call of ``dotted`` run ``act``; return the undo."""
    owner, name = hook(dotted)
    original = owner.__dict__[name]

    def dying(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            act()
        result = original(*args, **kwargs)
        act()
        return result

    setattr(owner, name, dying)
    return lambda: setattr(owner, name, original)


def run_and_die(place_class: str, root: str, dotted: str, when: str) -> None:
    """Entry of the child process: load and get killed with SIGKILL at the hook."""
    owner, name = hook(place_class)
    die_at(dotted, when, lambda: os.kill(os.getpid(), signal.SIGKILL))
    load(getattr(owner, name)(Path(root)), Path(root))


class TargetContract:
    """Subclass this as ``Test...`` and set the class variables."""

    place_class: ClassVar[type[Place]]
    crash_points: ClassVar[Sequence[str]]
    """``module:Class.method`` of what a load calls while it writes; each is killed before and after."""
    keeps_point_times: ClassVar[bool] = True
    """False for targets that know one time a step only."""

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
                if self.keeps_point_times and when is not None:
                    assert got_ms == round(when.timestamp() * 1000), (path, step)

    def good(self, report: LoadReport) -> LoadReport:
        assert not report.failed, report.failed
        return report

    # -- values

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
        self.good(load(place, tmp_path))
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
        self.good(load(place, tmp_path))
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
        self.good(load(place, tmp_path))
        held = self.one(place, "R-1").files
        assert held["f/a/model.bin"] == {"": b"\x00\x01"}
        assert held["f/b/model.bin"] == {"": b"other"}
        assert held["f/empty"] == {"": b""}
        assert held["f/pic"] == {"": b"\x89PNG\r\n\x1a\n"}
        assert held["f/pic.png"] == {"": b"another"}
        assert sorted(held["f/series"].values()) == [b"one", b"zero"]
        assert sorted(held["f/set"].values()) == [b"x", b"y", b"z"]

    # -- the run itself

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

    # -- again and again

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

    # -- what goes wrong

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

            def die() -> None:
                raise Died

            undo = die_at(crash_point, when, die)
            try:
                with pytest.raises(Died):
                    load(place, tmp_path)
            finally:
                undo()
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
            assert self.one(place, "R-1").texts["t"] == [(Decimal(0), "new")]

    def test_kill_nine_is_repaired(self, place: Place, tmp_path: Path) -> None:
        rows = {f"R-{i}": born(*(point("m", s, float(s + i)) for s in range(20))) for i in range(3)}
        self.lake(tmp_path, rows)
        name = f"{self.place_class.__module__}:{self.place_class.__qualname__}"
        code = (
            "from neptune_assets.testing.targets import run_and_die;"
            f"run_and_die({name!r}, {str(tmp_path)!r}, {self.crash_points[-1]!r}, 'before')"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        died = subprocess.run(  # noqa: S603 - this very Python
            [sys.executable, "-c", code], capture_output=True, timeout=120, check=False, env=environment
        )
        assert died.returncode == -signal.SIGKILL, died.stderr.decode()
        self.good(load(place, tmp_path))
        for run_id, version in rows.items():
            self.check_points(self.one(place, run_id), version)
