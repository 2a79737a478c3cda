from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from neptune_assets.targets.concurrency import natural


def test_numbers_in_ids_count_as_numbers() -> None:
    ids = ["PRO-10", "PRO-9", "PRO-1", "a2b10", "a2b9", "a10b1", "", "7", "10"]
    assert sorted(ids, key=natural) == ["", "7", "10", "PRO-1", "PRO-9", "PRO-10", "a2b9", "a2b10", "a10b1"]


@given(st.lists(st.text(st.sampled_from("01a-²٣\x00") | st.characters(), max_size=8), unique=True, max_size=12))
def test_any_ids_have_one_order(ids: list[str]) -> None:
    found, backwards = sorted(ids, key=natural), ids[::-1]
    assert sorted(backwards, key=natural) == found
    assert len({natural(item) for item in ids}) == len(ids)
