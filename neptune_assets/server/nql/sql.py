"""A syntax tree to a condition in DuckDB's SQL. Values are bound, never written into the text.

The condition is over one row a run that has, for every operand, the columns it needs: ``pivot`` are the aggregates that
make such a row out of the run's attributes, so a query scans the attributes once, whatever its length. A column is null
where the run has no such attribute (of that type); such a comparison is false.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, Final

from neptune_assets.schema import AttributeType
from neptune_assets.server.nql import values
from neptune_assets.server.nql.columns import column_of, types_of
from neptune_assets.server.nql.errors import QueryError
from neptune_assets.server.nql.tree import And, Comparison, Exists, Node, Not, Operand, Operator, Or, operands

Named = Mapping[str, Mapping[AttributeType, int]]
"""Ids of the attributes that the catalog knows: path -> type -> id."""

_ORDERINGS: Final = frozenset(
    {
        Operator.EQUAL,
        Operator.LESS,
        Operator.LESS_OR_EQUAL,
        Operator.GREATER,
        Operator.GREATER_OR_EQUAL,
    }
)
MAX_ATTRIBUTES: Final = 200
"""Attributes (of one type each) that a query may compare: what planning it takes grows with the square of them."""
MAX_COMPARISONS: Final = 2_000
"""Comparisons of a query; strings that one attribute is compared with are one, whatever their number."""
_STATES: Final = {"active": "running", "inactive": "idle"}
_MAX_INT: Final = (1 << 63) - 1


@dataclass(slots=True)
class Condition:
    """SQL over the columns that ``pivot`` makes; ``names`` are the ids of the attributes that these come from."""

    sql: str = "true"
    parameters: list[Any] = field(default_factory=list)
    pivot: dict[str, str] = field(default_factory=dict)
    names: set[int] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)


def paths_of(node: Node | None) -> set[str]:
    """Return the paths of the attributes that a query names."""
    return set() if node is None else {operand.path for operand in operands(node)}


def compile_query(node: Node | None, named: Named, now: datetime) -> Condition:
    """Turn a tree into a condition.

    Raises QueryError for a value or an operator that does not fit a type, and for a query that is too large: DuckDB's
    memory limit does not hold for planning.
    """
    condition = Condition(paths=paths_of(node))
    if node is not None:
        compiler = _Compiler(condition, named, now)
        condition.sql = compiler.node(node)
    return condition


class _Compiler:
    def __init__(self, condition: Condition, named: Named, now: datetime) -> None:
        self._condition = condition
        self._named = named
        self._now = now
        self._columns: dict[tuple[str, AttributeType, str], str] = {}
        self._comparisons = 0

    def node(self, node: Node) -> str:
        if isinstance(node, Comparison):
            return self._comparison(node)
        if isinstance(node, Exists):
            return self._exists(node.operand)
        if isinstance(node, Not):
            return f"(NOT {self.node(node.inner)})"
        if isinstance(node, And):
            # NOT (a = 1) AND NOT (a = 2) ... is how clients exclude a list of names.
            return self._joined("AND", [part.inner if isinstance(part, Not) else part for part in node.parts], node)
        return self._joined("OR", list(node.parts), node)

    def _joined(self, word: str, inner: Sequence[Node], node: And | Or) -> str:
        lists: dict[Operand, list[str]] = {}
        parts = []
        for part, bare in zip(node.parts, inner, strict=True):
            listed = isinstance(bare, Comparison) and self._is_list(bare) and isinstance(part, Not) is (word == "AND")
            if listed and isinstance(bare, Comparison):
                lists.setdefault(bare.operand, []).append(bare.value)
            else:
                parts.append(self.node(part))
        for operand, texts in lists.items():
            sql = self._one_of(operand, texts)
            parts.append(f"(NOT {sql})" if word == "AND" else sql)
        return _balanced(word, parts)

    def _is_list(self, node: Comparison) -> bool:
        return node.operator is Operator.EQUAL and node.operand.type == "string" and node.operand.aggregate is None

    def _one_of(self, operand: Operand, texts: list[str]) -> str:
        if AttributeType.STRING not in self._named.get(operand.path, {}):
            return "false"
        column = self._column(operand, AttributeType.STRING, "text")
        self._condition.parameters.append(texts)
        return f"coalesce({column} IN (SELECT unnest(?::VARCHAR[])), false)"

    def _exists(self, operand: Operand) -> str:
        known = self._named.get(operand.path, {})
        found = [self._column(operand, kind, "run") for kind in sorted(types_of(operand.type)) if kind in known]
        return "(" + " OR ".join(f"{column} IS NOT NULL" for column in found) + ")" if found else "false"

    def _comparison(self, node: Comparison) -> str:
        self._comparisons += 1
        if self._comparisons > MAX_COMPARISONS:
            raise QueryError(f"The query has more than {MAX_COMPARISONS:,} comparisons.", hint="Ask in smaller parts.")
        known = self._named.get(node.operand.path, {})
        wanted = types_of(node.operand.type)
        parts, errors = [], []
        for kind in sorted(wanted):
            try:
                # Values are looked at even if no run has the attribute: a query is right or wrong whatever the data.
                test = self._test(node, kind)
            except QueryError as error:
                errors.append(error)
                continue
            if kind in known and (column := column_of(node.operand, kind)) is not None:
                name = self._column(node.operand, kind, column)
                sql, parameters = test(name)
                parts.append(f"coalesce({sql}, false)")
                self._condition.parameters.extend(parameters)
        if errors and len(errors) == len(wanted):
            raise errors[0]
        return f"({' OR '.join(parts)})" if parts else "false"

    def _column(self, operand: Operand, kind: AttributeType, column: str) -> str:
        key = (operand.path, kind, column)
        known = self._columns.get(key)
        if known is None:
            if len(self._columns) >= MAX_ATTRIBUTES:
                raise QueryError(
                    f"The query compares more than {MAX_ATTRIBUTES} attributes.", hint="Ask in smaller parts."
                )
            known = self._columns[key] = f"c{len(self._columns)}"
            name = self._named[operand.path][kind]
            self._condition.names.add(name)
            self._condition.pivot[known] = f"any_value({column}) FILTER (name = {int(name)})"
        return known

    def _test(self, node: Comparison, kind: AttributeType) -> Callable[[str], tuple[str, list[Any]]]:
        operator, text = node.operator, node.value
        if kind in {AttributeType.FLOAT, AttributeType.FLOAT_SERIES}:
            return _floats(_ordering(operator, kind), values.number(text))
        if kind is AttributeType.INT:
            return _ints(_ordering(operator, kind), values.number(text))
        if kind is AttributeType.BOOL:
            truth = values.boolean(text)
            if operator is not Operator.EQUAL:
                raise _unfit(operator, kind)
            return lambda column: (f"{column} = ?", [truth])
        if kind is AttributeType.DATETIME:
            order, moment = _ordering(operator, kind), values.moment(text, self._now)
            return lambda column: (f"{column} {order} ?", [moment])
        if kind in {AttributeType.STRING, AttributeType.STRING_SERIES}:
            return _texts(operator, text, state=node.operand.type == "experimentState")
        if kind is AttributeType.STRING_SET:
            return _sets(operator, text)
        raise QueryError(f"Attributes of type {kind} have no value to compare.", hint="Ask whether they exist: EXISTS.")


def _balanced(word: str, parts: Sequence[str]) -> str:
    """Join conditions so that thousands of them make a shallow expression: DuckDB bounds the depth."""
    if len(parts) <= 2:
        return f"({f' {word} '.join(parts)})"
    half = len(parts) // 2
    return f"({_balanced(word, parts[:half])} {word} {_balanced(word, parts[half:])})"


def _ordering(operator: Operator, kind: AttributeType) -> str:
    if operator not in _ORDERINGS:
        raise _unfit(operator, kind)
    return operator.value


def _unfit(operator: Operator, kind: AttributeType) -> QueryError:
    return QueryError(f"Operator {operator} cannot be used on attributes of type {kind}.", hint="Use another operator.")


def _floats(order: str, value: values.Number) -> Callable[[str], tuple[str, list[Any]]]:
    try:
        wanted = float(value)
    except OverflowError:
        wanted = math.inf if value > 0 else -math.inf
    if math.isnan(wanted):
        # As in the clients' languages, NaN is neither equal to anything nor less nor greater.
        return lambda _: ("false", [])
    return lambda column: (f"({column} {order} ?::DOUBLE AND NOT isnan({column}))", [wanted])


def _ints(order: str, value: values.Number) -> Callable[[str], tuple[str, list[Any]]]:
    """Compare integers exactly, also with fractions and with numbers that no 64 bits hold."""
    if isinstance(value, float):
        if math.isnan(value):
            return lambda _: ("false", [])
        value = (1 << 64) if value > 0 else -(1 << 64)
    if isinstance(value, Decimal):
        if order == "=":
            return lambda _: ("false", [])
        # x < 2.5 is x < 3, and x > 2.5 is x > 2.
        value = int(value.to_integral_value(ROUND_CEILING if order in {"<", ">="} else ROUND_FLOOR))
    if not -_MAX_INT - 1 <= value <= _MAX_INT:
        truth = order in ({"<", "<="} if value > 0 else {">", ">="})
        return lambda column: (f"{column} IS NOT NULL" if truth else "false", [])
    exact = value
    return lambda column: (f"{column} {order} ?::BIGINT", [exact])


def _texts(operator: Operator, text: str, *, state: bool) -> Callable[[str], tuple[str, list[Any]]]:
    if operator is Operator.MATCHES:
        return lambda column: (f"regexp_matches({column}, ?)", [text])
    if operator is Operator.CONTAINS:
        return lambda column: (f"contains({column}, ?)", [text])
    if state:
        wanted = _STATES.get(text.lower(), text.lower())
        words = " ".join(f"WHEN '{shown}' THEN '{kept}'" for shown, kept in _STATES.items())
        return lambda column: (
            f"CASE lower({column}) {words} ELSE lower({column}) END {operator.value} ?",
            [wanted],
        )
    return lambda column: (f"{column} {operator.value} ?", [text])


def _sets(operator: Operator, text: str) -> Callable[[str], tuple[str, list[Any]]]:
    if operator is Operator.CONTAINS:
        return lambda column: (f"list_contains({column}, ?)", [text])
    if operator is Operator.MATCHES:
        return lambda column: (f"list_bool_or(list_transform({column}, lambda m: regexp_matches(m, ?)))", [text])
    if operator is Operator.EQUAL:
        return lambda column: (f"{column} = [?]", [text])
    raise _unfit(operator, AttributeType.STRING_SET)
