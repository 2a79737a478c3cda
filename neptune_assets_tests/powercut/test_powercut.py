"""What is left after a power cut, at any moment, in every state that POSIX allows; and that no fsync is superfluous."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from neptune_assets_tests.powercut.disk import State, put, states
from neptune_assets_tests.powercut.recording import Recording, need_strace, record
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
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_strace()
    return tmp_path_factory.mktemp("powercut")


def place(base: Path, name: str) -> Path:
    path = base / f"{list(SCENARIOS).index(name)}"
    path.mkdir(exist_ok=True)
    return path


def replay_states(name: str, base: Path, *, samples: int, every_cut: int, every: int, converge_every: int) -> int:
    """Open each ``every``-th state, and do the work again on top of some; return how many were opened."""
    found = replay(name, place(base, name))
    opened = 0
    for number, state in enumerate(states(found.recording, samples, every=every_cut)):
        if number % every:
            continue
        try:
            found.check(state)
            if opened % converge_every == 0:
                found.converge()
        except Exception as error:
            before = found.recording.operations[max(0, state.cut - 4) : state.cut]
            told = "\n".join(f"{operation!r:.200}" for operation in before)
            raise AssertionError(f"cut after {state.cut} operations, {state.kind}:\n{told}") from error
        opened += 1
    return opened


@pytest.mark.parametrize("name", ["replace of runs in one commit", "first summary", "answers of the server"])
def test_a_power_cut_leaves_the_old_or_the_new(base: Path, name: str) -> None:
    assert replay_states(name, base, samples=0, every_cut=17, every=5, converge_every=20) > 30


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_ten_thousand_states_after_a_power_cut(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {name: replay_states(name, base, samples=2, every_cut=1, every=5, converge_every=20) for name in SCENARIOS}
    with capsys.disabled():
        for name, count in counts.items():
            print(f"\n{count:7,} states of: {name}", end="")
        print(f"\n{sum(counts.values()):7,} states", end="")
    assert sum(counts.values()) >= 10_000


def is_missed(found: Replay, site: str) -> bool:
    """True if the work without this line that syncs may leave a state that is wrong."""
    changed = found.recording.without(site)
    for first in (len(changed.operations), 0):
        # What the last cut leaves shows most of it at once.
        for state in states(changed, 0, first=first):
            try:
                found.check(state)
            except Exception:  # noqa: BLE001 - whatever a reader raises is what the line was for
                return True
    return False


def test_an_fsync_that_is_left_out_is_missed(base: Path) -> None:
    found = replay("replace of runs in one commit", place(base, "replace of runs in one commit"))
    sites = [site for site in found.recording.sites() if site.startswith("lake/manifest.py")]
    assert len(sites) >= 2
    assert all(is_missed(found, site) for site in sites)


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_no_fsync_can_be_left_out(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missed: dict[str, bool] = {}
    for name in SCENARIOS:
        found = replay(name, place(base, name))
        for site in found.recording.sites():
            missed[site] = missed.get(site, False) or is_missed(found, site)
    with capsys.disabled():
        print(f"\n{len(missed)} lines that sync, each left out by itself", end="")
    # What an upload to W&B remembers is synced by the same line, and uploads are not part of the replay.
    uploads = "targets/wandb/config.py write_json: write"
    assert [site for site, seen in missed.items() if not seen and not site.startswith(uploads)] == []
