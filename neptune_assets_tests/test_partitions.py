import pytest

from neptune_assets.errors import SettingsError
from neptune_assets.partitions import project_keys, validate_project_key


@pytest.mark.parametrize("key", ["ws/project", "my team/проект", "a.b/c-d_e", "A/a", "x/it's"])
def test_valid_keys_stay_as_they_are(key: str) -> None:
    assert validate_project_key(key) == key


@pytest.mark.parametrize(
    "key",
    ["", "project", "a/b/c", "/b", "a/", "../etc", "a/..", "./a", "a\n/b", "a/b\x00", "a/b,c", "a/[b]", "a/b...c"],
)
def test_keys_that_could_be_something_else_are_refused(key: str) -> None:
    with pytest.raises(SettingsError) as error:
        validate_project_key(key)
    assert repr(key)[1:-1] in str(error.value)
    assert error.value.hint


def test_keys_are_distinct_and_sorted() -> None:
    assert project_keys(["b/b", "a/b", "b/b"]) == ["a/b", "b/b"]
