"""Plans, reports and comparisons as Markdown: for the UI, for logs and for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from neptune_assets.markdown import escape, table
from neptune_assets.targets.plan import LISTED, ProjectPlan
from neptune_assets.targets.report import FATE_NAMES, Balance

Cell = Callable[[str, int], str]


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
    elif plan.unfit:
        parts.append(
            lines(
                ["attribute type", "what the target cannot hold", "values", "what happens"],
                [(kind, what, f"{rows:,}", fate) for (kind, what, fate), rows in sorted(plan.unfit.items())],
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
        parts.append(f"{plan.collided:,} names would meet and are told apart{cut}:")
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


def balance_page(balance: Balance, cell: Cell = escape) -> str:
    """Return where all rows of a project went, by attribute type, with what nothing accounts for in the last column."""
    rows = []
    for kind in [*balance.types, ""]:
        of = [balance.fates.get(kind, {}).get(fate, 0) for fate in FATE_NAMES]
        if not kind:
            of = [sum(fates.get(fate, 0) for fates in balance.fates.values()) for fate in FATE_NAMES]
        total = balance.lake.get(kind, 0) if kind else sum(balance.lake.values())
        rows.append((kind or "all", *(f"{n:,}" for n in (total, *of, total - sum(of)))))
    parts = [table(["attribute type", "in the lake", *FATE_NAMES, "not accounted for"], rows, cell=cell)]
    if balance.reasons:
        reasons = [(kind, fate, why, f"{n:,}") for (kind, fate, why), n in sorted(balance.reasons.items())]
        parts.append(table(["attribute type", "fate", "reason", "rows"], reasons, cell=cell, more="are in the table"))
    return "\n\n".join(parts)


def size_text(size: int) -> str:
    """Return a number of bytes for people."""
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:,.0f} {unit}" if unit == "bytes" else f"{amount:,.1f} {unit}"
        amount /= 1024
    return f"{amount:,.1f} TiB"


def duration_text(seconds: float) -> str:
    """Return a duration for people."""
    if seconds < 1:
        return "less than a second"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


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
