"""Assets of the summary: tables of one project, made by DuckDB from the lake, and the database over all projects."""

# No postponed annotations here: Dagster reads the real types of context, config and inputs.
from collections.abc import Iterator
from typing import Any

import dagster as dg

from neptune_assets.assets.context import Migration
from neptune_assets.assets.metadata import arrow_column_schema
from neptune_assets.assets.tables import TableStream
from neptune_assets.automation import on_changed_data
from neptune_assets.checks import check_projects
from neptune_assets.failures import RETRY_POLICY, clear_failures
from neptune_assets.lake.reader import Lake, LakeProject
from neptune_assets.summary.database import write_database
from neptune_assets.summary.tables import TABLES, summarize


def summary_assets(migration: Migration) -> list[dg.AssetsDefinition]:
    """Build the summary tables as one multi-asset: the lake is scanned once for all of them."""
    specs = {
        name: dg.AssetOut(
            key=migration.key("summary", name),
            group_name="summary",
            description=table.description,
            io_manager_key=migration.table_io,
            kinds={"duckdb"},
            code_version="1",
            automation_condition=on_changed_data(),
            is_required=False,
            metadata={
                "dagster/column_schema": arrow_column_schema(
                    table.schema, {column.name: column.description for column in table.columns}
                )
            },
        )
        for name, table in TABLES.items()
    }

    @dg.multi_asset(
        name=f"{migration.prefix}_summary",
        ins={"runs": dg.AssetIn(migration.key("lake", "runs"), input_manager_key=migration.lake_io)},
        outs=specs,
        partitions_def=migration.partitions,
        can_subset=True,
        retry_policy=RETRY_POLICY,
        pool=migration.pool("summary"),
    )
    def summary(context: dg.AssetExecutionContext, runs: LakeProject) -> Iterator[Any]:
        selected = [name for name in TABLES if name in context.op_execution_context.selected_output_names]
        settings = migration.settings
        with clear_failures(), summarize(runs, settings.summary, settings.lake) as scanned:
            for name in selected:
                # Each table is written before the next one is computed.
                yield dg.Output(TableStream(scanned.table(name), runs.digest), output_name=name)

    return [summary]


def database_asset(migration: Migration) -> dg.AssetsDefinition:
    """Build ``neptune_duckdb``: one database over all projects, for notebooks and BI tools."""
    key = migration.key("summary", "neptune_duckdb")

    @dg.asset(
        key=key,
        deps=[migration.key("summary", name) for name in TABLES],
        group_name="summary",
        description="neptune.duckdb: views over every project's summary tables and straight onto the lake's Parquet.",
        kinds={"duckdb"},
        code_version="1",
        retry_policy=RETRY_POLICY,
        automation_condition=on_changed_data(),
        check_specs=[
            dg.AssetCheckSpec(
                "no_project_broken",
                asset=key,
                description="Every project of this migration is in the lake and holds no partial run.",
            )
        ],
    )
    def neptune_duckdb(context: dg.AssetExecutionContext) -> Iterator[Any]:
        with clear_failures():
            path = write_database(migration.settings.lake, migration.settings.summary)
            yield dg.MaterializeResult(
                metadata={"path": dg.MetadataValue.path(str(path)), "bytes": path.stat().st_size},
                check_results=[check_projects(Lake(migration.settings.lake), migration.keys, key)],
            )

    return neptune_duckdb
