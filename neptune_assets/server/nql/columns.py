"""What the catalog keeps of an attribute, as a query sees it: which column holds the value of which type."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from neptune_assets.schema import AttributeType
from neptune_assets.server.nql.errors import QueryError
from neptune_assets.server.nql.tree import Operand

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
