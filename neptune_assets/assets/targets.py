"""Assets of the targets: what is loaded into each, with its plan, its receipts as tables, and its checks.

One factory for runs and for models with their versions: :class:`~neptune_assets.targets.registry.Load` says which.
"""

# No postponed annotations here: Dagster reads the real types of context, config and inputs.
from collections.abc import Iterator, Mapping
from typing import Any, Final

import dagster as dg

from neptune_assets.assets.context import Migration, RefreshConfig
from neptune_assets.assets.metadata import arrow_column_schema, table
from neptune_assets.assets.tables import TableStream, kinds_reader, report_path, with_kind, write_report
from neptune_assets.automation import on_changed_data
from neptune_assets.checks import check_balance, check_load, check_plan
from neptune_assets.failures import RETRY_POLICY, clear_failures
from neptune_assets.lake.reader import LakeProject
from neptune_assets.progress import ProgressLog
from neptune_assets.schema import Scope
from neptune_assets.targets.ledger import Ledger
from neptune_assets.targets.load import load_project
from neptune_assets.targets.plan import ProjectPlan, plan_page, plan_project
from neptune_assets.targets.registry import Load
from neptune_assets.targets.report import (
    RECEIPTS,
    LoadReport,
    RowAccounting,
    balance,
    balance_page,
    fates_reader,
    receipts_reader,
)
from neptune_assets.targets.rules import read_rules

_NAMED: Final = 20
"""Withheld runs that the log names."""


def load_asset(migration: Migration, load: Load) -> dg.AssetsDefinition:
    """Build the asset of one load."""
    key = migration.key("targets", load.name)
    settings = migration.settings
    rules = read_rules(settings.targets.names)
    columns = with_kind(RECEIPTS, load.openers)

    @dg.asset(
        key=key,
        ins={
            scope.value: dg.AssetIn(migration.key("lake", scope.value), input_manager_key=migration.lake_io)
            for scope in load.openers
        },
        # Versions link to runs, so runs are loaded first.
        deps=[] if Scope.RUNS in load.openers else [migration.key("targets", load.spec.name)],
        group_name="targets",
        description=load.description,
        partitions_def=migration.partitions,
        io_manager_key=migration.table_io,
        kinds={load.spec.name},
        code_version="1",
        retry_policy=RETRY_POLICY,
        pool=migration.pool(load.spec.name),
        automation_condition=on_changed_data(),
        metadata={"dagster/column_schema": arrow_column_schema(columns)},
        check_specs=[
            migration.check(
                key, "plan", f"Found out before anything is written: none of the {load.things} is refused."
            ),
            migration.check(
                key,
                "load_verified",
                f"All {load.things} that had to be loaded read back over a fresh connection as they are in the lake.",
            ),
            migration.check(
                key,
                "rows_accounted_for",
                f"Rows in the lake = written + mapped + dropped + not loaded, for each of the {load.things}.",
            ),
        ],
    )
    def loaded(context: dg.AssetExecutionContext, config: RefreshConfig, **projects: LakeProject) -> Iterator[Any]:
        project_id = context.partition_key
        ledgers = {scope: Ledger(settings.lake, load.ledger_name(scope), project_id) for scope in load.openers}
        choices: dict[str, Any] = {
            "partial_runs": settings.targets.partial_runs,
            "rules": rules,
            "full_refresh": config.full_refresh,
        }
        plans: dict[Scope, ProjectPlan] = {}
        for scope, open_target in load.openers.items():
            with clear_failures():
                plans[scope] = plan_project(projects[scope.value], open_target, ledgers[scope], **choices)
            context.log.info(plan_line(plans[scope], scope.value.replace("_", " ")))
        yield check_plan([*plans.values()], key, load.things)
        reports: dict[Scope, LoadReport] = {}
        balances: dict[Scope, RowAccounting] = {}
        tables: dict[str, Any] = {}
        for scope, open_target in load.openers.items():
            log = ProgressLog(context.log.info, f"{project_id} into {load.ledger_name(scope)}")
            with clear_failures():
                reports[scope] = load_project(
                    projects[scope.value],
                    open_target,
                    ledgers[scope],
                    parallel_runs=settings.targets.parallel_runs,
                    derived=plans[scope].derived,
                    progress=log.update,
                    **choices,
                )
                balances[scope] = balance(reports[scope])
                path = report_path(settings.lake, load.ledger_name(scope), project_id)
                write_report(settings.lake, path, fates_reader(reports[scope]))
            tables[_prefixed("report_table", scope)] = dg.MetadataValue.path(path)
            withheld = sorted(reports[scope].withheld)
            if withheld:
                context.log.warning(
                    f"{len(withheld):,} partial {scope.value.replace('_', ' ')} withheld from {load.spec.name}: "
                    f"{', '.join(withheld[:_NAMED])}. Repair their source, or set targets.partial_runs to load."
                )
        verdicts = [check_load([*reports.values()], key, load.things), check_balance(balances, key)]
        metadata = {**load_metadata(reports, balances, plans), **tables}
        failed = [report for report in reports.values() if report.failed]
        if not all(verdict.passed for verdict in verdicts):
            # The checks are recorded first, so that the UI names every run; then the asset fails.
            yield from verdicts
            raise dg.Failure(
                _why(reports, balances, load.things),
                metadata=metadata,
                allow_retries=bool(failed) and all(report.transient for report in failed),
            )
        digest = "-".join(projects[scope.value].digest for scope in load.openers)
        readers = {scope: receipts_reader(report) for scope, report in reports.items()}
        yield dg.Output(TableStream(kinds_reader(readers, columns), digest), metadata=metadata)
        yield from verdicts

    return loaded


def load_metadata(
    reports: Mapping[Scope, LoadReport], balances: Mapping[Scope, RowAccounting], plans: Mapping[Scope, ProjectPlan]
) -> dict[str, Any]:
    """Describe a load: each kind by outcome, rows by fate, plans, and what was dropped, noted, withheld or failed."""
    found = [*reports.values()]
    rows_in = sum(sum(report.rows_in.values()) for report in found)
    seconds = sum(report.seconds for report in found)
    metadata: dict[str, Any] = {
        "rows_in": rows_in,
        "rows_written": sum(sum(report.written.values()) for report in found),
        "rows_mapped": sum(sum(report.mapped.values()) for report in found),
        "rows_dropped": sum(sum(report.dropped.values()) for report in found),
        "seconds": round(seconds, 3),
        "rows_per_second": round(rows_in / seconds) if seconds else 0,
        "plan": dg.MetadataValue.md("\n\n".join(plan_page(plan) for plan in plans.values())),
        "report": dg.MetadataValue.md("\n\n".join(balance_page(rows) for rows in balances.values())),
    }
    for scope, report in reports.items():
        metadata |= {
            f"{scope.value}_loaded": len(report.loaded),
            f"{scope.value}_skipped": len(report.skipped),
            f"{scope.value}_withheld": len(report.withheld),
            f"{scope.value}_failed": len(report.failed),
        }
    dropped = [(kind, reason, count) for report in found for (kind, reason), count in sorted(report.dropped.items())]
    notes = [(receipt.run_id, note) for report in found for receipt in report.receipts for note in receipt.notes]
    failed = [item for report in found for item in sorted(report.failed.items())]
    withheld = [item for report in found for item in sorted(report.withheld.items())]
    for name, header, lines in (
        ("dropped", ["type", "reason", "rows"], dropped),
        ("notes", ["run", "note"], notes),
        ("failed", ["run", "reason"], failed),
        ("withheld", ["run", "reason"], withheld),
    ):
        if lines:
            metadata[name] = dg.MetadataValue.md(table(header, lines))
    return metadata


def plan_line(plan: ProjectPlan, things: str = "runs") -> str:
    """Return a plan in one line of the log; its page is in the metadata of the check ``plan``."""
    counts = (
        f"{len(plan.create):,} {things} to create, {len(plan.replace):,} to replace, {len(plan.skip):,} already there, "
        f"{len(plan.withhold):,} to withhold, {len(plan.refuse):,} to refuse; {plan.total_rows:,} rows"
    )
    return f"Plan for {plan.project_id} into {plan.target}: {'; '.join([counts, *plan.warnings])}."


def _why(reports: Mapping[Scope, LoadReport], balances: Mapping[Scope, RowAccounting], things: str) -> str:
    failed = [item for report in reports.values() for item in sorted(report.failed.items())]
    if failed:
        run_id, message = failed[0]
        total = sum(report.total for report in reports.values())
        return f"{len(failed):,} of {total:,} {things} were not loaded and verified; the first is {run_id!r}: {message}"
    wrong = [item for rows in balances.values() for item in rows.wrong]
    run_id, kind, count = wrong[0]
    return f"Rows of {len(wrong):,} {things} are not accounted for; the first is {run_id!r}: {count:,} of {kind}."


def _prefixed(name: str, scope: Scope) -> str:
    return name if scope is Scope.RUNS else f"{scope.value}_{name}"
