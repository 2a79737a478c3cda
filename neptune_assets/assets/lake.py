"""Assets of the lake: runs, models and model versions of one project as Parquet, and the checks on them."""

# No postponed annotations here: Dagster reads the real types of context, config and inputs.
from collections.abc import Iterator
from typing import Any

import dagster as dg

from neptune_assets.assets.context import Migration, RefreshConfig
from neptune_assets.assets.metadata import parquet_column_schema
from neptune_assets.checks import (
    check_complete,
    check_everything_read,
    check_files,
    check_intact,
    check_schema,
    raise_if_red,
)
from neptune_assets.derived import report_derived
from neptune_assets.failures import RETRY_POLICY, clear_failures
from neptune_assets.lake.io_manager import ProjectStream
from neptune_assets.lake.reader import Lake
from neptune_assets.lake.reports import WriteReport
from neptune_assets.lake.verification import Subset, Verification, VerifyReport, has_project
from neptune_assets.migration_settings import Settings
from neptune_assets.progress import ProgressLog
from neptune_assets.schema import Scope
from neptune_assets.sources.protocol import Source

_DESCRIPTIONS = {
    Scope.RUNS: "Runs of one project as Parquet, one commit a run; only new, changed and partial ones are read.",
    Scope.MODELS: "Models of one project's model registry as Parquet.",
    Scope.MODEL_VERSIONS: "Model versions of one project's model registry as Parquet.",
}

_LOGGED = 1_000
"""Problems that are logged one by one."""


def lake_assets(migration: Migration) -> list[dg.AssetsDefinition]:
    """Build the lake's assets: ``runs`` always, the model registry where the source can hold one."""
    return [_lake_asset(migration, scope) for scope in _scopes(migration.settings)]


class VerifyConfig(dg.Config):
    """Run config of the asset that reads the lake again."""

    everything: bool = False
    """Read all runs now instead of the day's share."""


def verified_asset(migration: Migration) -> dg.AssetsDefinition:
    """Build the asset that reads a share of the lake again and compares it with what was recorded."""
    key = migration.key("lake", "verified")
    scopes = _scopes(migration.settings)
    settings = migration.settings.lake

    @dg.asset(
        key=key,
        deps=[migration.key("lake", scope.value) for scope in scopes],
        group_name="lake",
        description=(
            f"The lake read again, what was read longest ago first: all of it within {settings.verify_days} days if "
            "materialized daily. Damaged runs are read anew from the source by the next materialization of lake/runs."
        ),
        partitions_def=migration.partitions,
        kinds={"parquet"},
        code_version="1",
        pool=migration.pool("lake"),
        check_specs=[
            migration.check(key, "intact", "Every byte that was read is as it was recorded when it was written.")
        ],
    )
    def verified(context: dg.AssetExecutionContext, config: VerifyConfig) -> Iterator[Any]:
        log = ProgressLog(context.log.info, f"{context.partition_key} verified")

        def progress(now: VerifyReport) -> None:
            log.update(now.runs, now.runs_total, now.rows, now.bytes / now.bytes_total if now.bytes_total else None)

        share = None if config.everything else Subset(share=1 / settings.verify_days)
        with clear_failures():
            lake = Lake(settings)
            project_id = context.partition_key
            held = [(project_id, scope) for scope in scopes if has_project(lake, project_id, scope)]
            report = Verification(lake, progress=progress).run(held, share)
            report_derived(report, settings, None, [project_id])
        for item in report.damaged[:_LOGGED]:
            context.log.error("Damaged: %s", item.message)
        for note in report.notes:
            context.log.warning("%s", note)
        result = check_intact(report, key)
        moments = list(report.verified_through.values())
        through = None if None in moments else min((moment for moment in moments if moment), default=None)
        yield dg.MaterializeResult(
            metadata={
                "verified_through": through or "not all of it yet",
                "runs_verified": report.runs,
                "rows_verified": report.rows,
                "files_verified": report.files,
                "bytes_verified": report.bytes,
                "seconds": round(report.seconds, 3),
                "damaged": len(report.damaged),
            },
            check_results=[result],
        )
        raise_if_red([result])

    return verified


def _scopes(settings: Settings) -> list[Scope]:
    return [Scope.RUNS, *([Scope.MODELS, Scope.MODEL_VERSIONS] if settings.model_registry else [])]


def _lake_asset(migration: Migration, scope: Scope) -> dg.AssetsDefinition:
    key = migration.key("lake", scope.value)
    lake_settings = migration.settings.lake

    @dg.asset(
        key=key,
        deps=[migration.key("source", "inventory")],
        group_name="lake",
        description=_DESCRIPTIONS[scope],
        partitions_def=migration.partitions,
        io_manager_key=migration.lake_io,
        required_resource_keys={migration.source},
        kinds={"parquet"},
        code_version="1",
        retry_policy=RETRY_POLICY,
        pool=migration.pool("lake"),
        metadata={
            "dagster/column_schema": parquet_column_schema(),
            "dagster/uri": f"{lake_settings.root.rstrip('/')}/{'data' if scope is Scope.RUNS else 'model_data'}",
        },
        check_specs=[
            migration.check(
                key,
                "complete",
                "Every attribute the source promised arrived; partial runs are named with their reason.",
            ),
            migration.check(
                key,
                "schema",
                "Every part of every run has the lake's columns, and belongs to the committed generation.",
                blocking=True,
            ),
            migration.check(
                key, "files_present", "Every file that a run names is in the lake with the size that was recorded."
            ),
            migration.check(
                key,
                "everything_read",
                "Every run, recording, part and path that the source found could be read; what could not is named.",
            ),
        ],
    )
    def lake(context: dg.AssetExecutionContext, config: RefreshConfig) -> Iterator[Any]:
        source: Source = getattr(context.resources, migration.source)
        stream = ProjectStream(source, context.partition_key, scope, config.full_refresh)
        # Dagster hands the output to the IO manager before it resumes this function: what follows sees it written.
        yield dg.Output(stream)
        report = stream.report or WriteReport(context.partition_key)
        _log_problems(context, report)
        _log_incomplete(context, report)
        with clear_failures():
            project = Lake(lake_settings).project(context.partition_key, scope)
            results = [
                check_complete(project, key),
                check_schema(project, key),
                check_files(project, key),
                check_everything_read(report, key),
            ]
        yield from results
        # Only reading a run may heal by itself: a server may have failed in passing.
        raise_if_red(results, allow_retries=bool(report.failed))

    return lake


def _log_incomplete(context: dg.AssetExecutionContext, report: WriteReport) -> None:
    """Name partial and stale runs in the log: the check `complete` that shows them is only a warning."""
    for state, run_ids in (("partial", report.partial), ("stale", report.stale)):
        if run_ids:
            more = f" and {len(run_ids) - _LOGGED:,} more" if len(run_ids) > _LOGGED else ""
            context.log.warning(
                "%d runs of %s are %s: %s%s. The check `complete` has the reasons.",
                len(run_ids),
                report.project_id,
                state,
                ", ".join(run_ids[:_LOGGED]),
                more,
            )


def _log_problems(context: dg.AssetExecutionContext, report: WriteReport) -> None:
    """Name in the log what was found and not read, one line each, and how much else is reported in metadata."""
    for issue in report.unread[:_LOGGED]:
        context.log.error("Not read: %s", issue.message)
    if len(report.unread) > _LOGGED:
        context.log.error("%d more problems of this kind are not listed.", len(report.unread) - _LOGGED)
    notices = [issue for issue in report.problems if issue.notice]
    if notices:
        more = f" {len(notices) - 1:,} more are in the metadata source_problems." if len(notices) > 1 else ""
        context.log.warning("%s%s", notices[0].message, more)
