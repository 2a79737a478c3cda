"""The promises every target keeps, as one pytest class.

A target's own test module says ``class TestMine(TargetContract)`` and names its
:class:`~neptune_assets.testing.places.Place`: how to open the target in a directory, and a reader of what the target
really holds that is independent of the target's own code.
"""

from __future__ import annotations

from neptune_assets.testing.places import (
    BORN,
    BORN_MS,
    PROJECT,
    Died,
    Held,
    Place,
    Rows,
    born,
    die_at,
    dying,
    histogram,
    hook,
    load,
    ms,
    param,
    point,
    same,
    settings_of,
    text,
)
from neptune_assets.testing.target_plans import PlanTests
from neptune_assets.testing.target_runs import ReloadTests, RunTests
from neptune_assets.testing.target_troubles import TroubleTests
from neptune_assets.testing.target_values import ValueTests

__all__ = [
    "BORN",
    "BORN_MS",
    "PROJECT",
    "Died",
    "Held",
    "Place",
    "Rows",
    "TargetContract",
    "born",
    "die_at",
    "dying",
    "histogram",
    "hook",
    "load",
    "ms",
    "param",
    "point",
    "same",
    "settings_of",
    "text",
]


class TargetContract(ValueTests, RunTests, ReloadTests, TroubleTests, PlanTests):
    """Subclass this as ``Test...`` and set the class variables."""
