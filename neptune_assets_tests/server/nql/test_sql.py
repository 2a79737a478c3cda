"""The compiled SQL, run by DuckDB, against a plain evaluation of the same tree in Python."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neptune_assets.schema import AttributeType
from neptune_assets.server.nql import (
    And,
    Comparison,
    Exists,
    Node,
    Not,
    Operand,
    Operator,
    Or,
    QueryError,
    compile_query,
    parse,
)

NOW = datetime(2025, 3, 31, 12, tzinfo=UTC)
Run = dict[str, tuple[str, dict[str, Any]]]
CONNECTION = duckdb.connect(config={"threads": 1})
COLUMNS = {
    "number": "DOUBLE",
    "whole": "BIGINT",
    "text": "VARCHAR",
    "flag": "BOOLEAN",
    "moment": "BIGINT",
    "members": "VARCHAR[]",
    "least": "DOUBLE",
    "greatest": "DOUBLE",
    "mean": "DOUBLE",
    "variance": "DOUBLE",
}


def ask(runs: list[Run], query: Node | str) -> list[int]:
    """Return the numbers of the runs that match."""
    named: dict[str, dict[AttributeType, int]] = {}
    rows = []
    for number, run in enumerate(runs):
        for path, (kind, values) in run.items():
            of_path = named.setdefault(path, {})
            name = of_path.setdefault(AttributeType(kind), sum(map(len, named.values())))
            rows.append([number, name, *(values.get(column) for column in COLUMNS)])
    condition = compile_query(parse(query) if isinstance(query, str) else query, named, NOW)
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    with CONNECTION.cursor() as con:
        con.execute(f"CREATE OR REPLACE TABLE attributes (run INT, name INT, {columns})")
        if rows:
            con.executemany(f"INSERT INTO attributes VALUES ({', '.join('?' * (2 + len(COLUMNS)))})", rows)
        pivot = "".join(f", {sql} AS {name}" for name, sql in condition.pivot.items())
        found = con.execute(
            f"SELECT run FROM (SELECT unnest(range({len(runs)})) AS run) LEFT JOIN "
            f"(SELECT run{pivot} FROM attributes GROUP BY run) USING (run) WHERE {condition.sql} ORDER BY run",
            condition.parameters,
        )
        return [run for (run,) in found.fetchall()]


def value(kind: str, content: Any) -> tuple[str, dict[str, Any]]:
    column = {"float": "number", "int": "whole", "string": "text", "bool": "flag", "string_set": "members"}
    if kind == "float_series":
        return kind, dict(zip(("number", "least", "greatest", "mean", "variance"), content, strict=True))
    return kind, {column.get(kind, "moment"): content}


WORDS = {"float": "float", "int": "int", "string": "string", "bool": "bool", "float_series": "floatSeries"}
WORDS |= {"string_set": "stringSet", "datetime": "datetime"}
texts = st.sampled_from(["", "a", "b", "ab", "A", "a\nb", '"', "\\", "ä", "x" * 300])
floats = st.one_of(st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 0.5, 3.0, 1e300]), st.floats(-5, 5))
ints = st.sampled_from([0, 1, 3, -3, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)])
contents = st.one_of(
    st.tuples(st.just("float"), floats),
    st.tuples(st.just("int"), ints),
    st.tuples(st.just("string"), texts),
    st.tuples(st.just("bool"), st.booleans()),
    st.tuples(st.just("datetime"), st.integers(-5, 5)),
    st.tuples(st.just("string_set"), st.lists(texts, unique=True, max_size=3)),
    st.tuples(st.just("float_series"), st.tuples(floats, floats, floats, floats, floats)),
)
paths = st.sampled_from(["x", "y", "metrics/z"])
runs_of_any_kind = st.lists(st.dictionaries(paths, contents.map(lambda pair: value(*pair))), max_size=5)
LITERALS = {
    "float": st.one_of(floats.map(repr), ints.map(str)),
    "int": st.one_of(
        ints.map(str), st.sampled_from(["2.5", "-2.5", "1e30", "-1e30", "9007199254740992.5", "inf", "nan"])
    ),
    "string": texts,
    "bool": st.sampled_from(["true", "False", "TRUE"]),
    "datetime": st.integers(-5, 5).map(
        lambda ms: (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)).isoformat()
    ),
    "string_set": texts,
    "float_series": floats.map(repr),
}
ORDERINGS = [Operator.EQUAL, Operator.LESS, Operator.LESS_OR_EQUAL, Operator.GREATER, Operator.GREATER_OR_EQUAL]


@st.composite
def comparisons(draw: st.DrawFn) -> Node:
    kind = draw(st.sampled_from(sorted(WORDS)))
    if kind in {"string", "string_set"}:
        operators = [Operator.CONTAINS, Operator.EQUAL] + (ORDERINGS if kind == "string" else [])
    else:
        operators = [Operator.EQUAL] if kind == "bool" else ORDERINGS
    aggregate = (
        draw(st.sampled_from([None, "last", "min", "max", "average", "variance"])) if "_series" in kind else None
    )
    operand = Operand(draw(paths), WORDS[kind], aggregate)
    if draw(st.integers(0, 4)) == 0:
        return Exists(operand)
    return Comparison(operand, draw(st.sampled_from(operators)), draw(LITERALS[kind]))


trees = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        inner.map(Not),
        st.lists(inner, min_size=2, max_size=4).map(lambda parts: And(tuple(parts))),
        st.lists(inner, min_size=2, max_size=4).map(lambda parts: Or(tuple(parts))),
    ),
    max_leaves=8,
)


def holds(run: Run, node: Node) -> bool:
    if isinstance(node, Not):
        return not holds(run, node.inner)
    if isinstance(node, And):
        return all(holds(run, part) for part in node.parts)
    if isinstance(node, Or):
        return any(holds(run, part) for part in node.parts)
    kind, values = run.get(node.operand.path, ("", {}))
    if WORDS.get(kind) != node.operand.type:
        return False
    return isinstance(node, Exists) or compares(kind, values, node)


def compares(kind: str, values: dict[str, Any], node: Comparison) -> bool:
    columns = {"min": "least", "max": "greatest", "average": "mean", "variance": "variance"}
    if kind == "float_series":
        left = values[columns.get(node.operand.aggregate or "last", "number")]
    else:
        (left,) = values.values()
    right: Any = node.value
    if kind in {"float", "float_series", "int"}:
        right = int(right) if re.fullmatch("-?[0-9]+", right) and kind == "int" else float(right)
    elif kind == "bool":
        right = right.lower() == "true"
    elif kind == "datetime":
        right = (datetime.fromisoformat(right) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    if kind == "string_set":
        return right in left if node.operator is Operator.CONTAINS else left == [right]
    if node.operator is Operator.CONTAINS:
        return right in left
    if kind == "string":
        left, right = left.encode(), right.encode()
    return bool(
        {
            Operator.EQUAL: left == right,
            Operator.LESS: left < right,
            Operator.LESS_OR_EQUAL: left <= right,
            Operator.GREATER: left > right,
            Operator.GREATER_OR_EQUAL: left >= right,
        }[node.operator]
    )


@settings(deadline=None, max_examples=150)
@given(runs_of_any_kind, trees)
def test_as_python_would_answer(runs: list[Run], tree: Node) -> None:
    assert ask(runs, tree) == [number for number, run in enumerate(runs) if holds(run, tree)]


RUNS: list[Run] = [
    {"n": value("int", 5), "s": value("string", "Active"), "t": value("string_set", ["a", "b"])},
    {"n": value("float", 5.0), "s": value("string", "Inactive"), "when": value("datetime", 1_743_415_200_000)},
    {"n": value("string", "5")},
    {},
]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("n = 5", [0, 1, 2]),
        ("n:int = 5", [0]),
        ("n:int = 5.0", [0]),
        ("n != 5", [3]),
        ("n < 1KB", [0, 1]),
        ('n:string MATCHES ""', [2]),
        ("s:experimentState = running", [0]),
        ('s:experimentState = "idle"', [1]),
        ("s:string = Active", [0]),
        ('s MATCHES "^(Act|Inact)ive$"', [0, 1]),
        ('s NOT MATCHES "^A"', [1, 2, 3]),
        ('t MATCHES "^[b-z]$"', [0]),
        ("t NOT CONTAINS c", [0, 1, 2, 3]),
        ("n:bool EXISTS", []),
        ("missing = 1", []),
        ("missing != 1", [0, 1, 2, 3]),
        ("when > -1d", [1]),
        ("when > -1h", []),
        ('when:datetime >= "2025-03-31T12:00:00+02:00"', [1]),
        ('when > "2025-03-31T10:00:00.001Z"', []),
        ("when < -0M", [1]),
        ("s:string = Active OR s:string = Inactive OR n:string = 5", [0, 1, 2]),
        ("s:string != Active AND s:string != Inactive", [2, 3]),
    ],
)
def test_answers(query: str, expected: list[int]) -> None:
    assert ask(RUNS, query) == expected


@pytest.mark.parametrize(
    "query",
    [
        "n:int = five",
        "n:floatSeries CONTAINS 5",
        "n:bool = 1",
        "n:bool < true",
        "n:datetime = yesterday",
        "n:datetime = -99999999y",
        "n:nothing = 1",
        "n:histogramSeries = 1",
        "n:stringSet < a",
    ],
)
def test_what_cannot_be_compared(query: str) -> None:
    with pytest.raises(QueryError):
        ask(RUNS, query)


def test_thousands_of_names() -> None:
    names = " OR ".join(f'(`s`:string == "name {number}")' for number in range(5_000))
    assert ask(RUNS, f'{names} OR (`s`:string == "Active")') == [0]
    none = " AND ".join(f'(`s`:string != "name {number}")' for number in range(5_000))
    assert ask(RUNS, f'({none}) AND (`s`:string != "Active")') == [1, 2, 3]
    mixed = " OR ".join(f'(`n`:int == "{number}")' for number in range(2_000))
    assert ask(RUNS, mixed) == [0]


def test_a_query_that_is_too_large_is_refused_before_it_is_planned() -> None:
    with pytest.raises(QueryError, match="comparisons"):
        ask(RUNS, " OR ".join(f"n:int = {number}" for number in range(2_001)))
    paths: list[Run] = [{f"p{number}": ("float", {"number": 1.5}) for number in range(201)}]
    assert ask(paths, " OR ".join(f"p{number}:float = 1.5" for number in range(200))) == [0]
    with pytest.raises(QueryError, match="attributes"):
        ask(paths, " OR ".join(f"p{number}:float = 1.5" for number in range(201)))
