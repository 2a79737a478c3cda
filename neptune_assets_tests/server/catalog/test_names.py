from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neptune_assets.server.catalog.search import exact_paths


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=5))
def test_lists_of_names_are_recognized(names: list[str]) -> None:
    escaped = [re.escape(name) for name in names]
    regex = f"^({'|'.join(escaped)})$" if len(names) > 1 else f"^{escaped[0]}$"
    found = exact_paths(regex)
    # Where a name is written in a way that is not certain, the expression is matched: slower, never wrong.
    assert found is None or found == names


def test_plain_names_are_looked_up() -> None:
    names = ["metrics/loss-1", "a b.c", "x(y)|z", "ü$^"]
    assert exact_paths(f"^({'|'.join(re.escape(name) for name in names)})$") == names
    assert exact_paths("^" + re.escape("a|b\\c") + "$") == ["a|b\\c"]


@pytest.mark.parametrize(
    "regex",
    ["abc", "^abc", "abc$", "^a|b$", "^a.c$", "^(a|b*)$", "^(a|(b))$", "^\\d$", "^[ab]$", "^(a)|(b)$", "^a\\$", ".*"],
)
def test_what_is_more_than_a_list(regex: str) -> None:
    assert exact_paths(regex) is None
