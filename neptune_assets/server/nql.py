"""Neptune's query language: text to a syntax tree, and a syntax tree to a condition in DuckDB's SQL.

Values are bound, never written into the SQL text. The parser is LALR and builds the tree on the way, so no text can
exhaust Python's stack. The client is told what is wrong with a query; nothing is guessed.
"""

from __future__ import annotations

import calendar
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, InvalidOperation
from enum import StrEnum
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, cast

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedInput, VisitError

from neptune_assets.errors import NeptuneAssetsError
from neptune_assets.schema import AttributeType


class QueryError(NeptuneAssetsError):
    """A query cannot be answered as it is written."""

    def __init__(self, message: str, *, hint: str = "See Neptune's documentation of its query language, NQL.") -> None:
        super().__init__(message, hint=hint)


class QuerySyntaxError(QueryError):
    """The text is not in the query language."""


Aggregate: TypeAlias = Literal["last", "min", "max", "average", "variance"]


class Operator(StrEnum):
    """How an attribute is compared with a value."""

    EQUAL = "="
    LESS = "<"
    LESS_OR_EQUAL = "<="
    GREATER = ">"
    GREATER_OR_EQUAL = ">="
    MATCHES = "MATCHES"
    CONTAINS = "CONTAINS"


@dataclass(frozen=True, slots=True)
class Operand:
    """An attribute by its path; ``type`` is the query's word for its type, None where it names none."""

    path: str
    type: str | None = None
    aggregate: Aggregate | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """An attribute compared with a value, which is text until the attribute's type is known."""

    operand: Operand
    operator: Operator
    value: str


@dataclass(frozen=True, slots=True)
class Exists:
    """The run has the attribute."""

    operand: Operand


@dataclass(frozen=True, slots=True)
class Not:
    """The inner condition does not hold."""

    inner: Node


@dataclass(frozen=True, slots=True)
class And:
    """All of at least two conditions hold."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of at least two conditions holds."""

    parts: tuple[Node, ...]


Node: TypeAlias = "Comparison | Exists | Not | And | Or"


def operands(node: Node) -> Iterator[Operand]:
    """Yield the operands of a tree in the order of the query; some may come more than once."""
    pending: list[Node] = [node]
    while pending:
        current = pending.pop()
        if isinstance(current, (Comparison, Exists)):
            yield current.operand
        elif isinstance(current, Not):
            pending.append(current.inner)
        else:
            pending.extend(reversed(current.parts))


_UNITS: Final = {"b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40, "pb": 1 << 50}
_SIZE: Final = re.compile(r"([+-]?[0-9.]+)\s*([kmgtp]?b)", re.IGNORECASE)
_RELATIVE: Final = re.compile(r"([+-])([0-9]{1,9})\s*([smhdwMy])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Number = int | float | Decimal


def number(text: str) -> Number:
    """Return a number: an int or Decimal, exact, or a float for infinities and NaN. Sizes become bytes (1 KB = 1024).

    Raises QueryError for anything else.
    """
    plain = text.strip()
    size = _SIZE.fullmatch(plain)
    try:
        value = Decimal(size[1] if size else plain)
    except InvalidOperation as error:
        raise QueryError(f"{text!r} is not a number.", hint="Compare a number with digits such as 0.5.") from error
    if not value.is_finite():
        return float(value) if not value.is_snan() else float("nan")
    if size:
        value *= _UNITS[size[2].lower()]
    # An exponent of millions would make an int of millions of digits.
    if abs(value.adjusted()) > 400:
        return float(value)
    return int(value) if value == value.to_integral_value() else value


def boolean(text: str) -> bool:
    """Return true or false in any letter case. Raises QueryError for anything else."""
    found = {"true": True, "false": False}.get(text.strip().lower())
    if found is None:
        raise QueryError(f"{text!r} is neither true nor false.", hint="Compare a boolean with true or false.")
    return found


def moment(text: str, now: datetime) -> int:
    """Return milliseconds since 1970 of an ISO 8601 time (UTC where it has no offset) or of one like -2h, -5d, -1M.

    Raises QueryError for anything else.
    """
    plain = text.strip()
    relative = _RELATIVE.fullmatch(plain)
    try:
        if relative:
            time = _shifted(now, int(relative[1] + relative[2]), relative[3])
        else:
            time = datetime.fromisoformat(plain)
            if time.tzinfo is None:
                time = time.replace(tzinfo=UTC)
        return (time - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError) as error:
        raise QueryError(
            f"{text!r} is not a time.", hint="Write it as 2025-01-31T12:00:00Z, or relative to now as -2h, -5d, -1M."
        ) from error


def _shifted(now: datetime, amount: int, unit: str) -> datetime:
    if unit in _SECONDS:
        return now + timedelta(seconds=amount * _SECONDS[unit])
    months = now.year * 12 + now.month - 1 + amount * (12 if unit == "y" else 1)
    year, month = divmod(months, 12)
    return now.replace(year=year, month=month + 1, day=min(now.day, calendar.monthrange(year, month + 1)[1]))


TYPES: Final[Mapping[str, frozenset[AttributeType]]] = MappingProxyType(
    {
        "float": frozenset({AttributeType.FLOAT}),
        "int": frozenset({AttributeType.INT}),
        "string": frozenset({AttributeType.STRING}),
        "bool": frozenset({AttributeType.BOOL}),
        "datetime": frozenset({AttributeType.DATETIME}),
        "stringSet": frozenset({AttributeType.STRING_SET}),
        "floatSeries": frozenset({AttributeType.FLOAT_SERIES}),
        "stringSeries": frozenset({AttributeType.STRING_SERIES}),
        "histogramSeries": frozenset({AttributeType.HISTOGRAM_SERIES}),
        "fileRef": frozenset({AttributeType.FILE}),
        "fileRefSeries": frozenset({AttributeType.FILE_SERIES}),
        "file": frozenset({AttributeType.FILE}),
        "fileSet": frozenset({AttributeType.FILE_SET}),
        "imageSeries": frozenset({AttributeType.FILE_SERIES}),
        "artifact": frozenset({AttributeType.ARTIFACT}),
        # The state of a run is kept as text.
        "experimentState": frozenset({AttributeType.STRING}),
        "gitRef": frozenset(),
        "notebookRef": frozenset(),
    }
)
"""Words for types in queries of both generations of the protocol."""

NUMBER_COLUMNS: Final[Mapping[str, str]] = MappingProxyType(
    {"last": "number", "min": "least", "max": "greatest", "average": "mean", "variance": "variance"}
)
"""Column of each aggregate of a float series."""

COLUMNS: Final[Mapping[AttributeType, str]] = MappingProxyType(
    {
        AttributeType.FLOAT: "number",
        AttributeType.INT: "whole",
        AttributeType.STRING: "text",
        AttributeType.BOOL: "flag",
        AttributeType.DATETIME: "moment",
        AttributeType.STRING_SET: "members",
        AttributeType.STRING_SERIES: "text",
    }
)
"""Column of the catalog that holds the value of each type; of a series of strings the last one."""


def types_of(word: str | None) -> frozenset[AttributeType]:
    """Return the attribute types that a query's word means, all without one. Raises QueryError for an unknown word."""
    if word is None:
        return frozenset(AttributeType)
    found = TYPES.get(word)
    if found is None:
        raise QueryError(f"There is no attribute type {word!r}.", hint=f"Types are {', '.join(TYPES)}.")
    return found


def column_of(operand: Operand, kind: AttributeType) -> str | None:
    """Return the catalog's column of an operand where the attribute has this type; None if it has no value there."""
    aggregate = operand.aggregate or "last"
    if kind is AttributeType.FLOAT_SERIES:
        return NUMBER_COLUMNS[aggregate]
    # The aggregates of anything else but a float series are of its last value.
    return COLUMNS.get(kind) if aggregate == "last" else None


MAX_LENGTH: Final = 4 << 20
"""Characters of a query; the clients' own limit is a request of 220,000 bytes."""

MAX_DEPTH: Final = 200
"""How deep conditions may be nested; DuckDB refuses expressions that are deeper than 1,000."""

_ESCAPES: Final = {'"': re.compile(r'\\(["\\])'), "'": re.compile(r"\\(['\\])")}
"""What a backslash can come before, by the kind of quotes."""


def parse(text: str) -> Node | None:
    """Return the tree of a query, None for an empty one. Raises QuerySyntaxError, saying where."""
    if len(text) > MAX_LENGTH:
        raise QuerySyntaxError(f"A query of {len(text):,} characters is too long.", hint="Ask in smaller parts.")
    if not text.strip():
        return None
    try:
        node, _ = cast("tuple[Node, int]", _parser().parse(text))
    except UnexpectedInput as error:
        raise QuerySyntaxError(_explain(text, error)) from error
    except VisitError as error:
        if isinstance(error.orig_exc, QuerySyntaxError):
            raise error.orig_exc from error
        raise
    return node


class _Builder(Transformer[Token, Any]):
    """Builds (node, depth) pairs as the parser reduces."""

    def disjunction(self, children: list[Any]) -> tuple[Node, int]:
        return _join(Or, children)

    def conjunction(self, children: list[Any]) -> tuple[Node, int]:
        return _join(And, children)

    def negation(self, children: list[Any]) -> tuple[Node, int]:
        return _negate(children[0])

    def exists(self, children: list[Any]) -> tuple[Node, int]:
        return Exists(children[0]), 1

    def comparison(self, children: list[Any]) -> tuple[Node, int]:
        operand, word, value = children
        if word == "!=":
            return Not(Comparison(operand, Operator.EQUAL, value)), 2
        operator = Operator.EQUAL if word == "==" else Operator(word)
        return Comparison(operand, operator, value), 1

    def negated(self, children: list[Any]) -> tuple[Node, int]:
        operand, word, value = children
        return Not(Comparison(operand, Operator(str(word).upper()), value)), 2

    def operator(self, children: list[Token]) -> str:
        return str(children[0]).upper()

    def plain(self, children: list[Any]) -> Operand:
        name, kind = children
        return Operand(_name(name), None if kind is None else str(kind))

    def aggregated(self, children: list[Any]) -> Operand:
        aggregate, name, inner, outer = children
        kind = inner if inner is not None else outer
        word = cast("Aggregate", str(aggregate).lower())
        return Operand(_name(name), None if kind is None else str(kind), word)

    def value(self, children: list[Token]) -> str:
        token = children[0]
        return _ESCAPES[token[0]].sub(r"\1", token[1:-1]) if token.type == "STRING" else str(token)


def _name(token: Token) -> str:
    return str(token[1:-1]) if token.type == "QUOTED_NAME" else str(token)


def _join(kind: type[And] | type[Or], children: list[tuple[Node, int]]) -> tuple[Node, int]:
    parts: list[Node] = []
    for node, _ in children:
        # A disjunction in a disjunction is one disjunction: chains in parentheses stay shallow.
        parts.extend(node.parts if isinstance(node, kind) else (node,))
    return kind(tuple(parts)), _deeper(max(depth for _, depth in children))


def _negate(child: tuple[Node, int]) -> tuple[Node, int]:
    node, depth = child
    if isinstance(node, Not):
        return node.inner, depth
    return Not(node), _deeper(depth)


def _deeper(depth: int) -> int:
    if depth >= MAX_DEPTH:
        raise QuerySyntaxError(f"The query nests conditions more than {MAX_DEPTH} deep.", hint="Ask in smaller parts.")
    return depth + 1


@cache
def _parser() -> Lark:
    text = files("neptune_assets.server").joinpath("nql.lark").read_text(encoding="utf-8")
    return Lark(text, parser="lalr", transformer=_Builder(), maybe_placeholders=True)


def _explain(text: str, error: UnexpectedInput) -> str:
    place = getattr(error, "pos_in_stream", None)
    if place is None or place < 0 or place >= len(text):
        return "The query ends where a condition is not complete."
    before, after = text[max(0, place - 20) : place], text[place : place + 20]
    return f"The query cannot be understood at character {place + 1}: ...{before}>>>{after}..."


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
            return _floats(_ordering(operator, kind), number(text))
        if kind is AttributeType.INT:
            return _ints(_ordering(operator, kind), number(text))
        if kind is AttributeType.BOOL:
            truth = boolean(text)
            if operator is not Operator.EQUAL:
                raise _unfit(operator, kind)
            return lambda column: (f"{column} = ?", [truth])
        if kind is AttributeType.DATETIME:
            order, value = _ordering(operator, kind), moment(text, self._now)
            return lambda column: (f"{column} {order} ?", [value])
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


def _floats(order: str, value: Number) -> Callable[[str], tuple[str, list[Any]]]:
    try:
        wanted = float(value)
    except OverflowError:
        wanted = math.inf if value > 0 else -math.inf
    if math.isnan(wanted):
        # As in the clients' languages, NaN is neither equal to anything nor less nor greater.
        return lambda _: ("false", [])
    return lambda column: (f"({column} {order} ?::DOUBLE AND NOT isnan({column}))", [wanted])


def _ints(order: str, value: Number) -> Callable[[str], tuple[str, list[Any]]]:
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
