from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neptune_assets.server.nql import And, Comparison, Exists, Not, Operand, Operator, Or, QuerySyntaxError, parse


def equal(path: str, value: str, kind: str | None = None) -> Comparison:
    return Comparison(Operand(path, kind), Operator.EQUAL, value)


@pytest.mark.parametrize("text", ["", "  \n "])
def test_empty(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        (
            '`a/b`:floatSeries < "0.5"',
            Comparison(Operand("a/b", "floatSeries"), Operator.LESS, "0.5"),
        ),
        (
            "last(`a b`:floatSeries) >= -0.5",
            Comparison(Operand("a b", "floatSeries", "last"), Operator.GREATER_OR_EQUAL, "-0.5"),
        ),
        ("average(x):floatSeries != 3", Not(Comparison(Operand("x", "floatSeries", "average"), Operator.EQUAL, "3"))),
        ("a = 1 OR b = 2 AND c = 3", Or((equal("a", "1"), And((equal("b", "2"), equal("c", "3")))))),
        ("(a = 1 or b = 2) and c = 3", And((Or((equal("a", "1"), equal("b", "2"))), equal("c", "3")))),
        ("(a==1) OR ((b==2) OR (c==3))", Or((equal("a", "1"), equal("b", "2"), equal("c", "3")))),
        ("NOT a = 1 AND b = 2", And((Not(equal("a", "1")), equal("b", "2")))),
        ("not(a = 1)", Not(equal("a", "1"))),
        ("NOT NOT a = 1", equal("a", "1")),
        (
            "`sys/tags`:stringSet NOT CONTAINS x",
            Not(Comparison(Operand("sys/tags", "stringSet"), Operator.CONTAINS, "x")),
        ),
        ('a MATCHES "^b$"', Comparison(Operand("a"), Operator.MATCHES, "^b$")),
        ("`a`:int EXISTS", Exists(Operand("a", "int"))),
        ("`a`b`:string = c", equal("a`b", "c", "string")),
        ("order = 1 AND not_x = 2 AND max = 3", And((equal("order", "1"), equal("not_x", "2"), equal("max", "3")))),
        ("sys/size > 50MB", Comparison(Operand("sys/size"), Operator.GREATER, "50MB")),
        ("t = 2024-01-01T00:00:00Z", equal("t", "2024-01-01T00:00:00Z")),
    ],
)
def test_trees(text: str, tree: object) -> None:
    assert parse(text) == tree


@given(st.text())
def test_any_value_survives_the_clients_quoting(value: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    assert parse(f'(`x`:string == "{quoted}")') == equal("x", value, "string")


@given(st.text(st.characters(exclude_characters="`"), min_size=1))
def test_any_name(name: str) -> None:
    assert parse(f"`{name}`:int EXISTS") == Exists(Operand(name, "int"))


@given(st.text(alphabet='ab`"\\()=<>! \nANDORT:1', max_size=40))
def test_no_text_breaks_the_parser(text: str) -> None:
    with suppress(QuerySyntaxError):
        parse(text)


@pytest.mark.parametrize(
    "text", ["a", "a =", "(a=1", "a=1)", "`a", 'a == "x', "a ~ 3", "NOT", "AND", "a=1 b=2", "`a`: = 1"]
)
def test_what_is_no_query(text: str) -> None:
    with pytest.raises(QuerySyntaxError, match="query"):
        parse(text)


def test_depth() -> None:
    assert parse("(" * 20_000 + "a=1" + ")" * 20_000) == equal("a", "1")
    with pytest.raises(QuerySyntaxError, match="deep"):
        parse("(a=1 AND b=2 OR " * 300 + "c=3" + ")" * 300)
