"""build_defs(): the only place where the pieces meet.

Settings in, Dagster definitions out: assets in the order of the data, their resources, jobs, the schedule and the
sensor of one migration. Several migrations side by side are merged by Dagster; their names never meet because each
carries its prefix.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from neptune_assets.assets.context import Migration
from neptune_assets.assets.lake import lake_assets, verified_asset
from neptune_assets.assets.metadata import lake_metadata
from neptune_assets.assets.reconciliation import reconciliation_asset
from neptune_assets.assets.source import source_assets
from neptune_assets.assets.summary import database_asset, summary_assets
from neptune_assets.assets.tables import ParquetTables
from neptune_assets.assets.targets import load_asset
from neptune_assets.automation import growth_sensor, project_schedule
from neptune_assets.lake.io_manager import LakeIOManager
from neptune_assets.migration_settings import Settings
from neptune_assets.partitions import project_keys
from neptune_assets.schema import Scope
from neptune_assets.sources.protocol import Source
from neptune_assets.sources.registry import open_source
from neptune_assets.targets.registry import loads

_LOG = logging.getLogger(__name__)

# Partitioned check specs are a preview feature of Dagster: intended and tested here. A warning at every one would
# bury what a user must read.
warnings.filterwarnings("ignore", category=dg.PreviewWarning, module=r"neptune_assets\.")


def discover_projects(settings: Settings) -> list[str]:
    """Ask the source for its projects; the keys become partitions. What it found and could not read is logged."""
    source = open_source(settings)
    keys = project_keys(source.projects())
    for issue in source.problems():
        _LOG.warning("%s", issue.message)
    return keys


def build_defs(
    settings: Settings,
    keys: Sequence[str],
    *,
    prefix: str = "neptune",
    resource_overrides: Mapping[str, Any] | None = None,
) -> dg.Definitions:
    """Build one migration's definitions, with ``keys`` as partitions.

    ``resource_overrides`` replaces resources by name: ``<prefix>_source``, ``<prefix>_lake_io``, ``<prefix>_table_io``.
    """
    migration = Migration(settings, prefix, project_keys(keys))
    source_and_lake = [*source_assets(migration), *lake_assets(migration)]
    summary = summary_assets(migration)
    built = [load for load in loads(settings) if Scope.RUNS in load.openers or settings.model_registry]
    targets = [load_asset(migration, load) for load in built]
    comparisons = [reconciliation_asset(migration, load) for load in built]
    database = database_asset(migration)
    verified = verified_asset(migration)
    verify = _job(f"{prefix}_verify", [verified], "A share of the lake read again and compared with what was recorded.")
    partitioned = [*source_and_lake, *summary, *targets]
    migrate = _job(f"{prefix}_migrate", partitioned, "One project through every stage: source, lake, summary, targets.")
    jobs = [
        migrate,
        _job(f"{prefix}_lake", source_and_lake, "One project from the source into the lake, no further."),
        _job(f"{prefix}_database", [database], "Build neptune.duckdb anew and check every project."),
        verify,
    ]

    if comparisons:
        jobs.append(
            _job(f"{prefix}_reconcile", comparisons, "Compare what the targets hold with the lake. Reads only.")
        )

    def watch() -> dict[str, str]:
        source = open_source(settings)
        return {key: project_mark(source, key) for key in source.projects()}

    resources: dict[str, Any] = {
        migration.source: dg.ResourceDefinition(lambda _: open_source(settings)),
        migration.lake_io: dg.IOManagerDefinition.hardcoded_io_manager(
            LakeIOManager(settings.lake, lambda report, project: lake_metadata(report, project, settings))
        ),
        migration.table_io: dg.IOManagerDefinition.hardcoded_io_manager(ParquetTables(settings.lake)),
        **(resource_overrides or {}),
    }
    return dg.Definitions(
        assets=[*partitioned, verified, *comparisons, database],
        resources=resources,
        jobs=jobs,
        schedules=[
            project_schedule(
                f"{prefix}_backfill",
                migrate,
                migration.keys,
                settings.automation.schedule,
                settings.automation,
                "Materialize every project from source to targets; what did not change is not read again.",
            ),
            project_schedule(
                f"{prefix}_verify_share",
                verify,
                migration.keys,
                settings.automation.verify_schedule,
                settings.automation,
                "Read a share of the lake again and compare every byte; all of it within lake.verify_days.",
            ),
        ],
        sensors=[
            growth_sensor(f"{prefix}_growth", migrate, migration.keys, settings.automation, watch),
            dg.AutomationConditionSensorDefinition(
                f"{prefix}_changed_data",
                target=dg.AssetSelection.assets(*(key for item in [*summary, *targets, database] for key in item.keys)),
                default_status=(
                    dg.DefaultSensorStatus.RUNNING if settings.automation.enabled else dg.DefaultSensorStatus.STOPPED
                ),
                description="Run summaries and loads whose data changed.",
            ),
        ],
        executor=dg.in_process_executor,
    )


def project_mark(source: Source, project_id: str) -> str:
    """Return one mark for all runs of a project; it changes when any run is new, gone or changed."""
    marks = sorted((info.run_id, info.fingerprint) for info in source.runs(project_id))
    return hashlib.blake2b(repr(marks).encode(), digest_size=16).hexdigest()


def _job(name: str, assets: Sequence[dg.AssetsDefinition], description: str) -> dg.UnresolvedAssetJobDefinition:
    return dg.define_asset_job(
        name,
        selection=dg.AssetSelection.assets(*assets),
        description=description,
    )
