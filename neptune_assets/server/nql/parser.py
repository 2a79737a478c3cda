"""Text to syntax tree. The parser is LALR and builds the tree on the way, so no text can exhaust Python's stack."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any, Final, cast

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedInput, VisitError

from neptune_assets.server.nql.errors import QuerySyntaxError
from neptune_assets.server.nql.tree import Aggregate, And, Comparison, Exists, Node, Not, Operand, Operator, Or

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
    text = files("neptune_assets.server.nql").joinpath("grammar.lark").read_text(encoding="utf-8")
    return Lark(text, parser="lalr", transformer=_Builder(), maybe_placeholders=True)


def _explain(text: str, error: UnexpectedInput) -> str:
    place = getattr(error, "pos_in_stream", None)
    if place is None or place < 0 or place >= len(text):
        return "The query ends where a condition is not complete."
    before, after = text[max(0, place - 20) : place], text[place : place + 20]
    return f"The query cannot be understood at character {place + 1}: ...{before}>>>{after}..."
