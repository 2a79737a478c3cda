from __future__ import annotations

import json
from pathlib import Path

import pytest

from neptune_assets.errors import LakeBusyError, TargetError, TargetUnavailableError
from neptune_assets.targets.concurrency import parents_first
from neptune_assets.targets.ledger import Entry
from neptune_assets.targets.load import load_project
from neptune_assets.targets.protocol import Dropped, Receipt
from neptune_assets.targets.report import RECEIPTS, receipts_reader
from neptune_assets_tests.support.memory_target import PROJECT, Memory, ledger, project, record


def test_parents_come_first_whatever_the_shape() -> None:
    records = {
        r.run_id: r
        for r in [
            record("a", "z"),
            record("b", "a"),
            record("z"),
            record("o", "gone"),
            record("x", "y"),
            record("y", "x"),
        ]
    }
    order = parents_first(records)
    assert sorted(order) == sorted(records)
    assert order.index("z") < order.index("a") < order.index("b")
    assert parents_first({"self": record("self", "self")}) == ["self"]


def test_a_chain_of_ten_thousand_forks() -> None:
    records = {f"r{i:05d}": record(f"r{i:05d}", f"r{i + 1:05d}") for i in range(10_000)}
    assert parents_first(records) == sorted(records, reverse=True)


def test_one_bad_run_never_stops_the_others(tmp_path: Path) -> None:
    def trouble(what: str, run_id: str) -> None:
        if what == "replace" and run_id == "b":
            raise TargetError("it refuses.", hint="Do this.")
        if what == "replace" and run_id == "c":
            raise ValueError("a bug")

    lake = project(tmp_path, "a", "b", "c", "d", "torn", "unbalanced")
    report = load_project(lake, lambda: Memory({}, trouble), ledger(tmp_path))
    assert report.loaded == ["a", "d"]
    assert report.failed["b"] == "it refuses. Do this."
    assert report.failed["c"] == "ValueError: a bug"
    assert "something is gone" in report.failed["torn"]
    assert "0 of 1 float_series rows" in report.failed["unbalanced"]
    assert not report.transient
    table = receipts_reader(report).read_all()
    assert table.schema.equals(RECEIPTS)
    outcomes = dict(zip(table["run_id"].to_pylist(), table["outcome"].to_pylist(), strict=True))
    assert outcomes == {"a": "loaded", "d": "loaded", **dict.fromkeys(["b", "c", "torn", "unbalanced"], "failed")}


def test_what_did_not_read_back_is_loaded_again(tmp_path: Path) -> None:
    store: dict[str, str] = {}
    lake = project(tmp_path, "torn")
    for _ in range(2):
        replaced: list[str] = []
        report = load_project(
            lake,
            lambda seen=replaced: Memory(store, lambda what, _: seen.append(what)),  # type: ignore[misc]
            ledger(tmp_path),
        )
        assert list(report.failed) == ["torn"]
        assert "replace" in replaced


def test_a_load_that_died_before_reading_back_is_read_back(tmp_path: Path) -> None:
    store: dict[str, str] = {}
    lake = project(tmp_path, "a")

    def dies(what: str, _: str) -> None:
        if what == "verify":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_project(lake, lambda: Memory(store, dies), ledger(tmp_path))
    seen: list[str] = []
    report = load_project(lake, lambda: Memory(store, lambda what, _: seen.append(what)), ledger(tmp_path))
    assert report.skipped == ["a"]
    assert "verify" in seen
    assert "replace" not in seen


def test_what_does_not_answer_is_tried_again_with_pauses(tmp_path: Path) -> None:
    calls: list[str] = []
    pauses: list[float] = []

    def trouble(what: str, run_id: str) -> None:
        if what == "replace":
            calls.append(run_id)
            if calls.count(run_id) < 3:
                raise TargetUnavailableError("no answer.", hint="")

    report = load_project(project(tmp_path, "a"), lambda: Memory({}, trouble), ledger(tmp_path), sleep=pauses.append)
    assert report.loaded == ["a"]
    assert pauses == [1.0, 4.0]


def test_a_dead_target_does_not_cost_every_run_its_pauses(tmp_path: Path) -> None:
    pauses: list[float] = []
    dead = False

    def trouble(what: str, _: str) -> None:
        nonlocal dead
        dead = dead or what == "replace"
        if dead:
            raise TargetUnavailableError("gone.", hint="")

    report = load_project(
        project(tmp_path, "a", "b", "c"), lambda: Memory({}, trouble), ledger(tmp_path), sleep=pauses.append
    )
    assert sorted(report.failed) == ["a", "b", "c"]
    assert report.transient
    assert len(pauses) == 3


def test_two_loads_of_one_project_do_not_meet(tmp_path: Path) -> None:
    lake = project(tmp_path, "a")
    with ledger(tmp_path).lock(), pytest.raises(LakeBusyError):
        load_project(lake, lambda: Memory({}), ledger(tmp_path))


def test_progress_counts_every_run(tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    load_project(
        project(tmp_path, "a", "b"), lambda: Memory({}), ledger(tmp_path), progress=lambda *now: seen.append(now)
    )
    assert seen == [(0, 2, 0), (1, 2, 1), (2, 2, 2)]


def test_ledger_keeps_entries_and_survives_a_torn_line(tmp_path: Path) -> None:
    receipt = Receipt(
        PROJECT, "r", "t", "d", {"int": 2}, {"int": 1}, {}, (Dropped("int", "why", 1),), ("n",), 5, {"a": "b"}
    )
    first = ledger(tmp_path)
    first.record(Entry("r", "t", "d", receipt, verified=True))
    first.record(Entry("s", "t2", "d2", differences=("x",), verified=False))
    with Path(first.path).open("ab") as stream:
        stream.write(b'{"run_id": "torn')
    entries = ledger(tmp_path).entries()
    assert entries == {
        "r": Entry("r", "t", "d", receipt, verified=True),
        "s": Entry("s", "t2", "d2", differences=("x",), verified=False),
    }
    again = ledger(tmp_path)
    again.record(Entry("after", "t3", "d3"))
    assert sorted(ledger(tmp_path).entries() or {}) == ["after", "r", "s"]


@pytest.mark.parametrize("line", ['{"run_id": 1}', "[]", "nonsense", json.dumps({"run_id": "a", "unknown": 1})])
def test_ledger_with_a_foreign_line_is_not_trusted(tmp_path: Path, line: str) -> None:
    kept = ledger(tmp_path)
    kept.record(Entry("r", "t", "d"))
    Path(kept.path).write_text(line + "\n" + Path(kept.path).read_text())
    assert ledger(tmp_path).entries() is None
