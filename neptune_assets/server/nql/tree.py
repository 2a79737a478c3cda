"""The syntax tree of a query. Negative operators are negations: they match runs that lack the attribute, too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

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
