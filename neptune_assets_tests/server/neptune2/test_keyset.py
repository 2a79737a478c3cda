from __future__ import annotations

from typing import Any

import pytest
from neptune.internal.backends.nql import (
    NQLAggregator,
    NQLAttributeOperator,
    NQLAttributeType,
    NQLQueryAggregate,
    NQLQueryAttribute,
    RawNQLQuery,
)

from neptune_assets.server.neptune2.tables import comparable, continued

TRASHED = NQLQueryAttribute("sys/trashed", NQLAttributeType.BOOLEAN, NQLAttributeOperator.EQUALS, False)
RAW = RawNQLQuery('(a:int = 1) OR (`sys/id`:string > "x")')


def after(name: str, kind: NQLAttributeType, value: Any, query: Any = None) -> str:
    """The text as the client writes it."""
    condition = NQLQueryAttribute(name, kind, NQLAttributeOperator.GREATER_THAN, value)
    if query is None:
        return str(condition)
    return str(NQLQueryAggregate(items=[query, condition], aggregator=NQLAggregator.AND))


@pytest.mark.parametrize(
    "query", [None, TRASHED, RAW, NQLQueryAggregate(items=[RAW, TRASHED], aggregator=NQLAggregator.AND)]
)
def test_what_the_client_adds_is_found(query: Any) -> None:
    found = continued(after("sys/id", NQLAttributeType.STRING, 'RUN-7" or (1)', query), "sys/id")
    assert found is not None
    assert found.query == ("" if query is None else str(query))
    assert found.value == 'RUN-7" or (1)'


def test_version_2_asks_for_less_when_descending() -> None:
    found = continued('((a:int = 1) AND (`sys/id`:string < "RUN-7"))', "sys/id")
    assert found is not None
    assert (found.query, found.value) == ("(a:int = 1)", "RUN-7")


@pytest.mark.parametrize(
    "text",
    [
        "",
        str(TRASHED),
        str(RAW),
        '(`sys/id`:string = "x")',
        '(`sys/id`:string > "x") AND (a:int = 1)',
        '(`sys/name`:string > "x")',
        'a:int = 1 AND (`sys/id`:string > "x")',
    ],
)
def test_other_queries_are_left_alone(text: str) -> None:
    assert continued(text, "sys/id") is None


def test_values_are_the_same_however_they_are_written() -> None:
    shown = {"2024-01-31T12:00:00.120Z", "2024-01-31 12:00:00.120000+00:00", "2024-01-31T13:00:00.120+01:00"}
    assert {comparable("datetime", text) for text in shown} == {1_706_702_400_120}
    assert comparable("float", "1e-3") == comparable("float", 0.001)
    assert comparable("bool", True) == comparable("bool", "true")
    assert comparable("int", "7") == 7
    assert comparable("string", "007") == "007"
    assert comparable("int", "x") is None
    assert comparable("datetime", "x") is None
    assert comparable("string", None) is None
