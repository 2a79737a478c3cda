"""What every target can do, and the words of a load: plan, receipt, verdict.

A load replaces a run as a whole. The run's digest is written in the target **last**: what a target holds without a
digest is partial and is loaded again. Targets know the lake's reader and nothing of sources or Dagster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from neptune_assets.targets.profile import UnsupportedValues as UnsupportedValues
from neptune_assets.targets.profile import ValueCounts

if TYPE_CHECKING:
    from neptune_assets.lake.reader import LakeRun


@dataclass(frozen=True, slots=True)
class Dropped:
    """Rows of one attribute type that the target cannot hold, and why."""

    attribute_type: str
    reason: str
    rows: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What loading one run will do, made without writing anything.

    ``names`` maps attribute paths to the target's names, only where the two differ, and is reversible.
    ``step_multiplier`` is the power of ten that makes all steps whole where the target only knows whole steps, else 1.
    ``collisions`` maps a name to the attributes that all would have had it and are disambiguated, two or more each.
    ``problems`` are reasons not to load the run at all; it is then reported as failed, and nothing is written.
    """

    run_id: str
    names: Mapping[str, str] = field(default_factory=dict)
    step_multiplier: int = 1
    dropped: Sequence[Dropped] = ()
    notes: Sequence[str] = ()
    collisions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    problems: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one load wrote: for every attribute type, ``rows_in == written + mapped + dropped``.

    ``written`` rows are stored in the target as what they are (a metric as a metric); ``mapped`` rows in another
    form that keeps the value (a string series as a text artifact); the rest is in ``dropped`` with its reason.
    """

    project_id: str
    run_id: str
    target_id: str
    digest: str
    rows_in: Mapping[str, int]
    written: Mapping[str, int]
    mapped: Mapping[str, int]
    dropped: Sequence[Dropped] = ()
    notes: Sequence[str] = ()
    bytes_written: int = 0
    checks: Mapping[str, str] = field(default_factory=dict)
    """What verify needs beyond counts, for example checksums by name. JSON-able."""

    def unbalanced(self) -> dict[str, tuple[int, int]]:
        """Return attribute types whose rows do not add up, as {type: (rows in, rows accounted for)}."""
        dropped: dict[str, int] = {}
        for item in self.dropped:
            dropped[item.attribute_type] = dropped.get(item.attribute_type, 0) + item.rows
        kinds = {*self.rows_in, *self.written, *self.mapped, *dropped}
        sums = {k: self.written.get(k, 0) + self.mapped.get(k, 0) + dropped.get(k, 0) for k in kinds}
        return {k: (self.rows_in.get(k, 0), sums[k]) for k in sorted(kinds) if self.rows_in.get(k, 0) != sums[k]}


@dataclass(slots=True)
class RowCounts:
    """What becomes of the rows of one run while it is written, by attribute type: from here to its receipt."""

    rows_in: dict[str, int] = field(default_factory=dict)
    written: Counter[str] = field(default_factory=Counter)
    mapped: Counter[str] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(attribute type, reason) -> rows."""
    notes: list[str] = field(default_factory=list)

    def take(self, kind: str, *, written: int = 0, mapped: int = 0, dropped: int = 0, reason: str = "") -> None:
        """Count rows that were read and what became of them; ``reason`` is why some were dropped."""
        self.rows_in[kind] = self.rows_in.get(kind, 0) + written + mapped + dropped
        self.written[kind] += written
        self.mapped[kind] += mapped
        if dropped:
            self.dropped[kind, reason] += dropped

    def receipt(self, run: LakeRun, target_id: str, *, bytes_written: int, checks: Mapping[str, str]) -> Receipt:
        """Return the receipt of the run, which the target knows as ``target_id``."""
        return Receipt(
            project_id=run.project_id,
            run_id=run.run_id,
            target_id=target_id,
            digest=run.record.digest,
            rows_in=self.rows_in,
            written={kind: rows for kind, rows in self.written.items() if rows},
            mapped={kind: rows for kind, rows in self.mapped.items() if rows},
            dropped=tuple(Dropped(kind, reason, rows) for (kind, reason), rows in sorted(self.dropped.items())),
            notes=tuple(self.notes),
            bytes_written=bytes_written,
            checks=checks,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What reading back over a fresh connection found: differences, each naming what is not as loaded."""

    run_id: str
    differences: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        """True if the target holds what was loaded."""
        return not self.differences


@dataclass(frozen=True, slots=True)
class TargetRun:
    """A run as the target holds it. ``digest`` is None where a load did not finish."""

    project_id: str
    run_id: str
    target_id: str
    digest: str | None


class Target(Protocol):
    """A place that runs are loaded into. One object serves one load; a fresh object means a fresh connection."""

    @property
    def name(self) -> str:
        """The word that settings and assets use for this target."""

    def check(self) -> None:
        """Raise TargetError with the next action if the target cannot be used (wrong address, token, version)."""

    def plan(self, run: LakeRun) -> Plan:
        """Return what loading the run will do. Writes nothing."""

    def is_new(self) -> bool:
        """True if the place does not exist yet, so that nothing can be in it. Asking makes nothing."""

    def unsupported_values(self, values: ValueCounts, plan: Plan) -> Sequence[UnsupportedValues]:
        """Return the values counted in a run that the target cannot hold, and what becomes of them."""

    def find(self, project_id: str, run_id: str) -> TargetRun | None:
        """Find a run by its external key. None only if surely absent; raises on doubt (two of them, no answer)."""

    def replace(self, run: LakeRun, plan: Plan) -> Receipt:
        """Make the target hold exactly this run; the only method that writes runs. The digest goes in last."""

    def verify(self, run: LakeRun, receipt: Receipt) -> Verdict:
        """Read back what the target holds and compare it with the lake."""

    def remove(self, project_id: str, run_id: str) -> None:
        """Take the run out of the target; nothing happens if it is not there."""

    def runs(self, project_id: str) -> Iterator[TargetRun]:
        """Everything of this project that the target holds and this project loaded; rebuilds the ledger."""

    def close(self) -> None:
        """Let go of connections and temporary files."""


@runtime_checkable
class TakesSeveral(Protocol):
    """A target of which one object may load several runs at once, each in a thread of its own.

    ``find``, ``plan``, ``replace`` and ``check`` are then called by several threads, never two for the same run, and a
    fork is only begun after its parent has finished. A target that does not say so gets one run after the other.
    """

    @property
    def runs_at_once(self) -> int:
        """How many runs are worth loading at once; known after ``check``."""


@runtime_checkable
class Sweeps(Protocol):
    """A target that keeps what it writes in places of its own until it is whole, which a killed load leaves behind."""

    def sweep(self, project_id: str) -> None:
        """Remove what killed loads of this project left; called by a load, which is the only one, before its runs."""


def runs_at_once(target: Target) -> int:
    """Return how many runs a target takes at once."""
    return max(1, target.runs_at_once) if isinstance(target, TakesSeveral) else 1
