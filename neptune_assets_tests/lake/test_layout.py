from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neptune_assets.lake.layout import (
    MAX_COMPONENT,
    Layout,
    extension_of,
    file_path,
    format_step,
    member_paths,
    parse_part_name,
    part_name,
    part_sequence,
    safe_name,
    stored_contents,
    unique_file_path,
)
from neptune_assets.schema import Scope


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ws/proj", "ws_proj-00871eb7ac1bdb01"),
        ("RUN-1", "RUN-1-549fcb30a0f06072"),
        ("a b/ü:1", "a_b_ü_1-24f244a5a09ae96d"),
        ("A", "A-1a89a399ca7c5046"),
    ],
)
def test_names_are_those_of_neptune_exporter(text: str, expected: str) -> None:
    assert safe_name(text) == expected


@given(st.text(max_size=400))
def test_every_text_makes_a_component_that_a_disk_takes(text: str) -> None:
    name = safe_name(text)
    assert len(name.encode()) <= MAX_COMPONENT
    assert "/" not in name
    assert name not in {".", ".."}
    assert all(char.isalnum() or char in "_-" for char in name)


def test_long_names_are_cut_on_a_character_and_stay_apart() -> None:
    names = {safe_name("ü" * 1000), safe_name("ü" * 1001), safe_name("ü" * 1000 + "x")}
    assert len(names) == 3
    assert all(len(name.encode()) <= MAX_COMPONENT for name in names)
    assert part_name("r" * 5000, 12).encode().__len__() < 255


@given(st.lists(st.text(alphabet=string.ascii_letters + "._/ äA", max_size=8), unique=True, max_size=30))
def test_names_that_cleaning_would_merge_stay_apart(texts: list[str]) -> None:
    assert len({safe_name(text) for text in texts}) == len(texts)


def test_part_names_are_read_from_the_right() -> None:
    for run_id in ("RUN-1", "a_part_0", "a_part_0.parquet", "_part_3_part_4", "line\nbreak"):
        for number in (0, 7, 10, 123):
            assert parse_part_name(part_name(run_id, number)) == (safe_name(run_id), number)
    for name in ("x_part_0.parquet.tmp", "x_part_00.parquet", "_part_0.parquet", "x_part_-1.parquet", "x.parquet"):
        assert parse_part_name(name) is None


GENERATION = "0000000012-0123456789abcdef.3"


def test_names_with_a_generation_are_of_the_same_run_and_in_order() -> None:
    for run_id in ("RUN-1", "a_part_0", "a_part_0.parquet", "line\nbreak", f"x.{GENERATION}_part_0", "r" * 5000):
        name = part_name(run_id, 7, GENERATION)
        assert len(name.encode()) < 255
        assert parse_part_name(name) == (safe_name(run_id), 7)
        assert part_sequence(name) == 12
        assert part_sequence(part_name(run_id, 7)) == -1


def test_content_is_found_where_it_is_stored_whatever_its_name() -> None:
    plain = ["r/a/0123.png", "r/b/files-45/x", "r/b/files-45/y/z", "r/c/step_1.000000-67"]
    places = {"r/a/0123.png", "r/b/files-45", "r/c/step_1.000000-67"}
    assert stored_contents(plain) == {place: place for place in places}
    unique = [unique_file_path(path, GENERATION) for path in plain]
    assert stored_contents(unique) == {place: unique_file_path(place, GENERATION) for place in places}


@pytest.mark.parametrize(
    ("micro", "expected"),
    [
        (0, "0.000000"),
        (1, "0.000001"),
        (-1, "-0.000001"),
        (1_500_000, "1.500000"),
        (-(10**18) + 1, "-999999999999.999999"),
    ],
)
def test_steps_are_written_exactly(micro: int, expected: str) -> None:
    assert format_step(micro) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.PNG", "PNG"),
        ("a.tar.gz", "gz"),
        (".bashrc", ""),
        ("a.", ""),
        ("a", ""),
        ("a.b c", ""),
        ("a.é", ""),
        ("a." + "x" * 17, ""),
    ],
)
def test_extensions(name: str, expected: str) -> None:
    assert extension_of(name) == expected


def test_file_paths_hold_the_content() -> None:
    sha = "0123456789abcdef" * 4
    assert file_path("RUN-1", "A", sha, "png") == "RUN-1-549fcb30a0f06072/A-1a89a399ca7c5046/0123456789abcdef.png"
    assert file_path("RUN-1", "A", sha, "", step=-2_500_000).endswith("/step_-2.500000-0123456789abcdef")


def test_ordinary_members_keep_their_names() -> None:
    assert member_paths(["a/b.txt", "c d/é.bin"]) == {"a/b.txt": "a/b.txt", "c d/é.bin": "c d/é.bin"}


def test_hostile_members_stay_inside_and_apart() -> None:
    hostile = [
        "../e", "/abs", "a/../b", "a//b", "a/./b", "", ".", "..", "nul\0", "new\nline", "back\\slash", "C:x", "x" * 300,
        "a", "a/b", "Case", "case", "dir/X", "DIR/x", "end.", " space", "\ud800",
    ]  # fmt: skip
    mapped = member_paths(hostile)
    assert set(mapped) == set(hostile)
    paths = list(mapped.values())
    assert len({path.casefold() for path in paths}) == len(paths)
    for path in paths:
        parts = path.split("/")
        assert all(part not in {"", ".", ".."} and len(part.encode()) <= 255 for part in parts)
        assert not path.startswith("/")
        assert "\\" not in path
        assert "\0" not in path
    files = {path.casefold() for path in paths}
    directories = {"/".join(p.casefold().split("/")[:n]) for p in paths for n in range(1, len(p.split("/")))}
    assert not files & directories


def test_every_path_begins_with_the_root() -> None:
    layout = Layout("/lake")
    assert layout.project("ws/proj") == "/lake/data/ws_proj-00871eb7ac1bdb01"
    assert layout.manifest("ws/proj") == "/lake/data/ws_proj-00871eb7ac1bdb01/.manifest"
    assert layout.staged_part("ws/proj", "g", "p") == "/lake/data/ws_proj-00871eb7ac1bdb01/.staging/g/p"
    assert layout.project("ws/proj", Scope.MODELS) == "/lake/model_data/ws_proj-00871eb7ac1bdb01/models"
    assert layout.files("ws/proj", Scope.MODEL_VERSIONS) == "/lake/model_files/ws_proj-00871eb7ac1bdb01"
    assert layout.summary("runs", "ws/proj") == "/lake/summary/runs/ws_proj-00871eb7ac1bdb01.parquet"
    assert layout.ledger("mlflow", "ws/proj", "jsonl") == "/lake/targets/mlflow/ws_proj-00871eb7ac1bdb01.jsonl"
    assert layout.database() == "/lake/neptune.duckdb"
