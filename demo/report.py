"""Prints what the demo did, from what is on disk: ``python demo/report.py --lake data/demo``.

Every number is read now: the source's inventory, the lake's manifest and its Parquet and files, the summary tables, and
each target's ledger. Exits with 1, naming what is wrong, if anything is missing, partial, unverified or not adding up.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # found as a module and as a script alike

from demo.evidence import ProjectEvidence, TargetEvidence, gather  # noqa: E402
from demo.expectation import Comparison, compare  # noqa: E402

MAX_COLUMNS = 4
"""Projects that get a column of their own; of more, only the sum is shown."""


@dataclass
class Table:
    """Lines of numbers, one column a project and one for all of them."""

    columns: Sequence[str]
    lines: list[tuple[str, str, list[str]]] = field(default_factory=list)

    def add(self, stage: str, label: str, numbers: Sequence[int], unit: str = "") -> None:
        """Add a line; its last column is the sum."""
        values = [*numbers, sum(numbers)] if len(numbers) > 1 else list(numbers)
        if len(self.columns) == 1:
            values = values[-1:]
        self.lines.append((stage, label, [_amount(value, unit) for value in values]))

    def text(self) -> str:
        """Return the table with a rule before each stage."""
        label_width = max(len(label) for _, label, _ in self.lines)
        widths = [
            max(len(name), *(len(values[i]) for _, _, values in self.lines)) for i, name in enumerate(self.columns)
        ]
        rule = "─" * (12 + label_width + sum(width + 3 for width in widths))
        head = " " * (12 + label_width) + "".join(f"   {n:>{w}}" for n, w in zip(self.columns, widths, strict=True))
        result, before = [head], None
        for stage, label, values in self.lines:
            if stage != before:
                result.append(rule)
            shown = stage if stage != before else ""
            numbers = "".join(f"   {value:>{width}}" for value, width in zip(values, widths, strict=True))
            result.append(f"  {shown:<9} {label:<{label_width}}{numbers}")
            before = stage
        return "\n".join([*result, rule])


def main() -> int:
    """Print the report; returns the exit code."""
    parser = argparse.ArgumentParser(description="Print what the demo read, wrote, summarised, loaded and verified.")
    parser.add_argument("--lake", type=Path, required=True, help="root of the lake")
    parser.add_argument("--project", action="append", default=[], help="a project that must be there (may be repeated)")
    parser.add_argument("--target", action="append", default=[], help="a target that must hold every run (repeatable)")
    parser.add_argument(
        "--expected", type=Path, default=HERE / "recordings" / "expected.json", help="what the training scripts logged"
    )
    options = parser.parse_args()
    comparison = compare(options.lake, options.expected)
    wanted = options.project or comparison.projects
    targets = options.target or ["mlflow", "wandb"]
    projects, problems = gather(options.lake, wanted, targets)
    problems += comparison.problems
    if projects:
        print(_table(projects, targets, comparison).text())
        for line in _dropped(projects):
            print(line)
    if problems:
        print(f"\n{len(problems)} problems:", file=sys.stderr)
        for problem in problems:
            print(f"  {problem}", file=sys.stderr)
        return 1
    runs = sum(len(project.records) for project in projects)
    print(
        f"\nAll {runs} runs are complete in the lake and verified in {' and '.join(targets)}; "
        f"all {comparison.metrics} metrics, {comparison.values} values and {comparison.files} files "
        "are as the training scripts logged them."
    )
    print(_next(options.lake))
    return 0


def _table(projects: Sequence[ProjectEvidence], targets: Sequence[str], comparison: Comparison) -> Table:
    names = [project.project_id for project in projects]
    table = Table([*names, "all"] if 1 < len(names) <= MAX_COLUMNS else ["all"] if len(names) > 1 else names)
    table.add("source", "runs listed", [project.listed for project in projects])
    table.add("source", "size of the recordings", [project.source_bytes for project in projects], "bytes")
    logged = [comparison.by_project.get(project.project_id, 0) for project in projects]
    table.add("source", "metric points logged", logged)
    table.add("lake", "runs complete", [project.complete for project in projects])
    table.add("lake", "runs partial", [len(project.records) - project.complete for project in projects])
    table.add("lake", "rows, counted in Parquet", [project.total_rows for project in projects])
    for label, kinds in _KINDS.items():
        table.add("lake", f"  {label}", [sum(project.rows.get(kind, 0) for kind in kinds) for project in projects])
    table.add("lake", "files, hashed again", [project.files for project in projects])
    table.add("lake", "size of the files", [project.file_bytes for project in projects], "bytes")
    table.add("lake", "size of the Parquet", [project.parquet_bytes for project in projects], "bytes")
    table.add("summary", "tables", [len(project.summary) for project in projects])
    table.add("summary", "rows", [sum(project.summary.values()) for project in projects])
    for target in targets:
        held = [project.targets.get(target, TargetEvidence()) for project in projects]
        table.add(target, "rows given", [item.rows_in for item in held])
        table.add(target, "rows written as they are", [item.written for item in held])
        table.add(target, "rows kept in another form", [item.mapped for item in held])
        table.add(target, "rows dropped for a reason", [item.dropped_rows for item in held])
        table.add(target, "runs read back and equal", [item.verified for item in held])
    return table


_KINDS = {
    "metric points": ("float_series",),
    "values and tags": ("float", "int", "string", "bool", "datetime", "string_set"),
    "lines of text": ("string_series",),
    "histograms": ("histogram_series",),
    "files and pictures": ("file", "file_series", "file_set", "artifact"),
}


def _dropped(projects: Sequence[ProjectEvidence]) -> list[str]:
    reasons: dict[tuple[str, str, str], int] = {}
    for project in projects:
        for target, held in project.targets.items():
            for item in held.dropped:
                key = (target, item.attribute_type, item.reason)
                reasons[key] = reasons.get(key, 0) + item.rows
    return [f"  {target} dropped {rows:,} {kind}: {reason}" for (target, kind, reason), rows in sorted(reasons.items())]


def _next(lake: Path) -> str:
    lines = [("make dev", "the Dagster UI on http://127.0.0.1:3000")]
    if (lake / "mlflow.db").is_file():
        lines.append((f".venv/bin/mlflow ui --backend-store-uri sqlite:///{lake / 'mlflow.db'}", "the runs in MLflow"))
    if (lake / "neptune.duckdb").is_file():
        lines.append((f"duckdb {lake / 'neptune.duckdb'}", "every table, in SQL"))
    width = max(len(command) for command, _ in lines)
    return "\nNext:\n" + "\n".join(f"  {command:<{width}}   {text}" for command, text in lines)


def _amount(value: int, unit: str) -> str:
    if unit != "bytes":
        return f"{value:,}"
    return f"{value / 2**20:,.1f} MiB" if value >= 2**20 else f"{value / 2**10:,.1f} KiB"


if __name__ == "__main__":
    sys.exit(main())
