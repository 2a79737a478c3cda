"""Asset checks: what must hold before the next stage may build on a table.

Each function reads what is on disk and returns a result; none writes, but runs found damaged are noted for the next
materialization. Counts are exact, lists are cut at 50.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import dagster as dg

from neptune_assets.assets.metadata import table
from neptune_assets.lake.reader import Lake, LakeProject
from neptune_assets.lake.reports import WriteReport
from neptune_assets.lake.verification import VerifyReport
from neptune_assets.schema import Scope
from neptune_assets.targets.plan import ProjectPlan, plan_page
from neptune_assets.targets.reconcile import WORDS, Comparison
from neptune_assets.targets.report import LoadReport, RowAccounting


def check_complete(project: LakeProject, key: dg.AssetKey) -> dg.AssetCheckResult:
    """Pass if no run is partial or stale. A warning: partial runs are withheld from loads, complete ones go on.

    A stale run is complete, but older than what the source has now, which could not be read whole.
    """
    partial = [record for record in project.records().values() if not record.complete]
    stale = [record for record in project.records().values() if record.stale is not None]
    rows = [(r.run_id, issue.attribute_path or "", issue.message) for r in partial for issue in r.errors]
    rows += [(r.run_id, "", f"kept as it was, its newer state is not whole: {r.stale}") for r in stale]
    return dg.AssetCheckResult(
        passed=not partial and not stale,
        check_name="complete",
        asset_key=key,
        severity=dg.AssetCheckSeverity.WARN,
        description=(
            f"{len(partial):,} runs are partial, {len(stale):,} are complete but stale; they are read again next time."
            if partial or stale
            else "Every run is complete."
        ),
        metadata={
            "partial_runs": len(partial),
            "stale_runs": len(stale),
            **({"reasons": dg.MetadataValue.md(table(["run", "attribute", "reason"], rows))} if rows else {}),
        },
    )


def check_everything_read(report: WriteReport, key: dg.AssetKey) -> dg.AssetCheckResult:
    """Pass if nothing that was found had to be left unread: no run, recording, part, archive or path of the settings.

    What is named here may hold runs that the lake does not know, so that it can say nothing of them.
    """
    wrong = [
        *((run_id, f"could not be read: {message}") for run_id, message in sorted(report.failed.items())),
        *((issue.attribute_path or "source", issue.message) for issue in report.unread),
    ]
    return _result("everything_read", key, wrong, "Everything that was found was read.")


def check_schema(project: LakeProject, key: dg.AssetKey) -> dg.AssetCheckResult:
    """Pass if every part in the lake is of the commit that its run names, with its rows and the lake's columns.

    Parts that are read in place are checked while reading. A run that fails is noted, and read anew by the next
    materialization.
    """
    wrong: list[tuple[str, str]] = []
    checked = 0
    for run in project.runs():
        if run.record.in_place is not None:
            continue
        for part in run.record.parts:
            checked += 1
            problem = run.part_problem(part)
            if problem is not None:
                wrong.append((run.run_id, problem))
    project.damaged.add(dict(wrong))
    return _result("schema", key, wrong, f"{checked:,} parts have the lake's columns and are of the recorded commits.")


def check_files(project: LakeProject, key: dg.AssetKey) -> dg.AssetCheckResult:
    """Pass if every file that the manifest names is there with its recorded size."""
    records = project.records().values()
    sizes = project.file_sizes() if any(r.files and r.in_place is None for r in records) else {}
    wrong = [(run.run_id, problem) for run in project.runs() for problem in run.file_problems(sizes)]
    checked = sum(len(record.files) for record in records)
    return _result("files_present", key, wrong, f"{checked:,} files are in place.")


def check_intact(report: VerifyReport, key: dg.AssetKey) -> dg.AssetCheckResult:
    """Pass if every byte that was read is as it was recorded."""
    wrong = [(item.run_id or f"{item.project_id} ({item.scope})", item.message) for item in report.damaged]
    return _result("intact", key, wrong, f"{report.runs:,} runs and {report.files:,} files are as they were written.")


def check_load(reports: Sequence[LoadReport], key: dg.AssetKey, things: str = "runs") -> dg.AssetCheckResult:
    """Pass if everything that had to be loaded was loaded and reads back as it is in the lake."""
    wrong = [item for report in reports for item in sorted(report.failed.items())]
    loaded, skipped = sum(len(report.loaded) for report in reports), sum(len(report.skipped) for report in reports)
    return _result("load_verified", key, wrong, f"{loaded:,} {things} loaded and verified, {skipped:,} already there.")


def check_plan(plans: Sequence[ProjectPlan], key: dg.AssetKey, things: str = "runs") -> dg.AssetCheckResult:
    """Pass if none of what is planned has to be refused; what else somebody should know is in the description.

    ``things`` is what the plans are of.
    """
    wrong = [item for plan in plans for item in sorted(plan.refuse.items())]
    warnings = "; ".join(warning for plan in plans for warning in plan.warnings)
    seconds = [plan.seconds for plan in plans if plan.seconds is not None]
    fate = {
        "create": sum(len(plan.create) for plan in plans),
        "replace": sum(len(plan.replace) for plan in plans),
        "skip": sum(len(plan.skip) for plan in plans),
        "withhold": sum(len(plan.withhold) for plan in plans),
        "refuse": len(wrong),
    }
    counted = things.replace(" ", "_")
    return dg.AssetCheckResult(
        passed=not wrong,
        check_name="plan",
        asset_key=key,
        severity=dg.AssetCheckSeverity.ERROR,
        description=(
            f"{len(wrong):,} {things} are refused; the first: {wrong[0][0]}: {wrong[0][1]}"
            if wrong
            else f"{fate['create'] + fate['replace']:,} {things} to load, {fate['skip']:,} already there. "
            f"{warnings and warnings + '.'}".strip()
        ),
        metadata={
            **{f"{counted}_to_{name}": number for name, number in fate.items()},
            "rows_to_load": sum(plan.total_rows for plan in plans),
            "file_bytes_to_load": sum(plan.file_bytes for plan in plans),
            **({"seconds_expected": round(sum(seconds), 1)} if len(seconds) == len(plans) else {}),
            "plan": dg.MetadataValue.md("\n\n".join(plan_page(plan) for plan in plans)),
        },
    )


def check_balance(balances: Mapping[Scope, RowAccounting], key: dg.AssetKey) -> dg.AssetCheckResult:
    """Pass if for every run (model, version) and attribute type all rows of the lake are accounted for."""
    wrong = [
        (run_id, f"{count:,} rows of {kind}{f' in {scope}' if len(balances) > 1 else ''} are not accounted for")
        for scope, rows in balances.items()
        for run_id, kind, count in rows.wrong
    ]
    total = sum(sum(rows.lake.values()) for rows in balances.values())
    return _result("rows_accounted_for", key, wrong, f"All {total:,} rows of the lake are accounted for.")


def check_reconciled(comparisons: Sequence[Comparison], key: dg.AssetKey, things: str = "runs") -> dg.AssetCheckResult:
    """Pass if the target holds now what the lake holds; ``things`` is what the comparisons are of."""
    wrong = [
        (item.run_id, f"{item.word}: {'; '.join(item.differences[:5]) or WORDS[item.word]}")
        for comparison in comparisons
        for item in comparison.wrong
    ]
    total = sum(len(comparison.runs) for comparison in comparisons)
    return _result("reconciled", key, wrong, f"{total:,} {things} are as in the lake.")


def check_projects(lake: Lake, keys: Iterable[str], key: dg.AssetKey) -> dg.AssetCheckResult:
    """Pass if every project that is in the lake can be opened and holds no partial or stale run."""
    wrong: list[tuple[str, str]] = []
    present = set(lake.projects())
    for project_id in sorted({*keys} & present):
        records = lake.project(project_id, Scope.RUNS).records()
        broken = sum(not record.complete or record.stale is not None for record in records.values())
        if broken:
            wrong.append((project_id, f"{broken:,} of {len(records):,} runs are partial or stale"))
    missing = sorted({*keys} - present)
    wrong += [(project_id, "not in the lake yet: materialize its partition") for project_id in missing]
    return _result("no_project_broken", key, wrong, f"{len(present):,} projects are whole.")


def raise_if_red(results: Iterable[dg.AssetCheckResult], *, allow_retries: bool = False) -> None:
    """Make the step fail, and with it the run and the exit status, if a check of severity ERROR did."""
    red = [result for result in results if not result.passed and result.severity is dg.AssetCheckSeverity.ERROR]
    if red:
        raise dg.Failure(
            "\n".join(f"Check {result.check_name} failed: {result.description}" for result in red),
            metadata={str(result.check_name): result.metadata["details"] for result in red},
            allow_retries=allow_retries,
        )


def _result(name: str, key: dg.AssetKey, wrong: list[tuple[str, str]], fine: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=not wrong,
        check_name=name,
        asset_key=key,
        severity=dg.AssetCheckSeverity.ERROR,
        description=fine if not wrong else f"{len(wrong):,} problems; the first: {wrong[0][0]}: {wrong[0][1]}",
        metadata={
            "problems": len(wrong),
            **({"details": dg.MetadataValue.md(table(["where", "problem"], wrong))} if wrong else {}),
        },
    )
