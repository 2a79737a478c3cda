"""What of an attribute is not in the catalog yet, as bits: it is read from the points when somebody asks for it."""

from __future__ import annotations

from typing import Final

from neptune_assets.schema import AttributeType

AGGREGATES: Final = 1
"""Last value and step, least, greatest, mean and number of points of a float series."""
VARIANCE: Final = 2
"""Variance of a float series, where the lake's statistics do not hold it: old ones, and of values near either end."""
LAST: Final = 4
"""Last value and step, and number of points, of a series of strings, histograms or files."""


def everything(kind: AttributeType) -> int:
    """Return the bits of a series of which nothing was read; 0 for anything else."""
    if kind is AttributeType.FLOAT_SERIES:
        return AGGREGATES | VARIANCE
    if kind in {AttributeType.STRING_SERIES, AttributeType.HISTOGRAM_SERIES, AttributeType.FILE_SERIES}:
        return LAST
    return 0
