"""The one schema of the lake: Arrow columns, attribute types, and which column holds which type.

Declared once, used by the Parquet writer, the readers, the SQL of the summary, Dagster's table schema and the docs.
Columns and order are those of neptune-exporter 0.1.0, so that its files are ours to read and ours are its.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import pyarrow as pa


class AttributeType(StrEnum):
    """Types a Neptune attribute can have, spelled as in the ``attribute_type`` column."""

    FLOAT = "float"
    INT = "int"
    STRING = "string"
    BOOL = "bool"
    DATETIME = "datetime"
    STRING_SET = "string_set"
    FLOAT_SERIES = "float_series"
    STRING_SERIES = "string_series"
    HISTOGRAM_SERIES = "histogram_series"
    FILE = "file"
    FILE_SERIES = "file_series"
    FILE_SET = "file_set"
    ARTIFACT = "artifact"


class AttributeClass(StrEnum):
    """Groups of attribute types that filters name, as neptune-exporter's ``--classes`` does."""

    PARAMETERS = "parameters"
    METRICS = "metrics"
    SERIES = "series"
    FILES = "files"


class Scope(StrEnum):
    """Kinds of Neptune object that have attributes: runs, and the two levels of the model registry."""

    RUNS = "runs"
    MODELS = "models"
    MODEL_VERSIONS = "model_versions"


STEP_TYPE: Final = pa.decimal128(18, 6)
TIME_TYPE: Final = pa.timestamp("ms", tz="UTC")
FILE_TYPE: Final = pa.struct([("path", pa.string())])
HISTOGRAM_TYPE: Final = pa.struct(
    [("type", pa.string()), ("edges", pa.list_(pa.float64())), ("values", pa.list_(pa.float64()))]
)

SCHEMA: Final = pa.schema(
    [
        ("project_id", pa.string()),
        ("run_id", pa.string()),
        ("attribute_path", pa.string()),
        ("attribute_type", pa.string()),
        ("step", STEP_TYPE),
        ("timestamp", TIME_TYPE),
        ("int_value", pa.int64()),
        ("float_value", pa.float64()),
        ("string_value", pa.string()),
        ("bool_value", pa.bool_()),
        ("datetime_value", TIME_TYPE),
        ("string_set_value", pa.list_(pa.string())),
        ("file_value", FILE_TYPE),
        ("histogram_value", HISTOGRAM_TYPE),
    ]
)

VALUE_COLUMN: Final[Mapping[AttributeType, str]] = MappingProxyType(
    {
        AttributeType.FLOAT: "float_value",
        AttributeType.INT: "int_value",
        AttributeType.STRING: "string_value",
        AttributeType.BOOL: "bool_value",
        AttributeType.DATETIME: "datetime_value",
        AttributeType.STRING_SET: "string_set_value",
        AttributeType.FLOAT_SERIES: "float_value",
        AttributeType.STRING_SERIES: "string_value",
        AttributeType.HISTOGRAM_SERIES: "histogram_value",
        AttributeType.FILE: "file_value",
        AttributeType.FILE_SERIES: "file_value",
        AttributeType.FILE_SET: "file_value",
        AttributeType.ARTIFACT: "file_value",
    }
)

PARAMETER_TYPES: Final = frozenset(
    {
        AttributeType.FLOAT,
        AttributeType.INT,
        AttributeType.STRING,
        AttributeType.BOOL,
        AttributeType.DATETIME,
        AttributeType.STRING_SET,
    }
)
SERIES_TYPES: Final = frozenset(
    {
        AttributeType.FLOAT_SERIES,
        AttributeType.STRING_SERIES,
        AttributeType.HISTOGRAM_SERIES,
        AttributeType.FILE_SERIES,
    }
)
FILE_TYPES: Final = frozenset(
    {AttributeType.FILE, AttributeType.FILE_SERIES, AttributeType.FILE_SET, AttributeType.ARTIFACT}
)

CLASS_TYPES: Final[Mapping[AttributeClass, frozenset[AttributeType]]] = MappingProxyType(
    {
        AttributeClass.PARAMETERS: PARAMETER_TYPES,
        AttributeClass.METRICS: frozenset({AttributeType.FLOAT_SERIES}),
        AttributeClass.SERIES: frozenset({AttributeType.STRING_SERIES, AttributeType.HISTOGRAM_SERIES}),
        AttributeClass.FILES: FILE_TYPES,
    }
)

MAX_STEP: Final = 10**12
"""Steps are decimals with six places; the absolute value stays below this."""

MICROSTEPS: Final = 1_000_000
"""Steps are exact as whole numbers of this many to one."""

MIN_TIME: Final = -9_223_372_022_400_000
MAX_TIME: Final = 9_223_372_036_854_775
"""Epoch milliseconds that a time of the lake may have: what readers that count microseconds in 64 bits can hold.

One value beyond would end every query of DuckDB over the project. Python's datetimes hold the years 1 to 9999 only, so
times are compared, added and written as numbers.
"""
