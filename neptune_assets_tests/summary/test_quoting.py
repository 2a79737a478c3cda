from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neptune_assets.summary.sql import identifier, literal, parquet, plain_path

TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=("Cs",)))


@settings(deadline=None)
@given(TEXT)
def test_literal_comes_back_as_it_went(text: str) -> None:
    with duckdb.connect() as con:
        assert con.sql(f"SELECT {literal(text)}").fetchall() == [(text,)]


@settings(deadline=None)
@given(TEXT.filter(bool))
def test_identifier_names_exactly_that(text: str) -> None:
    with duckdb.connect() as con:
        assert con.sql(f"SELECT 1 AS {identifier(text)}").columns == [text]


@pytest.mark.parametrize("quote", [literal, identifier])
def test_nul_is_refused(quote) -> None:
    with pytest.raises(ValueError):
        quote("a\x00b")


@pytest.mark.parametrize("name", ["it's", "[x]", "a*b", "a?b", "[a-z]*?'", "ü ö", "k=v", "]", "[", "{a,b}"])
def test_a_directory_of_any_name_is_read_and_its_neighbour_is_not(tmp_path: Path, name: str) -> None:
    with duckdb.connect() as con:
        for directory, value in [(name, 1), ("x", 2), ("ab", 2), ("aab", 2), ("a", 2)]:
            (tmp_path / directory).mkdir()
            con.sql(f"SELECT {value} AS v").write_parquet(str(tmp_path / directory / "f.parquet"))
        directory = plain_path(str(tmp_path / name))
        for pattern in (f"{directory}/f.parquet", f"{directory}/*.parquet"):
            found = con.sql(f"SELECT * FROM {parquet([pattern])}")
            assert found.columns == ["v"]
            assert found.fetchall() == [(1,)]
