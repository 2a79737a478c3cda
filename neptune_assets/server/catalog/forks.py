"""What forks inherit: series of the parent that begin at or before the fork step belong to the child, too.

Set by set, parents before children. How such a series ends is read from the points when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import duckdb
import pyarrow as pa

from neptune_assets.schema import SERIES_TYPES, AttributeType
from neptune_assets.server.catalog.pending import everything

_SERIES: Final = ", ".join(f"'{kind}'" for kind in sorted(SERIES_TYPES))
_PENDING: Final = " ".join(f"WHEN '{kind}' THEN {everything(AttributeType(kind))}" for kind in sorted(SERIES_TYPES))
# The parent's series that reach into the child.
_REACHING: Final = f"""
    SELECT f.child, f.anew, a.name, n.path, a.first_step, CASE n.type {_PENDING} END::UTINYINT AS pending
    FROM forks f JOIN attributes a ON a.run = f.parent JOIN names n USING (name)
    WHERE n.type IN ({_SERIES}) AND a.first_step <= f.step
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Fork:
    """A child by its number, its parent's, and the step. ``anew``: the parent changed since the child was looked at."""

    child: int
    parent: int
    step: int
    anew: bool


def inherit(con: duckdb.DuckDBPyConnection, forks: Iterable[Fork]) -> None:
    """Bring what these children inherit up to date; their parents must be so already, and none of them be a child."""
    items = list(forks)
    table = pa.table(
        {
            "child": pa.array([fork.child for fork in items], pa.int32()),
            "parent": pa.array([fork.parent for fork in items], pa.int32()),
            "step": pa.array([fork.step for fork in items], pa.int64()),
            "anew": pa.array([fork.anew for fork in items], pa.bool_()),
        }
    )
    con.register("forks", table)
    con.execute(f"CREATE OR REPLACE TEMP TABLE reaching AS {_REACHING}")
    con.execute(
        "DELETE FROM attributes WHERE inherited AND run IN (SELECT child FROM forks WHERE anew) "
        "AND NOT EXISTS (FROM reaching r WHERE r.child = attributes.run AND r.name = attributes.name)"
    )
    # Until somebody reads the points, what was known of a series stays: no query sees it without a value.
    con.execute(
        "UPDATE attributes SET pending = r.pending, first_step = r.first_step FROM reaching r "
        "WHERE attributes.run = r.child AND attributes.name = r.name AND attributes.inherited AND r.anew"
    )
    con.execute(
        "UPDATE attributes SET pending = attributes.pending | r.pending, "
        "first_step = least(attributes.first_step, r.first_step) FROM reaching r "
        "WHERE attributes.run = r.child AND attributes.name = r.name AND NOT attributes.inherited "
        "AND (r.anew OR attributes.pending <> 0)"
    )
    # Points of its own before the fork step stay outside of its line, but are in what the lake's writer measured.
    con.execute(
        f"UPDATE attributes SET pending = attributes.pending | CASE n.type {_PENDING} END::UTINYINT "  # noqa: S608
        "FROM forks f, names n WHERE attributes.run = f.child AND n.name = attributes.name "
        f"AND n.type IN ({_SERIES}) AND NOT attributes.inherited AND attributes.first_step < f.step "
        "AND (f.anew OR attributes.pending <> 0)"
    )
    con.execute(
        "INSERT INTO attributes (run, name, first_step, pending, inherited) "
        "SELECT r.child, r.name, r.first_step, r.pending, true FROM reaching r "
        "WHERE NOT EXISTS (FROM attributes a JOIN names n USING (name) WHERE a.run = r.child AND n.path = r.path)"
    )
    con.execute("DROP TABLE reaching")
    con.unregister("forks")
