from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.utils.uri import validate_path_is_safe
from mlflow.utils.validation import _validate_metric_name, _validate_param_name, path_not_unique

from neptune_assets.targets.mlflow.mapping import MAX_KEY, clean_key, exporter_key
from neptune_assets.targets.naming import distinct_keys, distinct_paths

HOSTILE = st.text(st.sampled_from("aAü漢🙂/._-: []\n\t\x00'\"%#\\"), max_size=12) | st.text(max_size=20)


def keys(
    paths: list[str], clean: Callable[[str], str] = clean_key, limit: int = MAX_KEY, fold_case: bool = False
) -> dict[str, str]:
    return distinct_keys({path: path for path in paths}, clean, limit=limit, fold_case=fold_case)


@given(st.lists(HOSTILE, unique=True, max_size=12))
@settings(max_examples=150, deadline=None)
def test_mlflow_takes_every_key_and_no_two_are_equal(paths: list[str]) -> None:
    for clean in (clean_key, exporter_key):
        found = keys(paths, clean=clean)
        assert len(set(found.values())) == len(paths)
        for key in found.values():
            _validate_metric_name(key)
            _validate_param_name(key)
            assert len(key) <= 250


@given(st.lists(HOSTILE, unique=True, max_size=12))
@settings(max_examples=150, deadline=None)
def test_artifact_paths_never_meet_nor_leave(paths: list[str]) -> None:
    found = distinct_paths({path: f"files/{path}" for path in paths})
    folded = [path.casefold() for path in found.values()]
    assert len(set(folded)) == len(paths)
    for path in found.values():
        assert not path_not_unique(path)
        assert validate_path_is_safe(path) == path
        assert not any(other.startswith(f"{path.casefold()}/") for other in folded)


@pytest.mark.parametrize("path", ["train/loss", "a b", "a:b", "ü/漢", "a.b-c_d", "m/0"])
def test_what_mlflow_allows_stays(path: str) -> None:
    assert keys([path]) == {path: path}


def test_digest_only_where_names_meet() -> None:
    found = keys(["a[0]", "b[0]", "b_0_"])
    assert found["a[0]"] == "a_0_"
    assert found["b_0_"] == "b_0_"
    assert found["b[0]"].startswith("b_0_-")


def test_case_folds_only_if_asked() -> None:
    assert keys(["Loss", "loss"]) == {"Loss": "Loss", "loss": "loss"}
    folded = keys(["Loss", "loss"], fold_case=True)
    assert len({key.casefold() for key in folded.values()}) == 2


def test_long_names_are_cut_and_stay_apart() -> None:
    found = keys(["x" * 1_200, "x" * 1_199 + "y"])
    assert len(set(found.values())) == 2
    assert all(len(key) <= 250 for key in found.values())


def test_exporter_names_are_those_of_the_existing_tool() -> None:
    # What neptune-exporter 0.1.0 makes of these paths.
    assert keys(["a:b", "a/ü", "x" * 300], clean=exporter_key) == {"a:b": "a_b", "a/ü": "a/_", "x" * 300: "x" * 250}
