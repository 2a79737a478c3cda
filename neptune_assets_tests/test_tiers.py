from __future__ import annotations

import re

import pytest

from neptune_assets_tests.tiers import FAST, FULL, HERE, tier

ANOTHER_PROCESS = re.compile(r"\bsubprocess\b|\bPopen\b|os\.fork|multiprocessing|server_process|ServerProcess|kill\(")
FILES = {file.relative_to(HERE).as_posix() for file in HERE.rglob("test_*.py")}


def test_every_file_is_in_exactly_one_tier(request: pytest.FixtureRequest) -> None:
    assert not FAST & FULL
    assert FAST | FULL <= FILES
    for item in request.session.items:
        tiers = [mark.name for mark in item.iter_markers() if mark.name in {"fast", "normal", "full"}]
        assert tiers == [tier(item.path)], item.nodeid


@pytest.mark.parametrize("name", sorted(FAST))
def test_the_fast_tier_starts_no_process(name: str) -> None:
    found = ANOTHER_PROCESS.search((HERE / name).read_text(encoding="utf-8"))
    assert found is None, f"{name}: {found and found[0]}"
