from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neptune_assets.errors import TargetError
from neptune_assets.targets.concurrency import ReadyQueue, natural, parents_first, run_concurrently
from neptune_assets.targets.load import load_project
from neptune_assets_tests.support.lake_factory import make_lake, metric
from neptune_assets_tests.support.memory_target import PROJECT, Memory, ledger, project, record

PATIENCE = 60.0


def done_concurrently(parents: dict[str, str | None], at_once: int, job: Callable[[str], str]) -> dict[str, str]:
    return dict(run_concurrently(ReadyQueue(list(parents), parents), at_once, job))


@given(
    st.lists(st.integers(-1, 30), min_size=1, max_size=30),
    st.integers(1, 5),
)
def test_every_run_once_and_forks_after_their_parents(choices: list[int], at_once: int) -> None:
    # Whatever the parents are: earlier, later, oneself, in circles, or not there.
    records = {
        r.run_id: r for r in (record(f"r{i}", None if choice < 0 else f"r{choice}") for i, choice in enumerate(choices))
    }
    order = parents_first(records)
    parents = {run_id: records[run_id].parent for run_id in order}
    begun: list[str] = []
    ended: set[str] = set()
    early: list[str] = []

    def job(run_id: str) -> str:
        begun.append(run_id)
        parent = parents[run_id]
        if parent in parents and order.index(parent) < order.index(run_id) and parent not in ended:
            early.append(run_id)
        ended.add(run_id)
        return run_id

    results = dict(run_concurrently(ReadyQueue(order, parents), at_once, job))
    assert results == {run_id: run_id for run_id in order}
    assert sorted(begun) == sorted(order)
    assert not early
    if at_once == 1:
        assert begun == order


def test_so_many_at_once_and_no_more() -> None:
    together = threading.Barrier(3)
    now, most = 0, 0
    lock = threading.Lock()

    def job(run_id: str) -> str:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        # Three have to be there at the same time for any of them to go on.
        together.wait(PATIENCE)
        with lock:
            now -= 1
        return run_id

    assert len(done_concurrently(dict.fromkeys("abcdefghi"), 3, job)) == 9
    assert most == 3


def test_a_fork_waits_while_others_overtake_it() -> None:
    others = threading.Event()
    begun: list[str] = []

    def job(run_id: str) -> str:
        begun.append(run_id)
        if run_id == "parent":
            assert others.wait(PATIENCE)
        if run_id == "z":
            others.set()
        return run_id

    done_concurrently({"parent": None, "fork": "parent", "y": None, "z": None}, 2, job)
    assert begun == ["parent", "y", "z", "fork"]


def test_one_at_a_time_stays_in_the_callers_thread() -> None:
    names = done_concurrently(dict.fromkeys("abc"), 1, lambda _: threading.current_thread().name)
    assert set(names.values()) == {threading.current_thread().name}


def test_what_a_job_raises_comes_out_after_the_others_have_ended() -> None:
    ended = threading.Event()
    begun = threading.Event()

    def job(run_id: str) -> str:
        if run_id == "a":
            assert begun.wait(PATIENCE)
            raise KeyboardInterrupt
        begun.set()
        ended.wait(0.2)
        ended.set()
        return run_id

    with pytest.raises(KeyboardInterrupt):
        done_concurrently(dict.fromkeys("ab"), 2, job)
    assert ended.is_set()


class Several(Memory):
    """The target of the loop's own tests, for several runs at once."""

    runs_at_once = 3


def test_a_concurrent_load_reports_the_same_as_one_by_one(tmp_path: Path) -> None:
    def trouble(what: str, run_id: str) -> None:
        if what == "replace" and run_id == "b":
            raise TargetError("it refuses.", hint="Do this.")

    names = ["a", "b", *(f"r{number}" for number in range(20)), "torn", "unbalanced"]
    lake = project(tmp_path, *names)
    reports = [
        load_project(lake, lambda kind=kind: kind({}, trouble), ledger(tmp_path / kind.__name__))  # type: ignore[misc]
        for kind in (Memory, Several)
    ]
    one, several = reports
    assert (several.loaded, several.failed, several.receipts, several.notes, several.rows_in) == (
        one.loaded,
        one.failed,
        one.receipts,
        one.notes,
        one.rows_in,
    )
    assert list(several.failed) == list(one.failed) == ["b", "torn", "unbalanced"]
    for run_id, entry in (ledger(tmp_path / "Memory").entries() or {}).items():
        beside = (ledger(tmp_path / "Several").entries() or {})[run_id]
        assert (beside.digest, beside.verified, beside.differences) == (entry.digest, entry.verified, entry.differences)


@pytest.mark.parametrize(("kind", "asked", "most"), [(Memory, 8, 1), (Several, 8, 3), (Several, 2, 2), (Several, 1, 1)])
def test_the_target_and_the_setting_say_how_many(kind: type[Memory], asked: int, most: int, tmp_path: Path) -> None:
    together = threading.Barrier(most)
    seen: list[int] = []
    now = 0
    lock = threading.Lock()

    def trouble(what: str, _: str) -> None:
        nonlocal now
        if what != "replace":
            return
        with lock:
            now += 1
            seen.append(now)
        together.wait(PATIENCE)
        with lock:
            now -= 1

    lake = make_lake(tmp_path, {PROJECT: {f"r{number}": metric("m", [1.0]) for number in range(6)}}).project(PROJECT)
    report = load_project(lake, lambda: kind({}, trouble), ledger(tmp_path), parallel_runs=asked)
    assert len(report.loaded) == 6
    assert max(seen) == most


def test_numbers_in_ids_count_as_numbers() -> None:
    ids = ["PRO-10", "PRO-9", "PRO-1", "a2b10", "a2b9", "a10b1", "", "7", "10"]
    assert sorted(ids, key=natural) == ["", "7", "10", "PRO-1", "PRO-9", "PRO-10", "a2b9", "a2b10", "a10b1"]


@given(st.lists(st.text(st.sampled_from("01a-²٣\x00") | st.characters(), max_size=8), unique=True, max_size=12))
def test_any_ids_have_one_order(ids: list[str]) -> None:
    found, backwards = sorted(ids, key=natural), ids[::-1]
    assert sorted(backwards, key=natural) == found
    assert len({natural(item) for item in ids}) == len(ids)
