"""What attributes a run has: their names and types, how many rows, and how far steps reach. Reads no values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from neptune_assets.schema import SERIES_TYPES, AttributeType
from neptune_assets.targets.wandb.columns import codes, microsteps, present
from neptune_assets.targets.wandb.lineage import INHERITED

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun

Attribute = tuple[str, str]
"""Path and type."""


@dataclass(slots=True)
class Survey:
    """What reading the names, types and steps of a run found, without its values."""

    rows: Counter[Attribute] = field(default_factory=Counter)
    places: int = 0
    lowest: int = 0
    highest: int = 0
    stepless: Counter[str] = field(default_factory=Counter)

    def of(self, types: Iterable[AttributeType]) -> list[Attribute]:
        """Return the attributes of these types, sorted."""
        wanted = {str(item) for item in types}
        return sorted(key for key in self.rows if key[1] in wanted)

    def by_type(self) -> dict[str, int]:
        """Return the rows of each attribute type."""
        counts: Counter[str] = Counter()
        for (_, kind), rows in self.rows.items():
            counts[kind] += rows
        return dict(counts)


def survey(run: LakeRun, until: int | None = None) -> Survey:
    """Read names, types and steps of a run; memory grows with its attributes, not with its points.

    ``until`` is for ancestors: only what a fork inherits up to this micro-step is looked at.
    """
    found = Survey()
    lowest: list[int] = []
    highest: list[int] = []
    series = {str(item) for item in SERIES_TYPES}
    types = None if until is None else INHERITED
    for batch in run.batches(types=types, columns=["attribute_path", "attribute_type", "step"]):
        if until is not None:
            place = batch.column("step")
            batch = batch.filter(pa.array(present(place) & (microsteps(place) <= until)))
        paths, path_names = codes(batch.column("attribute_path"))
        kinds, kind_names = codes(batch.column("attribute_type"))
        pair, counts = np.unique(paths * len(kind_names) + kinds, return_counts=True)
        for code, count in zip(pair.tolist(), counts.tolist(), strict=True):
            path, kind = divmod(code, len(kind_names))
            found.rows[path_names[path], kind_names[kind]] += count
        stepped = np.isin(kinds, [number for number, name in enumerate(kind_names) if name in series])
        if not stepped.any():
            continue
        valid = present(batch.column("step"))
        for number, name in enumerate(kind_names):
            missing = int(np.count_nonzero(stepped & ~valid & (kinds == number)))
            if missing:
                found.stepless[name] += missing
        steps = microsteps(batch.column("step"))[stepped & valid]
        if steps.size:
            lowest.append(int(steps.min()))
            highest.append(int(steps.max()))
            while found.places < 6 and (steps % 10 ** (6 - found.places)).any():
                found.places += 1
    if lowest:
        found.lowest, found.highest = min(lowest), max(highest)
    return found
