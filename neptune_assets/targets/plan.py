"""What a load of one project will do, found out without writing anything.

For every run: create, replace, skip, withhold or refuse. For those to be loaded: names, collisions, steps, values that
the target cannot hold with what becomes of them, sizes, and the time it will take as earlier loads took.
Memory grows with the number of runs and the names listed, never with points; lists are cut, counts are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from neptune_assets.errors import NeptuneAssetsError
from neptune_assets.lake.reader import LakeProject
from neptune_assets.markdown import Cell, duration_text, escape, size_text, table
from neptune_assets.targets.concurrency import parents_first, why_partial
from neptune_assets.targets.ledger import Entry, Ledger
from neptune_assets.targets.load import refusals
from neptune_assets.targets.profile import count_values
from neptune_assets.targets.protocol import Plan, Target, TargetRun
from neptune_assets.targets.rules import RenamedProject, RenamedRun, Rules


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured: runs with rows and bytes written in so many seconds, planning and reading back included."""

    runs: int = 0
    rows: int = 0
    points: int = 0
    bytes: int = 0
    seconds: float = 0.0

    @property
    def known(self) -> bool:
        """True if anything was measured."""
        return self.seconds > 0 and self.rows > 0

    def estimate(self, runs: int, rows: int, size: int) -> float | None:
        """Return seconds for runs with so many rows and bytes of files, at the slowest of the measured rates.

        None if nothing was measured.
        """
        if not self.known:
            return None
        wanted = [rows / self.rows]
        if self.bytes:
            wanted.append(size / self.bytes)
        return max(wanted) * self.seconds if runs else 0.0


def measured(entries: Iterable[Entry]) -> Speed:
    """Add up the receipts of verified runs whose time was taken."""
    runs = rows = points = size = 0
    seconds = 0.0
    for entry in entries:
        if entry.receipt is None or not entry.verified or entry.seconds is None:
            continue
        runs += 1
        rows += sum(entry.receipt.rows_in.values())
        points += entry.receipt.rows_in.get("float_series", 0)
        size += entry.receipt.bytes_written
        seconds += entry.seconds
    return Speed(runs, rows, points, size, seconds)


KEPT_ATTRIBUTES: Final = 50_000
"""Attributes of runs whose plans are kept for the load that follows; those of further runs are made again."""

LISTED: Final = 200
"""Names, collisions, notes that a plan lists; it counts all of them."""

Fate = Literal["create", "replace", "skip", "withhold", "refuse"]


@dataclass
class ProjectPlan:
    """What a load will do with one project."""

    target: str
    project_id: str
    create: list[str] = field(default_factory=list)
    replace: list[str] = field(default_factory=list)
    skip: list[str] = field(default_factory=list)
    withhold: dict[str, str] = field(default_factory=dict)
    refuse: dict[str, str] = field(default_factory=dict)
    """Run id -> why it will not be loaded: these are what makes a plan fail."""
    rows: dict[str, int] = field(default_factory=dict)
    """Rows to load by attribute type, those that rules drop left out."""
    dropped: dict[tuple[str, str], int] = field(default_factory=dict)
    """Rows that rules drop, by (attribute type, reason)."""
    unsupported: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """(attribute type, what, what becomes of it) -> rows that the target cannot hold as they are."""
    names: dict[str, str] = field(default_factory=dict)
    """Attribute path -> name in the target, where they differ: the first :data:`LISTED`."""
    renamed: int = 0
    """How many attributes of all runs get another name."""
    collisions: dict[str, list[str]] = field(default_factory=dict)
    """Name -> attributes that would all have had it: the first :data:`LISTED`."""
    collided: int = 0
    multipliers: dict[int, int] = field(default_factory=dict)
    """Step multiplier -> how many runs have it."""
    notes: dict[str, str] = field(default_factory=dict)
    """Run id -> what its plan remarks: the first :data:`LISTED`."""
    lake_bytes: int = 0
    """Size of the Parquet parts of runs to load."""
    file_bytes: int = 0
    """Size of the files of runs to load."""
    speed: Speed = field(default_factory=Speed)
    derived: dict[str, tuple[str, dict[object, Any]]] = field(default_factory=dict, repr=False)
    """Run id -> its digest and what was worked out of it, which a load that follows need not read again."""
    values_counted: bool = True
    """False if values were not looked at, so that ``unsupported`` is not known."""

    @property
    def to_load(self) -> int:
        """Runs that will be written."""
        return len(self.create) + len(self.replace)

    @property
    def total_rows(self) -> int:
        """Rows that will be loaded."""
        return sum(self.rows.values())

    @property
    def seconds(self) -> float | None:
        """How long the load will take; None if no earlier load was measured."""
        return self.speed.estimate(self.to_load, self.total_rows, self.file_bytes)

    @property
    def warnings(self) -> list[str]:
        """What somebody should know before the load, though nothing keeps it from running."""
        found = []
        if self.withhold:
            found.append(f"{len(self.withhold):,} partial runs will be withheld")
        if self.collided:
            found.append(f"{self.collided:,} names collide and were disambiguated")
        if self.unsupported:
            found.append(f"{sum(self.unsupported.values()):,} values cannot be held as they are")
        if self.dropped:
            found.append(f"{sum(self.dropped.values()):,} rows are dropped by rules")
        return found


def plan_project(
    project: LakeProject,
    open_target: Callable[[], Target],
    ledger: Ledger,
    *,
    partial_runs: Literal["withhold", "load"] = "withhold",
    rules: Rules | None = None,
    full_refresh: bool = False,
    values: bool = True,
) -> ProjectPlan:
    """Find out what :func:`~neptune_assets.targets.load.load_project` would do now, with the same arguments.

    ``values`` False leaves out the pass over the values of runs. Raises TargetError if the target cannot be used; what
    is wrong with one run is in the plan.
    """
    ruled = RenamedProject(project, rules)
    target = open_target()
    try:
        plan = ProjectPlan(target.name, project.project_id, values_counted=values)
        new = target.is_new()
        if not new:
            target.check()
        kept = ledger.entries()
        entries = kept or {}
        plan.speed = measured(entries.values())
        if not plan.speed.known:
            plan.speed = measured(ledger.of_other_projects())
        records = ruled.records()
        attributes = 0
        for run_id in parents_first(records):
            record = records[run_id]
            if not record.complete and partial_runs == "withhold":
                plan.withhold[run_id] = why_partial(record)
                continue
            try:
                found = None if new else target.find(project.project_id, run_id)
                known = found is not None and (kept is None or _known(found, entries.get(run_id)))
                if found is not None and found.digest == ruled.digest(record) and not full_refresh and known:
                    plan.skip.append(run_id)
                    continue
                run = ruled.run(run_id)
                of_run = target.plan(run)
                if refused := refusals(of_run, ruled.rules):
                    plan.refuse[run_id] = "; ".join(refused[:5])
                    continue
                _add(plan, target, run, of_run)
                attributes += sum(record.attributes.values())
                if attributes <= KEPT_ATTRIBUTES:
                    plan.derived[run_id] = (run.record.digest, run.derived)
                (plan.create if found is None else plan.replace).append(run_id)
            except NeptuneAssetsError as error:
                plan.refuse[run_id] = str(error)
        return plan
    finally:
        target.close()


def _known(found: TargetRun, entry: Entry | None) -> bool:
    """True if the ledger speaks for what the target holds, as a load asks it."""
    return (
        entry is not None
        and (entry.digest, entry.target_id) == (found.digest, found.target_id)
        and entry.verified is not False
    )


def _add(plan: ProjectPlan, target: Target, run: RenamedRun, of_run: Plan) -> None:
    """Add one run that will be loaded to the sums. What can fail is done first."""
    unsupported = (
        target.unsupported_values(count_values(run, of_run.step_multiplier), of_run) if plan.values_counted else ()
    )
    for kind, rows in run.record.rows.items():
        plan.rows[kind] = plan.rows.get(kind, 0) + rows
    for item in run.dropped:
        _count(plan.dropped, (item.attribute_type, item.reason), item.rows)
    plan.renamed += len(of_run.names)
    _list(plan.names, of_run.names)
    plan.collided += len(of_run.collisions)
    _list(plan.collisions, {name: list(paths) for name, paths in of_run.collisions.items()})
    _count(plan.multipliers, of_run.step_multiplier, 1)
    if of_run.notes:
        _list(plan.notes, {run.run_id: "; ".join(of_run.notes)})
    plan.lake_bytes += sum(part.bytes for part in run.record.parts)
    plan.file_bytes += sum(item.size for item in run.record.files)
    for value in unsupported:
        _count(plan.unsupported, (value.attribute_type, value.what, value.fate), value.rows)


def _count(counts: dict[Any, int], key: Any, by: int) -> None:
    counts[key] = counts.get(key, 0) + by


def _list(listed: dict[str, Any], more: Any) -> None:
    for key, value in more.items():
        if len(listed) >= LISTED:
            return
        listed.setdefault(key, value)


def plan_page(plan: ProjectPlan, cell: Cell = escape) -> str:
    """Return what a load will do; ``cell`` makes text safe for where it is shown."""

    def lines(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
        return table(header, rows, cell=cell, more="are not listed")

    runs = [
        ("create", len(plan.create), _sample(plan.create)),
        ("replace", len(plan.replace), _sample(plan.replace)),
        ("skip, already there", len(plan.skip), ""),
        ("withhold, partial", len(plan.withhold), _sample(plan.withhold)),
        ("refuse", len(plan.refuse), _sample(plan.refuse)),
    ]
    parts = [
        f"### {cell(plan.project_id, 200)} into {cell(plan.target, 60)}",
        lines(["runs", "number", "which"], runs),
        f"To load: {plan.total_rows:,} rows ({plan.rows.get('float_series', 0):,} metric points) from "
        f"{size_text(plan.lake_bytes)} of Parquet, and {size_text(plan.file_bytes)} of files. {_time(plan)}",
    ]
    if plan.rows:
        parts.append(lines(["attribute type", "rows"], [(kind, f"{n:,}") for kind, n in sorted(plan.rows.items())]))
    if set(plan.multipliers) - {1}:
        steps = [(f"times {factor:,}", f"{runs:,}") for factor, runs in sorted(plan.multipliers.items())]
        parts.append(lines(["steps become whole numbers", "runs"], steps))
    if not plan.values_counted:
        parts.append("Values were not looked at.")
    elif plan.unsupported:
        parts.append(
            lines(
                ["attribute type", "what the target cannot hold", "values", "what happens"],
                [(kind, what, f"{rows:,}", fate) for (kind, what, fate), rows in sorted(plan.unsupported.items())],
            )
        )
    if plan.dropped:
        parts.append(
            lines(
                ["attribute type", "left out", "rows"],
                [(kind, reason, f"{rows:,}") for (kind, reason), rows in sorted(plan.dropped.items())],
            )
        )
    if plan.collisions:
        cut = f" (the first {LISTED})" if plan.collided > len(plan.collisions) else ""
        parts.append(f"{plan.collided:,} names collide and were disambiguated{cut}:")
        parts.append(
            lines(["name", "attributes"], [(name, ", ".join(paths)) for name, paths in plan.collisions.items()])
        )
    if plan.names:
        parts.append(f"{plan.renamed:,} attributes of all runs get another name:")
        parts.append(lines(["attribute", "name in the target"], sorted(plan.names.items())))
    if plan.refuse:
        parts.append(lines(["refused run", "why"], sorted(plan.refuse.items())))
    if plan.withhold:
        parts.append(lines(["withheld run", "why"], sorted(plan.withhold.items())))
    if plan.notes:
        parts.append(lines(["run", "note"], sorted(plan.notes.items())))
    return "\n\n".join(parts)


def _time(plan: ProjectPlan) -> str:
    if not plan.to_load:
        return "Nothing has to be written."
    if plan.seconds is None:
        return "How long that takes is not known: no load into this target was measured yet."
    speed = plan.speed
    return (
        f"About {duration_text(plan.seconds)}, as {speed.runs:,} runs loaded before took "
        f"({speed.points / speed.seconds:,.0f} points/s, {size_text(round(speed.bytes / speed.seconds))}/s)."
    )


def _sample(run_ids: Any) -> str:
    names = sorted(run_ids)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
