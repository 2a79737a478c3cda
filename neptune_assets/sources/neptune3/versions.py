"""Which versions of neptune-query speak the protocol that the fast way of reading was tested with."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

TESTED: Final = frozenset({"1.14.1"})


def fast_way_is_tested() -> bool:
    """True if the installed neptune-query is one that asks servers as the fast way does."""
    return version("neptune-query") in TESTED
