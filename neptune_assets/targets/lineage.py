"""What a fork inherits of its ancestors, for targets that show it in front of the fork's own rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from neptune_assets.lake.rows import NONE, microsteps
from neptune_assets.schema import AttributeType
from neptune_assets.targets.columns import Bools, Ints, codes, typed_rows
from neptune_assets.targets.rules import RenamedRun

if TYPE_CHECKING:
    from neptune_assets.lake.manifest import RunRecord
    from neptune_assets.lake.reader import LakeRun

INHERITED: Final = frozenset({AttributeType.FLOAT_SERIES, AttributeType.HISTOGRAM_SERIES})
"""What a fork takes over: texts and files of its ancestors stay with them."""


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A run that a fork comes from, and the last micro-step it has of it."""

    run: LakeRun
    until: int


def chain(records: Mapping[str, RunRecord], run_id: str) -> list[tuple[str, int]]:
    """Return (ancestor, last micro-step inherited from it), nearest first.

    The chain ends at a run that is not in the lake or names no fork step, and where it would close into a circle.
    """
    found: dict[str, int] = {}
    until: int | None = None
    record = records.get(run_id)
    while record is not None and record.parent is not None and record.fork_step is not None:
        parent = record.parent
        if parent not in records or parent == run_id or parent in found:
            break
        until = record.fork_step if until is None else min(until, record.fork_step)
        found[parent] = until
        record = records[parent]
    return list(found.items())


def ancestors(run: LakeRun) -> tuple[Ancestor, ...]:
    """Return the ancestors of a run, nearest first, under the same rules as the run itself."""
    if run.record.parent is None:
        return ()
    found = []
    for run_id, until in chain(run.project.records(), run.run_id):
        other = run.project.run(run_id)
        other.check()
        found.append(Ancestor(RenamedRun(other, run.rules) if isinstance(run, RenamedRun) else other, until))
    return tuple(found)


class Inheritance:
    """Chooses the rows of ancestors: those up to the fork step and before the first one nearer to the run."""

    def __init__(self, lineage: Sequence[Ancestor]) -> None:
        self._lineage = lineage
        self._firsts: dict[tuple[str, str], int] = {}

    def own(self, kind: AttributeType, rows: pa.RecordBatch) -> None:
        """Take notice of the run's own rows; all of them, before :meth:`rows` is asked."""
        if self._lineage and kind in INHERITED:
            _lower(self._firsts, str(kind), rows)

    def rows(self) -> Iterator[tuple[AttributeType, pa.RecordBatch]]:
        """Yield (type, rows) of what is inherited."""
        for ancestor in self._lineage:
            nearer = dict(self._firsts)
            for kind, rows in typed_rows(ancestor.run, INHERITED):
                kept = rows.filter(pa.array(self._wanted(nearer, str(kind), rows, ancestor.until)))
                if kept.num_rows:
                    _lower(self._firsts, str(kind), kept)
                    yield kind, kept

    def rows_in_order(self) -> Iterator[tuple[AttributeType, pa.RecordBatch]]:
        """Yield what :meth:`rows` does, the farthest ancestor first, so that steps rise; reads ancestors twice."""
        limits = []
        for ancestor in self._lineage:
            limits.append(dict(self._firsts))
            for kind, rows in typed_rows(ancestor.run, INHERITED):
                wanted = self._wanted(limits[-1], str(kind), rows, ancestor.until)
                _lower(self._firsts, str(kind), rows.filter(pa.array(wanted)))
        for ancestor, nearer in reversed(list(zip(self._lineage, limits, strict=True))):
            for kind, rows in typed_rows(ancestor.run, INHERITED):
                kept = rows.filter(pa.array(self._wanted(nearer, str(kind), rows, ancestor.until)))
                if kept.num_rows:
                    yield kind, kept

    def _wanted(self, nearer: dict[tuple[str, str], int], kind: str, rows: pa.RecordBatch, until: int) -> Bools:
        numbers, names = codes(rows.column("attribute_path"))
        ends: Ints = np.array([min(until, nearer.get((name, kind), until + 1) - 1) for name in names], dtype=np.int64)
        steps = microsteps(rows.column("step"))
        wanted: Bools = (steps != NONE) & (steps <= ends[numbers])
        return wanted


def _lower(firsts: dict[tuple[str, str], int], kind: str, rows: pa.RecordBatch) -> None:
    """Lower the first micro-step of each series to that of these rows, sorted by series and step."""
    numbers, names = codes(rows.column("attribute_path"))
    steps = microsteps(rows.column("step"))
    numbers, steps = numbers[steps != NONE], steps[steps != NONE]
    for number in np.unique(numbers).tolist():
        first = int(steps[numbers == number].min())
        firsts[names[number], kind] = min(first, firsts.get((names[number], kind), first))
