"""What is left after a power cut, at any moment, in every state that POSIX allows; and that no fsync is superfluous."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from neptune_assets_tests.powercut.disk import State, fast_place, put, states
from neptune_assets_tests.powercut.recording import Recording, Sync, need_strace, record
from neptune_assets_tests.powercut.scenarios import SCENARIOS, Scenario


class Replay:
    """One recording of a scenario, and the place where its states are put: the paths it was recorded with."""

    def __init__(self, scenario: Scenario, base: Path) -> None:
        self.scenario = scenario
        self.base = base
        self.root = base / "root"
        scenario.prepare(self.root)
        self.recording: Recording = record(self.root, scenario.work_name, base / "log")

    def check(self, state: State) -> None:
        put(state.tree, self.base, self.root)
        self.scenario.check(self.root, state.labels)

    def converge(self) -> None:
        self.scenario.converge(self.root)


@cache
def replay(name: str, base: Path) -> Replay:
    return Replay(SCENARIOS[name], base)


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    need_strace()
    with fast_place() as path:
        yield path


def place(base: Path, name: str) -> Path:
    path = base / f"{list(SCENARIOS).index(name)}"
    path.mkdir(exist_ok=True)
    return path


def replay_states(name: str, base: Path, *, limit: int, samples: int = 0, every_cut: int = 1) -> tuple[int, int]:
    """Open about ``limit`` states, of each kind as many, and do the work again on top of some.

    Return how many were opened, and how many there are.
    """
    found = replay(name, place(base, name))
    there = Counter(state.group for state in states(found.recording, samples, every=every_cut))
    steps = {group: max(1, count * len(there) // limit) for group, count in there.items()}
    met: Counter[str] = Counter()
    opened = 0
    for state in states(found.recording, samples, every=every_cut):
        met[state.group] += 1
        if met[state.group] % steps[state.group]:
            continue
        try:
            found.check(state)
            if opened % 20 == 0:
                found.converge()
        except Exception as error:
            before = found.recording.operations[max(0, state.cut - 4) : state.cut]
            told = "\n".join(f"{operation!r:.200}" for operation in before)
            raise AssertionError(f"cut after {state.cut} operations, {state.kind}:\n{told}") from error
        opened += 1
    return opened, there.total()


@pytest.mark.parametrize("name", ["replace of runs in one commit", "first summary", "answers of the server"])
def test_a_power_cut_leaves_the_old_or_the_new(base: Path, name: str) -> None:
    opened, _ = replay_states(name, base, limit=100, every_cut=17)
    assert opened > 30


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_ten_thousand_states_after_a_power_cut(base: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    opened, there = replay_states(name, base, limit=2_000, samples=2)
    with capsys.disabled():
        took = time.monotonic() - start
        print(f"\n{opened:7,} of {there:7,} states of: {name} ({took:.0f} s)", end="", flush=True)
    assert opened * len(SCENARIOS) >= 10_000


class Mutations:
    """The states that a recording may leave without a line that syncs, and may not leave with it."""

    def __init__(self, found: Replay) -> None:
        self.found = found
        self.legal: set[int] = set()
        for _ in states(found.recording, 0, self.legal):
            pass

    def is_missed(self, site: str) -> bool:
        """True if the work without this line may leave a state that is wrong."""
        operations = self.found.recording.operations
        first = next(number for number, op in enumerate(operations) if isinstance(op, Sync) and op.site == site)
        changed = self.found.recording.without(site)
        seen = set(self.legal)
        # What the last cut leaves shows most of it at once.
        for begin in (len(changed.operations), first):
            for state in states(changed, 0, seen, first=begin):
                try:
                    self.found.check(state)
                except Exception:  # noqa: BLE001 - whatever a reader raises is what the line was for
                    return True
        return False


def test_an_fsync_that_is_left_out_is_missed(base: Path) -> None:
    found = replay("replace of runs in one commit", place(base, "replace of runs in one commit"))
    sites = [site for site in found.recording.sites() if site.startswith("lake/manifest.py")]
    assert len(sites) >= 2
    mutations = Mutations(found)
    assert all(mutations.is_missed(site) for site in sites)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_fsync_can_be_left_out(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missed: dict[str, bool] = {}
    for name in SCENARIOS:
        start = time.monotonic()
        found = replay(name, place(base, name))
        mutations = Mutations(found)
        sites = found.recording.sites()
        tried = [site for site in sites if not missed.get(site)]
        missed |= {site: mutations.is_missed(site) for site in tried}
        with capsys.disabled():
            took = time.monotonic() - start
            print(f"\n{len(tried):3} of {len(sites)} lines left out of: {name} ({took:.0f} s)", end="", flush=True)
            for site in (site for site in tried if not missed[site]):
                print(f"\n    not missed here: {site}", end="", flush=True)
    with capsys.disabled():
        print(f"\n{len(missed)} lines that sync, each left out by itself", end="")
    assert [site for site, seen in missed.items() if not seen] == []
